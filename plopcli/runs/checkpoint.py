"""The one module that reads and writes checkpoints.

A checkpoint is a dict of tensors and plain values, so that it loads without running any code from the file. It rebuilds
its own network and knows what it has learned: class names, task, protocol and all settings travel with the weights. A
damaged one is refused (`runs/verified.py`); its SHA-256 lies beside it as ``step-N.pt.sha256``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import Tensor

import plopcli
from plopcli.errors import DamagedFileError, DataError, RefusedFileError
from plopcli.files.digest import digest_path, digest_renewed
from plopcli.files.disk import writing
from plopcli.runs.original import found_original, looks_original
from plopcli.runs.verified import read_verified, write_verified
from plopcli.scenarios.tasks import Task

FORMAT = "plop-checkpoint"
#: The content of all versions is the same, but for a digest that version 2 holds.
VERSION = 3
_READ = (1, 2, VERSION)


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
        network: The network's form (`Segmenter.form`): that of the run's settings, or what its method made of it; empty
            in checkpoints of earlier versions.
        data_fingerprint: Digest of the data set's names, classes and pixel counts.
        images: Split -> name of an image -> its mark (`plopcli.data.checking`), as they were; empty in checkpoints of
            earlier versions.
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
    network: Mapping[str, Any] = field(default_factory=dict)
    data_fingerprint: str = ""
    images: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    made_with: Mapping[str, Any] = field(default_factory=dict)
    version_of_plop: str = plopcli.__version__

    @property
    def task(self) -> Task:
        """The task the model is learning."""
        return Task(self.task_name, tuple(map(tuple, self.task_steps)), tuple(map(tuple, self.task_groups)))


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Writes ``checkpoint`` so that ``path`` holds the old or the new content whole, never half of it.

    Raises:
        MachineError: The disk is full, or the folder cannot be written; what was there before is intact.
    """
    content = {f.name: getattr(checkpoint, f.name) for f in fields(checkpoint)}
    with writing(path), digest_renewed(path):
        write_verified(path, {"format": FORMAT, "version": VERSION, **content})


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint onto the CPU, without running code from the file.

    Raises:
        DamagedFileError: It is not as it was written.
        DataError: It is missing, or something else.
    """
    if not path.is_file():
        raise DataError(f"There is no checkpoint at {path}.", "A run keeps them in RUN/checkpoints/step-N.pt.")
    try:
        content = read_verified(path)
    except RefusedFileError:
        raise
    except DamagedFileError as error:
        raise DamagedFileError(error.message, _remedy(path)) from error
    if looks_original(content):
        raise found_original(path, content)
    if content.get("format") != FORMAT:
        raise DataError(f"{path} is no checkpoint of plop.", "Backbone weights go to --weights.")
    version = content.get("version")
    if type(version) is not int or version not in _READ:
        raise DataError(
            f"{path} has checkpoint version {version!s:.40}; this plop reads versions 1 to {VERSION}.",
            "Use the version of plop that wrote it.",
        )
    content = {"network": {}, "images": {}} | dict(content)  # which earlier versions did not write
    faults = [name for name, fits in _FIELDS.items() if name not in content or not fits(content[name])]
    if faults or sum(content["class_counts"]) != len(content["classes"]):
        what = ", ".join(faults) or "class_counts"
        raise DamagedFileError(f"{path} is damaged or was edited: it lacks a sound {what}.", _remedy(path))
    return Checkpoint(**{name: content[name] for name in _FIELDS})


def _remedy(path: Path) -> str:
    beside = digest_path(path)
    replaced = f" If you have put another file there yourself, remove {beside.name}." if beside.exists() else ""
    if path.parent.name != "checkpoints":  # of no run: the user's own file, or a stranger's
        return f"Take a copy of it, if there is one; a download that stopped half-way has to be repeated.{replaced}"
    return (
        f"Put back a copy of it, if there is one. Else remove {path.name} and those of later steps, and train these "
        f"steps again: plop run-scenario --run RUN --resume, with the settings of RUN/settings.toml.{replaced}"
    )


def _texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _numbers(value: object, least: int = 0) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= least for item in value)


def _steps(value: object) -> bool:
    return isinstance(value, list) and value != [] and all(_numbers(item) for item in value)


def _named(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(name, str) for name in value)


def are_images(value: object) -> bool:
    """Whether ``value`` can be the images of a checkpoint."""
    return isinstance(value, dict) and all(
        isinstance(split, str) and _named(names) and all(type(mark) is int for mark in names.values())
        for split, names in value.items()
    )


#: What each field of a checkpoint has to be: a file can be made to look like one.
_FIELDS: dict[str, Callable[[Any], bool]] = {
    "step": lambda value: type(value) is int and value >= 0,
    "classes": _texts,
    "class_counts": lambda value: _numbers(value, 1) and value != [],
    "task_name": lambda value: isinstance(value, str),
    "task_steps": _steps,
    "task_groups": _steps,
    "settings": _named,
    "model": lambda value: _named(value) and all(isinstance(item, Tensor) for item in value.values()),
    "method": _named,
    "network": _named,
    "data_fingerprint": lambda value: isinstance(value, str),
    "images": are_images,
    "made_with": _named,
    "version_of_plop": lambda value: isinstance(value, str),
}
