"""Iterations that are not finite: the end of a run by default, skipped and counted where the settings say so."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from running import run_scenario
from tensors import assert_finite, assert_same_tensors

from plopcli.engine.trainer import Trainer
from plopcli.errors import PlopError
from plopcli.methods.ft import FineTuning
from plopcli.resolution.layers import Resolved
from plopcli.runs.checkpoint import load_checkpoint

Make = Callable[..., Resolved]
#: One step of 12 iterations.
ONE_STEP = {"method__name": "ft", "scenario__task": "19-1", "train__first__epochs": 2}


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Makes the loss of some iterations not finite; running statistics are spoilt with it."""

    def arrange(*numbers: int, value: float = math.nan) -> list[int]:
        calls: list[int] = []
        genuine = FineTuning.losses

        def losses(self: FineTuning, *arguments: Any) -> dict[str, Any]:
            terms = genuine(self, *arguments)
            calls.append(len(calls))
            return {name: term * value for name, term in terms.items()} if calls[-1] in numbers else terms

        monkeypatch.setattr(FineTuning, "losses", losses)
        forward = Trainer._backward

        def backward(self: Trainer, batch: Any, weight: float) -> Any:
            spoilt = len(calls) in numbers
            terms = forward(self, batch, weight)
            if spoilt:
                for buffer in self.model.buffers():
                    if buffer.is_floating_point():
                        buffer.fill_(math.nan)
            return terms

        monkeypatch.setattr(Trainer, "_backward", backward)
        return calls

    return arrange


def test_by_default_the_first_one_ends_the_run_and_says_how_to_go_on(
    tiny: Make, quiet: Console, tmp_path: Path, spoil: Any
) -> None:
    calls = spoil(3)
    with pytest.raises(PlopError, match="classification is not finite at step 0, iteration 3") as caught:
        run_scenario(tiny(**ONE_STEP), console=quiet)
    assert "--resume --set train.skip_non_finite=10" in str(caught.value.hint)
    assert len(calls) < 12
    # And so it goes on: the setting may change when a run is resumed.
    results = run_scenario(tiny(**ONE_STEP, train__skip_non_finite=10), console=quiet, resume=True)
    assert [step.step for step in results.steps] == [0, 1]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_tolerated_ones_move_nothing_and_are_counted(
    tiny: Make, quiet: Console, tmp_path: Path, spoil: Any, value: float
) -> None:
    spoil(2, 3, 7, value=value)
    results = run_scenario(tiny(**ONE_STEP, train__skip_non_finite=2), console=quiet)
    assert results.steps[0].content()["skipped_iterations"] == 3
    assert "skipped_iterations" not in results.steps[1].content()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows if row["diagnostics"].get("not_finite")] == [2, 3, 7]
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "2 iterations skipped (not finite)" in log
    assert "nan" not in log.split("mIoU")[0], "means of an epoch leave them out"
    model = load_checkpoint(tmp_path / "run" / "checkpoints" / "step-1.pt").model
    assert_finite(model)  # running statistics, too


def test_more_in_a_row_than_tolerated_end_the_run(tiny: Make, quiet: Console, spoil: Any) -> None:
    spoil(2, 4, 5, 6)
    with pytest.raises(PlopError, match="3 iterations in a row were not finite, up to iteration 6"):
        run_scenario(tiny(**ONE_STEP, train__skip_non_finite=2), console=quiet)


def test_tolerance_changes_nothing_where_all_is_finite(tiny: Make, quiet: Console, tmp_path: Path) -> None:
    weights = []
    for tolerance in (0, 5):
        run = tmp_path / f"run-{tolerance}"
        settings = tiny(**(ONE_STEP | {"run": run, "scenario__task": "offline", "train__skip_non_finite": tolerance}))
        run_scenario(settings, console=quiet)
        weights.append(load_checkpoint(run / "checkpoints" / "step-0.pt").model)
    assert_same_tensors(*weights)
