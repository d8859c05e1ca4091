"""Whole runs of EWF and REMINDER over three steps: what they save, go on from, and share with others."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from running import run_scenario, run_single_step
from torch import Tensor

from plopcli.engine.scenario_run import plan_scenario
from plopcli.errors import DataError, UsageError
from plopcli.resolution.layers import Resolved
from plopcli.runs.checkpoint import Checkpoint, load_checkpoint

Make = Callable[..., Resolved]
METHODS = ("mib-ewf", "plop-ewf", "reminder")


def checkpoint(run: Path, step: int) -> Checkpoint:
    return load_checkpoint(run / "checkpoints" / f"step-{step}.pt")


def equal(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(value, right[name]) for name, value in left.items())


def rows(run: Path, step: int) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in found if row["step"] == step]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def finished(tiny: Make, folders: Path, quiet: Console) -> Callable[[str], Path]:
    """Makes the finished run of a method, once."""

    def make(name: str) -> Path:
        run = folders / name
        if not (run / "results.json").exists():
            run_scenario(tiny(run=run, method__name=name), console=quiet)
        return run

    return make


@pytest.mark.parametrize("name", METHODS)
def test_a_resumed_run_equals_an_undisturbed_one_bitwise(
    finished: Callable[[str], Path], tiny: Make, tmp_path: Path, quiet: Console, name: str
) -> None:
    whole, resumed = finished(name), tmp_path / "resumed"
    shutil.copytree(whole, resumed)
    (resumed / "checkpoints" / "step-2.pt").unlink()
    run_scenario(tiny(run=resumed, method__name=name), resume=True, console=quiet)
    one, other = checkpoint(whole, 2), checkpoint(resumed, 2)
    assert equal(one.model, other.model)
    assert one.method.keys() == other.method.keys()
    for key, value in one.method.items():
        torch.testing.assert_close(other.method[key], value, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", ["mib-ewf", "plop-ewf"])
def test_each_later_step_saves_the_mean_of_its_endpoints(
    finished: Callable[[str], Path], tiny: Make, tmp_path: Path, quiet: Console, name: str
) -> None:
    """Fused by a share of 1, the same step gives the trained endpoint."""
    run, trained = finished(name), tmp_path / "trained"
    previous = run / "checkpoints" / "step-1.pt"
    settings = tiny(run=trained, method__name=name, method__fusion=1)
    run_single_step(settings, step=2, previous=previous, console=quiet)
    old, new, saved = checkpoint(run, 1).model, checkpoint(trained, 2).model, checkpoint(run, 2).model
    share = math.sqrt(1 / 21)
    for key, value in saved.items():
        if key in old and value.is_floating_point():
            torch.testing.assert_close(value, (1 - share) * old[key] + share * new[key])
        else:
            assert torch.equal(value, new[key]), key
    entry = json.loads((run / "results.json").read_text())["steps"][2]
    assert entry["preparation"]["fusion"] == share


def test_old_classifiers_are_frozen_unless_the_user_says_otherwise(
    finished: Callable[[str], Path], tiny: Make, tmp_path: Path, quiet: Console
) -> None:
    previous = finished("plop-ewf") / "checkpoints" / "step-1.pt"
    before = load_checkpoint(previous).model
    frozen, free = tmp_path / "frozen", tmp_path / "free"
    keys = {"method__name": "plop-ewf", "method__fusion": 1}
    run_single_step(tiny(run=frozen, **keys), step=2, previous=previous, console=quiet)
    run_single_step(tiny(run=free, train__later__lr_old=1, **keys), step=2, previous=previous, console=quiet)

    after, moved = checkpoint(frozen, 2).model, checkpoint(free, 2).model
    for key in ("cls.0.weight", "cls.1.weight", "cls.1.bias"):
        assert torch.equal(after[key], before[key])
        assert not torch.equal(moved[key], before[key])
    # The background's bias alone has changed, when it was shared out among the new classes.
    assert after["cls.0.bias"][0].item() == pytest.approx(before["cls.0.bias"][0].item() - math.log(2))
    assert torch.equal(after["cls.0.bias"][1:], before["cls.0.bias"][1:])

    told = (frozen / "log.txt").read_text()
    assert "preset method/plop-ewf: train.later.lr_old = 0.0 is part of it; Xiao et al., CVPR 2023" in told
    assert "train.later.lr_old: preset method/plop-ewf says 0.0, --set says 1" in (free / "log.txt").read_text()


def test_step_0_is_shared_with_other_methods_by_ewf_but_not_by_reminder(
    finished: Callable[[str], Path], tiny: Make, tmp_path: Path, quiet: Console
) -> None:
    run = finished("plop-ewf")
    assert equal(checkpoint(run, 0).model, checkpoint(finished("mib-ewf"), 0).model)
    assert equal(checkpoint(run, 0).model, checkpoint(finished("reminder"), 0).model)
    for name, other in (("reminder", "plop-ewf"), ("ft", "reminder")):
        refused = tiny(run=tmp_path / "refused", method__name=name)
        with pytest.raises(UsageError, match="prototypes"):
            run_scenario(refused, init_from=finished(other), console=quiet)
    lacking = tiny(run=tmp_path / "lacking", method__name="reminder")
    with pytest.raises(DataError, match="no prototypes of the 19 classes"):
        run_single_step(lacking, step=1, previous=run / "checkpoints" / "step-0.pt", console=quiet)


def test_reminder_carries_its_prototypes_from_step_to_step(
    finished: Callable[[str], Path], tiny: Make, tmp_path: Path, quiet: Console
) -> None:
    run = finished("reminder")
    states = [checkpoint(run, step).method for step in range(3)]
    for step, state in enumerate(states):
        assert state["prototypes"].shape == (19 + step, 16)
        assert state["prototype_pixels"].shape == (19 + step,)
        if step:
            assert torch.equal(state["prototypes"][: 18 + step], states[step - 1]["prototypes"])
    assert states[0]["prototypes"].any(1).all()
    assert {row["terms"].keys() >= {"similarity_distillation"} for row in rows(run, 1)} == {True}
    assert any(row["terms"]["similarity_distillation"] > 0 for row in rows(run, 1))
    entry = json.loads((run / "results.json").read_text())["steps"][2]
    assert len(entry["preparation"]["prototype_pixels"]) == 21

    shared = tmp_path / "shared"
    settings = tiny(run=shared, method__name="reminder", method__similarity_delta=1)
    run_scenario(settings, init_from=run, console=quiet)
    assert equal(checkpoint(shared, 0).method, checkpoint(run, 0).method)
    assert not equal(checkpoint(shared, 1).model, checkpoint(run, 1).model)


def test_reminder_without_its_term_trains_as_plop_does_bitwise(
    finished: Callable[[str], Path], tiny: Make, tmp_path: Path, quiet: Console
) -> None:
    plain, previous = tmp_path / "plop", finished("plop-ewf") / "checkpoints" / "step-0.pt"
    off = tmp_path / "off"
    run_single_step(tiny(run=plain, method__name="plop"), step=1, previous=previous, console=quiet)
    settings = tiny(run=off, method__name="reminder", method__similarity_factor=0)
    run_single_step(settings, step=1, previous=previous, console=quiet)
    assert equal(checkpoint(plain, 1).model, checkpoint(off, 1).model)


@pytest.mark.parametrize("name", [pytest.param("mib-ewf", marks=pytest.mark.slow), "reminder"])
def test_where_steps_bring_cities_the_methods_keep_to_what_makes_sense(
    tiny: Make, city_root: Path, tmp_path: Path, quiet: Console, name: str
) -> None:
    task = tmp_path / "cities.toml"
    task.write_text('steps = [["aachen", "bremen"], ["zurich", "frankfurt"]]')
    keys = {"data__dataset": "cityscapes-domain", "data__root": city_root, "scenario__task": task, "train__batch": 4}
    run_scenario(tiny(method__name=name, **keys), console=quiet)
    log, last = (tmp_path / "run" / "log.txt").read_text(), rows(tmp_path / "run", 1)[-1]
    if name == "reminder":
        assert "method.similarity_factor: 0.0 in place of 0.5, since all steps have the same classes" in log
        assert last["terms"].keys() == {"classification", "pod"}
    else:
        assert "method.distillation: plain in place of unbiased" in log
        results = json.loads((tmp_path / "run" / "results.json").read_text())
        assert results.steps[1].content()["preparation"]["fusion"] == 1


@pytest.mark.slow
def test_two_processes_measure_the_same_prototypes(tiny: Make, tmp_path: Path, quiet: Console) -> None:
    # Weights that hardly move: training would make a difference of the last bits.
    still = {"method__name": "reminder", "train__first__lr": 1e-9, "compute__gpus": 0}
    runs = {count: tmp_path / f"on-{count}" for count in (1, 2)}
    for count, run in runs.items():
        run_single_step(tiny(run=run, compute__processes=count, **still), step=0, console=quiet)
    one, two = (checkpoint(run, 0).method for run in runs.values())
    assert torch.equal(one["prototype_pixels"], two["prototype_pixels"])
    torch.testing.assert_close(one["prototypes"], two["prototypes"], rtol=1e-3, atol=1e-4)


def test_memory_of_reminder_is_estimated_with_what_its_term_keeps(tiny: Make) -> None:
    memory = [plan_scenario(tiny(method__name=name))["memory_bytes"]["total"] for name in ("plop", "reminder")]
    assert memory[0] < memory[1]
