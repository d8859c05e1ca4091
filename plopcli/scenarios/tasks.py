"""Tasks: which classes are learned at which step.

A task partitions label ids into steps; the first step holds background (0). The named tasks of the papers stand in
`tasks.json`; ``X-Y`` works on any data set, and users write their own as TOML.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from plopcli.errors import DataError, UsageError, did_you_mean, unknown_name

#: Data sets that share the label ids, and so the named tasks, of another.
SAME_LABELS = {"toy": "voc"}
JOINT_NAMES = ("joint", "offline")


@dataclass(frozen=True)
class Task:
    """A named partition of label ids into steps.

    Args:
        name: How the task was asked for.
        steps: Label ids of each step, in the order in which they are learned; the first begins with background, 0.
        groups: Steps by which results are grouped into old and new; differs from ``steps`` where a method learns
            all of them at once.
    """

    name: str
    steps: tuple[tuple[int, ...], ...]
    groups: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        if not self.groups:
            object.__setattr__(self, "groups", self.steps)

    @property
    def order(self) -> tuple[int, ...]:
        """Every label id, in learned order: position = id that the network uses."""
        return tuple(label for step in self.steps for label in step)

    def seen(self, step: int) -> tuple[int, ...]:
        """Label ids learned up to and including ``step``, in learned order."""
        return tuple(label for learned in self.steps[: step + 1] for label in learned)

    def new(self, step: int) -> tuple[int, ...]:
        """Foreground label ids that ``step`` introduces."""
        return tuple(label for label in self.steps[step] if label != 0)

    def counts(self, step: int) -> tuple[int, ...]:
        """Number of classes per step up to ``step``; the first counts background."""
        return tuple(len(learned) for learned in self.steps[: step + 1])

    def joined(self) -> Task:
        """The same classes in one step, results still grouped as before."""
        return Task(self.name, (self.order,), self.groups)


@cache
def _known() -> dict[str, Any]:
    known: dict[str, Any] = json.loads(resources.files(__package__).joinpath("tasks.json").read_text("utf-8"))
    return known


def named_tasks(dataset: str) -> dict[str, tuple[tuple[int, ...], ...]]:
    """The papers' tasks of a data set by name, aliases included."""
    dataset = SAME_LABELS.get(dataset, dataset)
    known = _known()
    tasks = {name: tuple(tuple(step) for step in steps) for name, steps in known["tasks"].get(dataset, {}).items()}
    aliases = {alias: tasks[name] for alias, name in known["aliases"].get(dataset, {}).items()}
    return tasks | aliases


def resolve_task(name: str, classes: Sequence[str], dataset: str) -> Task:
    """Finds or builds the task called ``name``.

    Args:
        name: A named task, an alias of one, ``X-Y``, ``joint`` or the path of a TOML file.
        classes: Names of the data set's classes, background first.
        dataset: Name of the data set.

    Raises:
        UsageError: No such task, or it does not fit the classes.
        DataError: The TOML file is missing or unreadable.
    """
    if name.endswith(".toml") or "/" in name:
        return _task_from_file(Path(name), classes)
    named = named_tasks(dataset)
    by_lower = {known.lower(): known for known in named}
    if name.lower() in by_lower:
        steps = named[by_lower[name.lower()]]
    elif name.lower() in JOINT_NAMES:
        steps = (tuple(range(len(classes))),)
    elif match := re.fullmatch(r"(\d+)-(\d+)", name):
        steps = _regular_steps(name, int(match[1]), int(match[2]), len(classes) - 1)
    else:
        raise UsageError(
            f"There is no task called '{name}' for data set {dataset}.",
            did_you_mean(name, [*named, "joint"])
            or "`plop tasks` lists the named ones; X-Y and a TOML file with `steps = [[...], ...]` work too.",
        )
    beyond = [label for step in steps for label in step if label >= len(classes)]
    if beyond:
        raise UsageError(
            f"Task '{name}' names label {beyond[0]}, but the data set has labels 0 to {len(classes) - 1}.",
            "Choose a task made for this data set, or write one by class names in a TOML file.",
        )
    return Task(name, steps)


def _regular_steps(name: str, first: int, then: int, foreground: int) -> tuple[tuple[int, ...], ...]:
    if first < 1 or then < 1 or first > foreground:
        raise UsageError(
            f"Task '{name}' does not fit {foreground} foreground classes.",
            f"In X-Y, X (classes first) is 1 to {foreground} and Y (classes in each later step) at least 1.",
        )
    steps = [tuple(range(first + 1))]
    steps += [
        tuple(range(start, min(start + then, foreground + 1))) for start in range(first + 1, foreground + 1, then)
    ]
    return tuple(steps)


def _task_from_file(path: Path, classes: Sequence[str]) -> Task:
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise DataError(
            f"Cannot read the task file {path}: {error.strerror}.",
            'A task file holds `steps = [["person", "cat"], ["horse"]]`.',
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not a TOML file: {error}.", "See the task example in the README.") from error
    steps = content.get("steps")
    if not isinstance(steps, list) or not steps or not all(isinstance(step, list) and step for step in steps):
        raise UsageError(
            f"{path} needs `steps`, a list of non-empty lists of class names or ids.",
            'For example: steps = [["person", "cat"], ["horse"]]',
        )
    if unknown := sorted(set(content) - {"steps"}):
        raise UsageError(f"{path}: unknown key '{unknown[0]}'.", "A task file has one key, `steps`.")
    seen: dict[int, int] = {0: 0}
    partition: list[tuple[int, ...]] = []
    for number, step in enumerate(steps):
        labels = [_label(entry, classes, path) for entry in step]
        for label in labels:
            if label in seen and label != 0:
                raise UsageError(
                    f"{path}: class '{classes[label]}' is in step {seen[label]} and in step {number}.",
                    "Every class is learned once.",
                )
            if label == 0 and number > 0:
                raise UsageError(f"{path}: background is in step {number}.", "Background belongs to step 0.")
            seen[label] = number
        labels = [label for label in labels if label != 0]
        if not labels:
            raise UsageError(f"{path}: step {number} holds no class but background.", "Give it a class.")
        partition.append(((0, *labels)) if number == 0 else tuple(labels))
    return Task(path.stem, tuple(partition))


def _label(entry: object, classes: Sequence[str], path: Path) -> int:
    if isinstance(entry, int) and not isinstance(entry, bool):
        if 0 <= entry < len(classes):
            return entry
        raise UsageError(f"{path}: label {entry} is not in 0 to {len(classes) - 1}.", "Use class names to be sure.")
    by_lower = {name.lower(): position for position, name in enumerate(classes)}
    if isinstance(entry, str):
        if entry.lower() in by_lower:
            return by_lower[entry.lower()]
        error = unknown_name("class", entry, classes)
        raise UsageError(f"{path}: {error.message}", error.hint)
    raise UsageError(f"{path}: {entry!r} is neither a class name nor a label id.")
