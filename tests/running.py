"""Runs as the commands start them, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from plopcli.devices.launch import run_everywhere
from plopcli.engine import scenario_run as engine
from plopcli.evaluation import evaluate
from plopcli.resolution.layers import Resolved
from plopcli.runs.results import Results

#: A network and recipe that train in a second, without the pictures, which would take longer than that.
TINY = {
    "model.backbone": "resnet18",
    "model.pretrained": "false",
    "model.width": "8",
    "model.head_channels": "16",
    "model.output_stride": "8",
    "data.crop": "48",
    "train.batch": "8",
    "train.first.epochs": "1",
    "train.later.epochs": "1",
    "output.print_every": "2",
    "output.overlays": "0",
    "output.tensorboard": "false",
}


def run_scenario(resolved: Resolved, *, console: Console, **choices: Any) -> Results:
    return run_everywhere(
        engine.run_scenario,
        engine.check_run_scenario,
        resolved.settings.compute,
        console,
        resolved=resolved,
        choices=engine.ScenarioChoices(**choices),
    )


def run_single_step(resolved: Resolved, *, console: Console, **choices: Any) -> Results:
    return run_everywhere(
        engine.run_single_step,
        engine.check_single_step,
        resolved.settings.compute,
        console,
        resolved=resolved,
        choices=engine.StepChoices(**choices),
    )


def evaluate_path(path: Path, console: Console, **changes: Any) -> Results:
    changed = evaluate.Changes(**changes)
    return run_everywhere(
        evaluate.evaluate_path,
        evaluate.check_evaluation,
        evaluate.settings_of(path, changed).compute,
        console,
        path=path,
        changes=changed,
    )
