"""Settings of `compute` change how a run is computed, not what."""

from __future__ import annotations

import json
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from running import run_scenario
from tensors import assert_same_tensors

from plopcli.errors import MachineError, UsageError
from plopcli.resolution.layers import Resolved
from plopcli.runs.checkpoint import load_checkpoint

Make = Callable[..., Resolved]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compute")


@pytest.fixture
def make(tiny: Make) -> Make:
    def with_two_steps(**changes: Any) -> Resolved:
        defaults = {
            "scenario__task": "19-1",
            "method__name": "plop",
        }
        return tiny(**(defaults | changes))

    return with_two_steps


@pytest.fixture
def plain(make: Make, folder: Path, quiet: Console) -> Path:
    run = folder / "plain"
    if not run.exists():
        run_scenario(make(run=run), console=quiet)
    return run


def _weights(run: Path) -> dict[str, torch.Tensor]:
    return dict(load_checkpoint(run / "checkpoints" / "step-1.pt").model)


def _losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def _counted(monkeypatch: pytest.MonkeyPatch, target: str) -> list[str]:
    """Counts calls of a function of the networks, which goes on to work."""
    calls: list[str] = []
    module, _, name = target.rpartition(".")
    function = pkgutil.resolve_name(target)

    def counting(*arguments: Any, **named: Any) -> Any:
        calls.append(name)
        return function(*arguments, **named)

    monkeypatch.setattr(pkgutil.resolve_name(module), name, counting)
    return calls


def test_activation_checkpointing_changes_no_bit(
    plain: Path, make: Make, folder: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = _counted(monkeypatch, "plopcli.models.encoder.checkpointed")
    run_scenario(make(run=folder / "checkpointing", compute__checkpointing=True), console=quiet)
    assert len(calls) > 8, "blocks were not checkpointed"
    assert_same_tensors(_weights(folder / "checkpointing"), _weights(plain))


def test_deterministic_runs_are_equal_to_the_bit(make: Make, folder: Path, quiet: Console) -> None:
    for name in ("a", "b"):
        run_scenario(make(run=folder / name, compute__deterministic=True), console=quiet)
        assert torch.are_deterministic_algorithms_enabled()
    assert_same_tensors(_weights(folder / "a"), _weights(folder / "b"))
    assert _losses(folder / "a") == _losses(folder / "b")


def test_norms_in_place_compute_the_same(
    plain: Path, make: Make, folder: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = _counted(monkeypatch, "plopcli.models.batch_norm.InPlaceBatchNorm.apply")
    run_scenario(make(run=folder / "in-place", compute__in_place_norm=True), console=quiet)
    assert len(calls) > 8, "norms did not work in place"
    assert _losses(folder / "in-place")[:2] == pytest.approx(_losses(plain)[:2], rel=1e-3)


def test_the_memory_layout_does_not_matter(plain: Path, make: Make, folder: Path, quiet: Console) -> None:
    run_scenario(make(run=folder / "contiguous", compute__channels_last=False), console=quiet)
    assert not torch.are_deterministic_algorithms_enabled(), "left over from an earlier run"
    assert _losses(folder / "contiguous")[:2] == pytest.approx(_losses(plain)[:2], rel=1e-3)


@pytest.mark.filterwarnings("ignore")  # of torch's own, while it traces
def test_a_traced_run_computes_the_same(plain: Path, make: Make, folder: Path, quiet: Console) -> None:
    run_scenario(make(run=folder / "traced", compute__compile="aot_eager"), console=quiet)
    assert _losses(folder / "traced")[:2] == pytest.approx(_losses(plain)[:2], rel=1e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_run_computes_the_same(plain: Path, make: Make, folder: Path, quiet: Console) -> None:
    run_scenario(make(run=folder / "compiled", compute__compile="inductor"), console=quiet)
    assert _losses(folder / "compiled")[:3] == pytest.approx(_losses(plain)[:3], rel=1e-2)


@pytest.mark.filterwarnings("ignore")
def test_a_compiler_that_fails_is_named(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "/nowhere/c++"))
    monkeypatch.setattr("torch._inductor.config.fx_graph_cache", False)
    torch.compiler.reset()
    with (tmp_path / "said").open("w") as file, pytest.raises(MachineError, match="No working C"):
        run_scenario(
            make(run=tmp_path / "run", compute__compile="inductor", compute__in_place_norm=True),
            console=Console(file=file, width=200),
        )
    torch.compiler.reset()
    assert "compute.in_place_norm: no effect" in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_step_of_a_long_scenario_is_compiled(
    make: Make, tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch._dynamo.config.fail_on_recompile_limit_hit", True)
    torch.compiler.reset()
    run_scenario(
        make(run=tmp_path / "run", scenario__task="15-1", train__batch=4, compute__compile="aot_eager"), console=quiet
    )
    assert (tmp_path / "run" / "checkpoints" / "step-5.pt").exists()


def test_a_resumed_run_says_what_is_computed_otherwise(make: Make, tmp_path: Path, quiet: Console) -> None:
    run = tmp_path / "run"
    run_scenario(make(run=run), console=quiet)
    (run / "checkpoints" / "step-1.pt").unlink()
    run_scenario(make(run=run, compute__precision="bf16"), resume=True, console=quiet)
    assert "step 0 was trained with precision float32, this goes on with bf16" in (run / "log.txt").read_text()
    stamp = json.loads((run / "environment.json").read_text())
    assert (stamp["precision"], [earlier["precision"] for earlier in stamp["earlier"]]) == ("bf16", ["float32"])


def test_one_image_at_a_time_is_refused_before_anything_is_written(make: Make, tmp_path: Path, quiet: Console) -> None:
    with pytest.raises(UsageError, match="one image at a time"):
        run_scenario(make(run=tmp_path / "run", compute__micro_batch=1), console=quiet)
    assert not (tmp_path / "run").exists()


def test_bf16_is_close(plain: Path, make: Make, folder: Path, quiet: Console) -> None:
    run_scenario(make(run=folder / "bf16", compute__precision="bf16"), console=quiet)
    losses = _losses(folder / "bf16")
    assert losses[0] == pytest.approx(_losses(plain)[0], rel=0.02)
    assert losses != _losses(plain)


def test_a_profile_is_written_for_every_step(make: Make, folder: Path, quiet: Console) -> None:
    run = folder / "profiled"
    run_scenario(make(run=run, output__profile=1, train__first__epochs=2, train__later__epochs=4), console=quiet)
    for step in (0, 1):
        trace = json.loads((run / "profile" / f"step-{step}-process-0.json").read_text())
        assert any("convolution" in event.get("name", "") for event in trace["traceEvents"])
        assert "Self CPU" in (run / "profile" / f"step-{step}-process-0.txt").read_text()


def test_norms_that_cannot_be_inverted_are_refused_before_anything_is_written(
    make: Make, tmp_path: Path, quiet: Console
) -> None:
    with pytest.raises(UsageError, match="Norms can save memory only"):
        run_scenario(make(run=tmp_path / "run", model__norm="bn", compute__in_place_norm=True), console=quiet)
    assert not (tmp_path / "run").exists()
