"""What TensorBoard is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import EXPERIMENT_TAG, SESSION_START_INFO_TAG

from plopcli.reporting.events import EventWriter

METRICS: dict[str, Any] = {
    "miou": {"all": 50.0, "old": 60.0, "new": None},
    "miou_foreground": {"all": 40.0, "old": 45.0, "new": None},
    "iou": {"background": 90.0, "cat": 10.0, "owl": None},
    "overall_accuracy": 80.0,
    "mean_accuracy": 55.0,
    "frequency_weighted_iou": 70.0,
}
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


def filled(folder: Path) -> EventWriter:
    events = EventWriter(folder)
    for step in range(2):
        events.iterations(rows(step, 4), {"body": 1.0, "classifier": 10.0})
        events.pace(step, 3, {"time/iteration (s)": 0.25, "memory/peak (GiB)": 1.5})
        events.step(step, METRICS)
        results = {"avg": 50.0, "hiou": None, "forgetting": {"mean": 7.0}, "backward_transfer": None}
        events.over_steps(step, results)
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
    assert values["step-1/terms/pod"] == [(at, 1.0) for at in range(4)]
    assert values["step-1/lr/classifier"] == [(at, 1.0) for at in range(4)]
    assert values["step-1/lr/body"] == values["step-1/lr"] == [(at, 0.1) for at in range(4)]
    assert values["step-0/time/iteration (s)"] == [(3, 0.25)]
    assert values["step-0/memory/peak (GiB)"] == [(3, 1.5)]
    assert values["miou/old"] == [(0, 60.0), (1, 60.0)]
    assert values["miou without background/old"] == [(0, 45.0), (1, 45.0)]
    assert values["iou/cat"] == [(0, 10.0), (1, 10.0)]
    assert values["accuracy/overall_accuracy"] == [(0, 80.0), (1, 80.0)]
    assert values["over steps/forgetting"] == [(0, 7.0), (1, 7.0)]
    assert not {"miou/new", "iou/owl", "over steps/hiou"} & set(values)


def test_pictures_and_hyper_parameters_lie_in_the_run_itself(tmp_path: Path) -> None:
    filled(tmp_path).close()
    assert [path.name.startswith("events.out.tfevents") for path in tmp_path.rglob("*")] == [True]
    found = read(tmp_path)
    assert [(picture.step, picture.width, picture.height) for picture in found.Images("confusion")] == [
        (0, 8, 6),
        (1, 8, 6),
    ]
    told = found.SummaryMetadata(SESSION_START_INFO_TAG).plugin_data
    assert told.plugin_name == "hparams"
    for name in (b"train.later.lr", b"seed", b"data.ratio"):
        assert name in told.content
    assert b"gpus" not in told.content
    assert b"miou/all" in found.SummaryMetadata(EXPERIMENT_TAG).plugin_data.content


def test_going_on_shows_nothing_twice(tmp_path: Path) -> None:
    events = filled(tmp_path)
    events.rewind(lambda step, at: (step, at) < (1, 2), lambda step, epoch: step < 1, lambda step: step < 1)
    events.iterations(rows(1, 4)[2:], {})
    events.pace(1, 3, {"time/iteration (s)": 0.5})
    events.step(1, METRICS)
    events.picture("confusion", np.zeros((6, 8, 3), dtype=np.uint8), 1)
    events.finish(SETTINGS)
    events.close()
    found = read(tmp_path)
    assert [event.step for event in found.Scalars("step-1/loss")] == [0, 1, 2, 3]
    assert [event.value for event in found.Scalars("step-1/time/iteration (s)")] == [0.5]
    assert [event.step for event in found.Images("confusion")] == [0, 1]
    assert [event.step for event in found.Scalars("miou/all")] == [0, 1]
    content = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert content.count(SESSION_START_INFO_TAG.encode()) == 1


def test_without_a_folder_nothing_is_written(tmp_path: Path) -> None:
    events = EventWriter(None)
    events.iterations(rows(0, 1), {})
    events.pace(0, 0, {"time/iteration (s)": 1.0})
    events.step(0, METRICS)
    events.finish(SETTINGS)
    events.close()
    assert not events.is_on
    assert list(tmp_path.iterdir()) == []
