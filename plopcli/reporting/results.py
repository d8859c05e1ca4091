"""`results.json`: the contract with everything that reads results. Keys may be added, never renamed."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plopcli.errors import UsageError
from plopcli.evaluation.forgetting import over_steps
from plopcli.files.atomic import write_atomic

if TYPE_CHECKING:
    from plopcli.scenarios.scenario import Scenario
    from plopcli.settings.sections import RunSettings

_GROUPS = ("all", "old", "new")
_MEANS = ("overall_accuracy", "mean_accuracy", "frequency_weighted_iou")


def empty_results(settings: RunSettings, scenario: Scenario) -> dict[str, Any]:
    """Results without a step yet."""
    header = {
        "dataset": settings.data.dataset,
        "task": scenario.task.name,
        "protocol": scenario.protocol,
        "method": settings.method.name,
        "seed": settings.seed,
        "split": settings.data.results_on,
        "evaluation": settings.data.evaluation,
        "classes": scenario.class_names,
        "base_classes": scenario.base_classes,
        "domains": [scenario.learned(step) for step in range(scenario.steps)] if scenario.shares_classes else None,
    }
    return with_steps(header, [])


def with_step(results: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """``results`` with the entry of one step added; entries of that step and later ones are replaced."""
    steps = [step for step in results["steps"] if step["step"] < entry["step"]]
    return with_steps(results, [*steps, dict(entry)])


def with_steps(results: Mapping[str, Any], steps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """``results`` with these steps in place of its own, and what follows from them (`over_steps`)."""
    known = {**results, "steps": list(steps)}
    return known | over_steps(known)


def write_results(results: Mapping[str, Any], path: Path) -> None:
    """Writes the results as JSON, and as CSV beside it, each whole or not at all."""
    write_atomic(path, json.dumps(results, indent=2) + "\n")
    write_csv(results, path.with_suffix(".csv"))


def write_csv(results: Mapping[str, Any], path: Path) -> None:
    """Writes one line per step: mIoU and IoU of every class; then mIoU without background, accuracies, in percent."""
    text = io.StringIO()
    writer = csv.writer(text)
    names = results["classes"]
    foreground = [f"{group}_foreground" for group in _GROUPS]
    accuracies = [f"accuracy {name}" for name in names]
    writer.writerow(["step", *_GROUPS, *names, *foreground, *_MEANS, *accuracies])
    for step in results["steps"]:
        groups, without = step["miou"], step.get("miou_foreground") or {}
        accuracy = step.get("accuracy") or {}
        writer.writerow(
            [
                step["step"],
                *(groups[group] for group in _GROUPS),
                *(step["iou"].get(name) for name in names),
                *(without.get(group) for group in _GROUPS),
                *(step.get(name) for name in _MEANS),
                *(accuracy.get(name) for name in names),
            ]
        )
    write_atomic(path, text.getvalue())


def check_csv(path: Path) -> None:
    """Refuses a file that `write_csv` could not write, before anything is measured.

    Raises:
        UsageError: It is a folder, or its folder is missing or cannot be written.
    """
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UsageError(f"{path} cannot be written.", "Give a file in a folder that is there.")


def how_measured(results: Mapping[str, Any]) -> str:
    """What of which images the figures are measured on, for people; others are not comparable."""
    kind = {"crop": "central crops", "full": "whole images"}.get(str(results.get("evaluation")), "images")
    augmentation = results.get("augmentation")
    looks = f", {augmentation['described']}" if augmentation else ""
    return f"{kind} of split {results.get('split', 'test')}{looks}"
