"""`results.json`: the contract with everything that reads results. Keys may be added, never renamed."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plopcli.scenarios.scenario import Scenario
from plopcli.settings.sections import RunSettings


def empty_results(settings: RunSettings, scenario: Scenario) -> dict[str, Any]:
    """Results without a step yet."""
    return {
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
        "steps": [],
        "avg": None,
    }


def with_step(results: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """``results`` with the entry of one step added; entries of that step and later ones are replaced."""
    steps = [step for step in results["steps"] if step["step"] < entry["step"]]
    steps.append(dict(entry))
    alls = [step["miou"]["all"] for step in steps if step["miou"]["all"] is not None]
    # The mean is over all steps from 0 on; part of them would look like a result.
    complete = [step["step"] for step in steps] == list(range(len(alls)))
    return {**results, "steps": steps, "avg": sum(alls) / len(alls) if complete else None}


def write_results(results: Mapping[str, Any], path: Path) -> None:
    """Writes the results as JSON, whole or not at all, and as CSV beside it."""
    temporary = path.with_suffix(".json.part")
    temporary.write_text(json.dumps(results, indent=2) + "\n", "utf-8")
    temporary.replace(path)
    with path.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "all", "old", "new", *results["classes"]])
        for step in results["steps"]:
            miou = step["miou"]
            ious = [step["iou"].get(name) for name in results["classes"]]
            writer.writerow([step["step"], miou["all"], miou["old"], miou["new"], *ious])
