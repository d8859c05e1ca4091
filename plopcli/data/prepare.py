"""`plop prepare`: checks a data set, builds its class index and says what every step of a task would see."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.console import Console

from plopcli.data.datasets import load_dataset
from plopcli.data.index import INDEX_FILE, class_index
from plopcli.runs.folder import RunLog
from plopcli.scenarios.scenario import Scenario
from plopcli.scenarios.tasks import resolve_task
from plopcli.settings.sections import DataSettings


def prepare(
    settings: DataSettings,
    console: Console,
    *,
    task: str | None = None,
    protocol: str = "overlapped",
    ids: bool = False,
) -> dict[str, Any]:
    """Checks every pair of a data set and indexes its classes.

    Args:
        settings: Which data set, where, and its validation share.
        console: Where to show progress.
        task: Also give the images of each step of this task.
        protocol: Under which protocol.
        ids: Names of the images in place of their number.

    Returns:
        ``dataset``, ``root``, ``index``, ``images`` by split, ``classes`` (images and pixels of each), and with a task
        ``steps``: for each its number and its train, val and test images.

    Raises:
        DataError: The data set is missing or has unusable pairs.
    """
    data = load_dataset(settings.dataset, settings.root, settings.path, background=settings.background)
    with RunLog(console).progress("class index", "masks") as bar:
        index = class_index(data, bar.update)
    counts = np.concatenate(list(index.counts.values()))[:, : len(data.classes)]
    answer: dict[str, Any] = {
        "dataset": data.name,
        "root": str(data.root),
        "index": str(data.root / INDEX_FILE),
        "images": {split: len(samples) for split, samples in data.splits.items()},
        "classes": [
            {"name": name, "images": int((counts[:, label] > 0).sum()), "pixels": int(counts[:, label].sum())}
            for label, name in enumerate(data.classes)
        ],
    }
    if task is not None:
        scenario = Scenario(
            data, index, resolve_task(task, data.classes, settings.dataset), protocol, settings.val_fraction
        )
        answer |= {"task": scenario.task.name, "protocol": protocol, "steps": _steps(scenario, ids)}
    return answer


def _steps(scenario: Scenario, ids: bool) -> list[dict[str, Any]]:
    steps = []
    for step in range(scenario.steps):
        splits = {"train": scenario.training(step)}
        for split in ("val", "test"):
            if scenario.has_split(split):
                splits[split] = scenario.evaluation(step, split)
        shown: dict[str, Any] = {"step": step}
        for split in ("train", "val", "test"):
            samples = splits[split].samples if split in splits else ()
            shown[split] = [sample.name for sample in samples] if ids else len(samples)
        steps.append(shown)
    return steps
