"""What a run says about itself while it goes on."""

from __future__ import annotations

import re
import time

import pytest
from rich.console import Console

from plopcli.console.log import RunLog
from plopcli.engine.eta import StepWork, TimeLeft
from plopcli.engine.status import Status
from plopcli.runs.results import Results

ROW = {"iteration": 19, "loss": 1.2344, "terms": {"classification": 0.9124, "pod": 0.322}, "lr": 0.00123}


@pytest.fixture
def view(quiet: Console, monkeypatch: pytest.MonkeyPatch) -> tuple[Status, RunLog]:
    monkeypatch.setattr(time, "time", lambda: 1_000_000.0)
    log = RunLog(quiet)
    return Status(log, "plop on toy 15-1", TimeLeft([StepWork(100, 24)] + 2 * [StepWork(20, 24)], 8)), log


def entry(step: int, value: float | None, **more: float) -> dict[str, object]:
    return {"step": step, "iou": {}, "miou": {"all": value, "old": value, "new": None}, **more}


def results(*entries: dict[str, object]) -> Results:
    header = {"dataset": "toy", "task": "15-1", "protocol": "overlapped", "method": "plop", "seed": 0, "classes": []}
    return Results.model_validate({**header, "steps": list(entries), "avg": None})


def test_place_losses_figures_and_time_left(view: tuple[Status, RunLog]) -> None:
    shown, log = view
    shown.measured(results(entry(0, 65.12)))
    shown.begin(1, ["bus", "owl"])
    assert log.around.heading.endswith("bus, owl")
    assert shown.left == ""
    shown.time_left.measured(24, 12.0)
    shown.trained(ROW, 10, 20.0, "2 of 3")
    assert "epoch 2 of 3" in log.around.heading
    losses, figures, until = log.around.details
    assert re.findall(r"[\d.]+", losses) == ["1.234", "0.912", "0.322", "0.00123"]
    assert figures.endswith(" 65.1")
    # 20 more iterations of 2 s, and two times 24 images of half a second
    assert until.startswith("1 min 4 s left")
    assert "1 min 4 s left" in log.around.brief
    shown.measured(results(entry(0, 65.12), entry(1, None)))
    assert log.around.details[1].endswith(" 65.1, –")


def test_steps_that_were_trained_before_tell_their_time(view: tuple[Status, RunLog]) -> None:
    shown, _ = view
    taken = (entry(0, 65.0, train_seconds=200.0), entry(1, 60.0, train_seconds=10.0), entry(7, 1.0))
    shown.takes_up(results(*taken))
    shown.time_left.measured(1, 0.0)
    assert shown.time_left.left(2, 0) == pytest.approx(10)
    assert shown.time_left.left(0, 0) == pytest.approx(200 + 20)
