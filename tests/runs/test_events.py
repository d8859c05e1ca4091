"""What TensorBoard is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import EXPERIMENT_TAG, SESSION_START_INFO_TAG

from plopcli.runs.events import EventWriter
from plopcli.runs.results import Results, StepResults

FIGURES: dict[str, Any] = {
    "miou": {"all": 50.0, "old": 60.0, "new": None},
    "miou_foreground": {"all": 40.0, "old": 45.0, "new": None},
    "iou": {"background": 90.0, "cat": 10.0, "owl": None},
    "overall_accuracy": 80.0,
    "mean_accuracy": 55.0,
    "frequency_weighted_iou": 70.0,
}
#: Iterations of every step.
LENGTHS = (4, 4)
SETTINGS = {
    "seed": 42,
    "compute": {"gpus": 3},
    "train": {"batch": 8, "later": {"lr": 0.1}},
    "data": {"ratio": [0.75, 1.33], "path": None},
}


def read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0}).Reload()


def rows(step: int, count: int) -> list[dict[str, Any]]:
    return [
        {"step": step, "iteration": at, "lr": 0.1, "loss": 3.0, "terms": {"pod": 1.0}, "diagnostics": {"kept": 0.5}}
        for at in range(count)
    ]


def measured(step: int, miou: float = 50.0) -> StepResults:
    return StepResults.model_validate({"step": step, **FIGURES, "miou": {"all": miou, "old": 60.0, "new": None}})


def results(steps: int) -> Results:
    header = {"dataset": "toy", "task": "2-1", "protocol": "overlapped", "method": "ft", "seed": 0, "classes": ["cat"]}
    more = {"forgetting": {"mean": 7.0, "mean_foreground": None}, "backward_transfer": None}
    found = Results.model_validate({**header, "steps": [], "avg": 50.0, **more})
    return found.model_copy(update={"steps": [measured(step) for step in range(steps)]})


def filled(folder: Path) -> EventWriter:
    events = EventWriter(folder, LENGTHS)
    for step in range(2):
        events.iterations(rows(step, 4), {"body": 1.0, "classifier": 10.0})
        events.pace(step, 3, {"time/iteration (s)": 0.25, "memory/peak (GiB)": 1.5})
        events.validation(step, 2, 33.0)
        events.step(measured(step))
        events.over_steps(results(step + 1))
        events.picture("confusion", np.full((6, 8, 3), 200, dtype=np.uint8), step)
    events.finish(SETTINGS)
    events.flush()
    return events


def test_scalars_by_group(tmp_path: Path) -> None:
    filled(tmp_path).close()
    read_back = read(tmp_path)
    values = {
        tag: [(event.step, round(event.value, 5)) for event in read_back.Scalars(tag)]
        for tag in read_back.Tags()["scalars"]
    }
    iterations = [0, 1, 2, 3, 5, 6, 7, 8]  # the measurement after a step counts as one, too
    assert values["terms/pod"] == [(at, 1.0) for at in iterations]
    assert values["lr/classifier"] == [(at, 1.0) for at in iterations]
    assert values["lr/body"] == values["lr"] == [(at, 0.1) for at in iterations]
    assert values["time/iteration (s)"] == [(3, 0.25), (8, 0.25)]
    assert values["memory/peak (GiB)"] == [(3, 1.5), (8, 1.5)]
    assert values["val/miou"] == [(2, 33.0), (7, 33.0)]
    assert values["miou/old"] == [(4, 60.0), (9, 60.0)]
    assert values["miou without background/old"] == [(4, 45.0), (9, 45.0)]
    assert values["iou/cat"] == [(4, 10.0), (9, 10.0)]
    assert values["accuracy/overall_accuracy"] == [(4, 80.0), (9, 80.0)]
    assert values["over steps/forgetting"] == [(4, 7.0), (9, 7.0)]
    assert not {"miou/new", "iou/owl", "over steps/hiou"} & set(values)


def test_pictures_and_hyper_parameters_lie_in_the_run_itself(tmp_path: Path) -> None:
    filled(tmp_path).close()
    assert [path.name.startswith("events.out.tfevents") for path in tmp_path.rglob("*")] == [True]
    found = read(tmp_path)
    assert [(picture.step, picture.width, picture.height) for picture in found.Images("confusion")] == [
        (4, 8, 6),
        (9, 8, 6),
    ]
    told = found.SummaryMetadata(SESSION_START_INFO_TAG).plugin_data
    assert told.plugin_name == "hparams"
    for name in (b"train.later.lr", b"seed", b"data.ratio"):
        assert name in told.content
    for name in (b"gpus", b"data.path"):
        assert name not in told.content
    assert b"miou/all" in found.SummaryMetadata(EXPERIMENT_TAG).plugin_data.content


def shown(found: EventAccumulator, tag: str) -> list[int]:
    return [event.step for event in found.Scalars(tag)]


@pytest.mark.parametrize("cut", [0, 7])
def test_going_on_shows_nothing_twice(tmp_path: Path, cut: int) -> None:
    """Within step 1; also where a stop has cut the last record off."""
    filled(tmp_path).close()
    (left,) = tmp_path.iterdir()
    left.write_bytes(left.read_bytes()[: -cut or None])
    before = left.read_bytes()
    events = EventWriter(tmp_path, LENGTHS)
    events.resume(1, 2, measured=1)
    events.iterations(rows(1, 4)[2:], {})
    events.pace(1, 3, {"time/iteration (s)": 0.5})
    events.validation(1, 2, 34.0)
    events.step(measured(1))
    events.picture("confusion", np.zeros((6, 8, 3), dtype=np.uint8), 1)
    events.finish(SETTINGS)
    events.close()
    assert left.read_bytes() == before
    found = read(tmp_path)
    assert shown(found, "loss") == [0, 1, 2, 3, 5, 6, 7, 8]
    assert [event.value for event in found.Scalars("time/iteration (s)")] == [0.25, 0.5]
    assert [event.value for event in found.Scalars("val/miou")] == [33.0, 34.0]
    assert [event.step for event in found.Images("confusion")] == [4, 9]
    assert shown(found, "miou/all") == [4, 9]
    assert shown(found, "over steps/avg") == [4], "told when the results are written"


@pytest.mark.parametrize(("measured_steps", "values"), [(1, [50.0]), (0, [51.0])])
def test_between_steps_the_figures_stay_or_are_told_again(
    tmp_path: Path, measured_steps: int, values: list[float]
) -> None:
    filled(tmp_path).close()
    events = EventWriter(tmp_path, LENGTHS)
    events.resume(1, 0, measured=measured_steps)
    if not measured_steps:
        events.step(measured(0, miou=51.0))
    events.iterations(rows(1, 1), {})
    events.close()
    found = read(tmp_path)
    assert shown(found, "loss") == [0, 1, 2, 3, 5], "the iterations of step 0 are there"
    assert [event.value for event in found.Scalars("miou/all")] == values


def test_going_on_with_a_finished_run_keeps_its_events(tmp_path: Path) -> None:
    filled(tmp_path).close()
    events = EventWriter(tmp_path, LENGTHS)
    events.resume(2, 0, measured=2)
    events.finish(SETTINGS)
    events.close()
    assert shown(read(tmp_path), "miou/all") == [4, 9]


def test_without_a_folder_nothing_is_written(tmp_path: Path) -> None:
    events = EventWriter(None)
    events.iterations(rows(0, 1), {})
    events.pace(0, 0, {"time/iteration (s)": 1.0})
    events.step(measured(0))
    events.finish(SETTINGS)
    events.close()
    assert not events.is_on
    assert list(tmp_path.iterdir()) == []


def test_a_picture_may_have_a_name_that_is_no_utf_8(tmp_path: Path) -> None:
    events = EventWriter(tmp_path, LENGTHS)
    events.picture("predictions/a\udcff", np.zeros((2, 2, 3), dtype=np.uint8), 0)
    events.close()
    assert read(tmp_path).Tags()["images"] == [r"predictions/a\udcff"]
