"""The one module that reads and writes checkpoints.

A checkpoint is a dict of tensors and plain values, so that it loads without running any code from the file. It rebuilds
its own network and knows what it has learned: class names, task, protocol and all settings travel with the weights.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import plopcli
from plopcli.errors import DataError
from plopcli.scenarios.tasks import Task
from plopcli.untrusted import read_untrusted

FORMAT = "plop-checkpoint"
VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """A model after a step.

    Args:
        step: The step of the scenario.
        classes: Names of all classes learned so far, in learned order.
        class_counts: Classes per classifier.
        task_name: How the task was asked for.
        task_steps: Label ids of every step of the whole task.
        task_groups: The same, as results are grouped into old and new.
        settings: The run's settings (`RunSettings.model_dump(mode="json")`).
        model: State dict of the network.
        method: State of the method.
        data_fingerprint: Digest of the data set's names, classes and pixel counts.
        made_with: What settings leave open: resolved precision, micro-batch, digest of the backbone's weights.
        version_of_plop: What wrote it.
    """

    step: int
    classes: list[str]
    class_counts: list[int]
    task_name: str
    task_steps: list[list[int]]
    task_groups: list[list[int]]
    settings: dict[str, Any]
    model: Mapping[str, Tensor]
    method: Mapping[str, Any] = field(default_factory=dict)
    data_fingerprint: str = ""
    made_with: Mapping[str, Any] = field(default_factory=dict)
    version_of_plop: str = plopcli.__version__

    @property
    def task(self) -> Task:
        """The task the model is learning."""
        return Task(self.task_name, tuple(map(tuple, self.task_steps)), tuple(map(tuple, self.task_groups)))


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Writes ``checkpoint`` so that ``path`` holds the old or the new content whole, never half of it."""
    content = {"format": FORMAT, "version": VERSION, **_shallow(checkpoint)}
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint onto the CPU, without running code from the file.

    Raises:
        DataError: It is missing, damaged, or something else.
    """
    if not path.is_file():
        raise DataError(f"There is no checkpoint at {path}.", "A run keeps them in RUN/checkpoints/step-N.pt.")
    content = read_untrusted(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DataError(f"{path} is no checkpoint of plop.", "Backbone weights go to --weights.")
    if content.get("version") != VERSION:
        raise DataError(
            f"{path} has checkpoint version {content.get('version')}; this plop reads version {VERSION}.",
            "Use the version of plop that wrote it.",
        )
    missing = [f.name for f in fields(Checkpoint) if f.name not in content]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}.", "The file is damaged or was edited.")
    return Checkpoint(**{f.name: content[f.name] for f in fields(Checkpoint)})


def _shallow(checkpoint: Checkpoint) -> dict[str, Any]:
    return {f.name: getattr(checkpoint, f.name) for f in fields(checkpoint)}
