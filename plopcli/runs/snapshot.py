"""Snapshots: the state in the middle of a step, from which training goes on as if it had never stopped.

They lie beside the checkpoints of finished steps, as ``snapshot-STEP-ITERATION.pt``, the last few of them; those of a
step go when its checkpoint is there. Like checkpoints they hold tensors and plain values; damaged ones are refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from plopcli.errors import DamagedFileError, DataError
from plopcli.runs.checkpoint import are_images
from plopcli.runs.environment import versions
from plopcli.runs.folder import RunFolder
from plopcli.runs.verified import read_verified, write_verified

FORMAT = "plop-snapshot"
VERSION = 1


@dataclass(frozen=True)
class Snapshot:
    """A step that is being trained.

    Args:
        step: The step.
        iteration: Iterations that are done: the position inside the epoch follows from it.
        trainer: `Trainer.state_dict`: network, optimizer, schedule, loss scale, and the method with what it prepared.
        statistics: Running statistics of every process in a row (processes, N), where each keeps its own; else None.
        progress: `MetricsLog.state_dict`: sums of the epoch that is under way.
        random: States of torch's random numbers: ``cpu``, and ``cuda`` on a GPU.
        seconds: Spent on training the step so far.
        settings: The run's settings (`RunSettings.model_dump(mode="json")`).
        classes: Names of all classes, in learned order.
        task_steps: Label ids of every step of the task.
        data_fingerprint: Digest of the data set's names, classes and pixel counts.
        images: Split -> name of an image -> its mark; empty in snapshots of earlier versions.
        made_with: What settings leave open, as in checkpoints.
        versions: Of plop, torch and whatever else matters.
    """

    step: int
    iteration: int
    trainer: Mapping[str, Any]
    statistics: Tensor | None
    progress: Mapping[str, Any]
    random: Mapping[str, Tensor]
    seconds: float
    settings: Mapping[str, Any]
    classes: list[str]
    task_steps: list[list[int]]
    data_fingerprint: str
    made_with: Mapping[str, Any]
    images: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=versions)


def snapshot_paths(folder: RunFolder, step: int | None = None) -> list[Path]:
    """The snapshots of ``step``, or of all steps, the newest first."""
    found = []
    for path in folder.path.glob("checkpoints/snapshot-*.pt"):
        match = re.fullmatch(r"snapshot-(\d+)-(\d+)\.pt", path.name)
        if match and step in (None, int(match[1])):
            found.append((int(match[1]), int(match[2]), path))
    return [path for _, _, path in sorted(found, reverse=True)]


def write_snapshot(folder: RunFolder, snapshot: Snapshot, keep: int) -> Path:
    """Writes ``snapshot``; then those of the step beyond the newest ``keep`` go.

    Raises:
        MachineError: The disk is full, or the folder cannot be written. The snapshots before are intact.
    """
    path = folder.path / "checkpoints" / f"snapshot-{snapshot.step}-{snapshot.iteration}.pt"
    content = {f.name: getattr(snapshot, f.name) for f in fields(snapshot)}
    write_verified(path, {"format": FORMAT, "version": VERSION, **content})
    for older in snapshot_paths(folder, snapshot.step)[keep:]:
        older.unlink()
    return path


def read_snapshot(path: Path) -> Snapshot:
    """Reads a snapshot onto the CPU, without running code from the file.

    Raises:
        DamagedFileError: It is not as it was written.
        DataError: It is missing, or of another version.
    """
    content = read_verified(path)
    if content.get("format") != FORMAT:
        raise DamagedFileError(f"{path} is no snapshot of plop.")
    if content.get("version") != VERSION:
        raise DataError(
            f"{path} has snapshot version {content.get('version')}; this plop reads version {VERSION}.",
            "Use the version of plop that wrote it, or remove it: the step then begins anew.",
        )
    content = {"images": {}} | content  # which earlier versions did not write
    faults = [name for name, fits in _FIELDS.items() if name not in content or not fits(content[name])]
    if faults:
        raise DamagedFileError(f"{path} is damaged or was edited: it lacks a sound {', '.join(faults)}.")
    return Snapshot(**{name: content[name] for name in _FIELDS})


class Newest(NamedTuple):
    """The newest snapshot of a step that is whole, None without one, and a line for each newer one that is damaged."""

    path: Path | None
    snapshot: Snapshot | None
    warnings: list[str]


def newest_snapshot(folder: RunFolder, step: int) -> Newest:
    """The newest snapshot of ``step``.

    Raises:
        DataError: One is of another version.
    """
    warnings: list[str] = []
    for path in snapshot_paths(folder, step):
        try:
            return Newest(path, read_snapshot(path), warnings)
        except DamagedFileError as error:
            warnings.append(f"{error.message} It is passed over.")
    if warnings:
        warnings.append(f"No snapshot of step {step} is whole: the step begins anew.")
    return Newest(None, None, warnings)


def drop_snapshots(folder: RunFolder, step: int) -> None:
    """Removes the snapshots of ``step``, which is finished or begins anew."""
    for path in snapshot_paths(folder, step):
        path.unlink(missing_ok=True)


def _named(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(name, str) for name in value)


def _count(value: object) -> bool:
    return type(value) is int and value >= 0


#: What each field has to be: a file can be made to look like a snapshot.
_FIELDS: dict[str, Callable[[Any], bool]] = {
    "step": _count,
    "iteration": _count,
    "trainer": _named,
    "statistics": lambda value: value is None or (isinstance(value, Tensor) and value.dim() == 2),
    "progress": _named,
    "random": lambda value: _named(value) and all(isinstance(state, Tensor) for state in value.values()),
    "seconds": lambda value: isinstance(value, float),
    "settings": _named,
    "classes": lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
    "task_steps": lambda value: isinstance(value, list) and all(isinstance(step, list) for step in value),
    "data_fingerprint": lambda value: isinstance(value, str),
    "images": are_images,
    "made_with": _named,
    "versions": _named,
}
