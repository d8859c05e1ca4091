"""Whole runs whose steps bring cities: one classifier, no pseudo-labels, figures of every domain."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from running import evaluate_path, run_scenario, run_single_step
from tensors import assert_same_tensors

from plopcli.console.log import RunLog
from plopcli.engine.scenario_run import plan_scenario
from plopcli.errors import DataError, UsageError
from plopcli.evaluation.evaluate import Changes
from plopcli.evaluation.pseudo_label_audit import audit_run
from plopcli.reporting.comparison import figures
from plopcli.reporting.gallery import make_gallery
from plopcli.reporting.run_tables import class_table, step_table
from plopcli.resolution.layers import Resolved
from plopcli.runs.checkpoint import load_checkpoint
from plopcli.runs.folder import RunFolder
from plopcli.visualization.predictions import learned_colours

Make = Callable[..., Resolved]

TASK = 'steps = [["aachen", "bremen"], ["zurich", "frankfurt"]]'


@pytest.fixture
def cities(tiny: Make, city_root: Path, tmp_path: Path) -> Make:
    """`tiny` for Cityscapes, two cities and then two more."""
    task = tmp_path / "cities.toml"
    task.write_text(TASK)

    def make(**changes: object) -> Resolved:
        keys = {"data__dataset": "cityscapes-domain", "data__root": city_root, "scenario__task": task}
        return tiny(**(keys | {"train__batch": "4"} | changes))

    return make


@pytest.mark.parametrize("name", ["lwf-mc", "ilt", "rw", "joint"])
def test_methods_learn_cities_with_one_classifier(cities: Make, tmp_path: Path, quiet: Console, name: str) -> None:
    results = run_scenario(cities(method__name=name), console=quiet)
    steps = 1 if name == "joint" else 2
    assert len(results.steps) == steps
    assert results.protocol == "domain"
    assert results.base_classes is None
    assert results.domains[-1][-2:] == ["zurich", "frankfurt"] or name == "joint"
    last = results.steps[-1]
    assert set(last.domains or {}) == {"aachen", "bremen", "zurich", "frankfurt"}
    assert last.domains
    assert len(last.domains["zurich"].iou or {}) == 19
    assert last.miou.all is not None
    assert last.miou.old is None
    assert last.miou.new is None
    assert last.miou_foreground == last.miou
    checkpoint = load_checkpoint(tmp_path / "run" / "checkpoints" / f"step-{steps - 1}.pt")
    assert checkpoint.class_counts == [19]
    assert len(checkpoint.classes) == 19


def test_figures_of_domains_are_measured_again_and_shown(cities: Make, tmp_path: Path, quiet: Console) -> None:
    results = run_scenario(cities(method__name="ft"), console=quiet)
    first, last = results.steps
    assert first.images == 4
    assert last.images == 8
    assert set(first.domains or {}) == {"aachen", "bremen"}
    again = evaluate_path(tmp_path / "run", quiet)
    assert [step.domains for step in again.steps] == [step.domains for step in results.steps]
    assert again.avg == results.avg

    assert [column.header for column in step_table(results).columns][1] == "domains learned"
    table = class_table(results)
    assert [str(cell) for cell in table.columns[0].cells] == ["aachen", "bremen", "zurich", "frankfurt"]
    assert table.columns[2].header == "mIoU then"
    assert figures(results)[1] is None, "there are no old classes to keep"

    gallery = make_gallery(RunFolder(tmp_path / "run"), Changes(), 4)
    assert {row.name.partition("_")[0] for row in gallery.rows} == {"aachen", "bremen", "zurich", "frankfurt"}
    with pytest.raises(UsageError, match="domains"):
        audit_run(RunFolder(tmp_path / "run"), Changes(), RunLog(quiet))


def test_what_makes_no_sense_is_switched_off_and_told(cities: Make, tmp_path: Path, quiet: Console) -> None:
    results = run_scenario(cities(method__name="plop", output__overlays=2), console=quiet)
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "method.pseudo: off in place of entropy, since all steps have the same classes" in log
    assert "method.init: default in place of balanced" in log
    settings = (tmp_path / "run" / "settings.toml").read_text()
    assert 'pseudo = "off"' in settings
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {"classification", "pod"} == rows[-1]["terms"].keys()
    assert "preparation" not in results.steps[1].content()
    assert list((tmp_path / "run" / "overlays").glob("*.png"))
    colours = learned_colours(load_checkpoint(tmp_path / "run" / "checkpoints" / "step-1.pt"))
    assert colours.shape == (19, 3)
    assert colours[0].tolist() == [128, 64, 128], "road, as Cityscapes paints it"


@pytest.mark.parametrize(
    ("name", "asked", "told"),
    [
        ("ft", {"init": "balanced", "classification": "focal_new"}, ["init: default", "classification: focal in"]),
        ("lwf", {"kd_pixels": "new"}, ["kd_pixels: all"]),
        ("lwf-mc", {"targets": "disjoint", "init": "balanced"}, ["targets: combined", "init: default"]),
        ("ilt", {"kd_pixels": "background"}, ["kd_pixels: all"]),
        ("ewc", {"init": "balanced"}, ["init: default"]),
        ("rw", {"init": "balanced"}, ["init: default"]),
        ("pi", {"init": "balanced"}, ["init: default"]),
        ("mib", {}, ["cross_entropy: plain", "distillation: plain", "init: default"]),
        ("plop", {}, ["pseudo: off", "init: default"]),
        ("joint", {}, []),
    ],
)
def test_the_plan_tells_what_is_switched_off(cities: Make, name: str, asked: dict[str, str], told: list[str]) -> None:
    changes = {f"method__{key}": value for key, value in asked.items()}
    notes = [note for note in plan_scenario(cities(method__name=name, **changes))["notes"] if "method." in note]
    assert len(notes) == len(told)
    for start in told:
        assert [note for note in notes if note.startswith(f"method.{start}")], start


def test_mib_distils_plainly(cities: Make, tmp_path: Path, quiet: Console) -> None:
    run_scenario(cities(method__name="mib"), console=quiet)
    stored = load_checkpoint(tmp_path / "run" / "checkpoints" / "step-1.pt").settings["method"]
    assert (stored["cross_entropy"], stored["distillation"], stored["init"]) == ("plain", "plain", "default")


def test_pod_weighs_by_one_and_starts_at_zero_distance(cities: Make, tmp_path: Path, quiet: Console) -> None:
    """With all norms frozen, the first iteration of step 1 compares two equal models."""
    run_scenario(cities(method__name="plop", train__later__freeze_norm="all", output__print_every="1"), console=quiet)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    pods = [row["terms"]["pod"] for row in rows if row["step"] == 1]
    assert pods[0] < 1e-9
    assert pods[1] > 1000 * pods[0]


def test_a_step_alone_is_the_step_of_a_whole_run(cities: Make, tmp_path: Path, quiet: Console) -> None:
    whole, alone = tmp_path / "whole", tmp_path / "alone"
    run_scenario(cities(method__name="plop", run=whole), console=quiet)
    for step in (0, 1):
        run_single_step(cities(method__name="plop", run=alone), step=step, console=quiet)
    for step in (0, 1):
        one, other = (load_checkpoint(run / "checkpoints" / f"step-{step}.pt").model for run in (whole, alone))
        assert_same_tensors(one, other)


def test_a_checkpoint_of_other_cities_is_refused(cities: Make, tmp_path: Path, quiet: Console) -> None:
    run_single_step(cities(method__name="ft"), step=0, console=quiet)
    other = tmp_path / "other.toml"
    other.write_text('steps = [["aachen", "lindau"], ["zurich"]]')
    with pytest.raises(DataError, match="of another task"):
        run_single_step(
            cities(method__name="ft", scenario__task=other, run=tmp_path / "next"),
            step=1,
            previous=tmp_path / "run" / "checkpoints" / "step-0.pt",
            console=quiet,
        )


def test_the_plan_names_cities_and_knows_the_old_model(cities: Make) -> None:
    plan = plan_scenario(cities(method__name="plop"))
    assert plan["protocol"] == "domain"
    assert [step["domains"] for step in plan["steps"]] == [["aachen", "bremen"], ["zurich", "frankfurt"]]
    joint = plan_scenario(cities(method__name="joint"))
    assert plan["memory_bytes"]["networks"] > joint["memory_bytes"]["networks"]
