"""Folders of runs as they are left behind, without training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plopcli.resolution.layers import resolve_settings, settings_to_toml

CLASSES = ("background", "cat", "dog", "owl")


def written_results(
    method: str = "plop",
    seed: int = 0,
    last: Sequence[float | None] = (80.0, 65.0, 12.0, 24.0),
    steps: int = 3,
    **head: Any,
) -> dict[str, Any]:
    """Results of task 1-1 with classes cat, dog and owl; ``last`` is the IoU of every class after the last step."""
    first = [90.0, 60.0, 40.0, 30.0]
    entries = []
    for step in range(steps):
        share = step / max(1, steps - 1)
        seen = len(CLASSES) if steps == 1 else step + 2
        iou = [
            None if end is None else start + share * (end - start)
            for start, end in zip(first[:seen], last[:seen], strict=True)
        ]
        miou = {"all": _mean(iou), "old": _mean(iou[:2]), "new": _mean(iou[2:])}
        foreground = {"all": _mean(iou[1:]), "old": _mean(iou[1:2]), "new": _mean(iou[2:])}
        entries.append(
            {
                "step": step,
                "checkpoint": f"checkpoints/step-{step}.pt",
                "iou": dict(zip(CLASSES, iou, strict=False)),
                "miou": miou,
                "miou_foreground": foreground,
            }
        )
    alls = [entry["miou"]["all"] for entry in entries]
    return {
        "dataset": "toy",
        "task": "1-1",
        "protocol": "overlapped",
        "method": method,
        "seed": seed,
        "split": "test",
        "evaluation": "crop",
        "classes": list(CLASSES),
        "base_classes": 2,
        "domains": None,
        "steps": entries,
        "avg": _mean(alls),
        **head,
    }


def write_run(path: Path, results: Mapping[str, Any], *assignments: str) -> Path:
    """A run folder with these results and the settings of their method and seed, changed by KEY=VALUE."""
    path.mkdir(parents=True)
    (path / "results.json").write_text(json.dumps(results))
    keys = [f"method.name={results['method']}", "data.dataset=toy", *assignments]
    resolved = resolve_settings({"seed": results["seed"], "run": path}, assignments=keys, environment={})
    (path / "settings.toml").write_text(settings_to_toml(resolved.settings))
    return path


def _mean(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None
