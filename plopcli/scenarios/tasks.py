"""Tasks: which classes, or which domains, are learned at which step.

A task partitions label ids into steps; the first step holds background (0). Where a data set has domains it partitions
their ids, without a background. The named tasks of the papers are in `tasks.json`; ``X-Y`` works on any data set, and
users write their own as TOML.
"""

from __future__ import annotations

import json
import os.path
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from plopcli.errors import DataError, UsageError, did_you_mean, unknown_name
from plopcli.files.plain import read_text

Steps = tuple[tuple[int, ...], ...]

#: Data sets that share the label ids, and so the named tasks, of another.
SAME_LABELS = {"toy": "voc"}
JOINT_NAMES = ("joint", "offline")


@dataclass(frozen=True)
class Task:
    """A named partition of label ids, or of domain ids, into steps.

    Args:
        name: Name by which the task was asked for.
        steps: Ids of each step, in the order of learning. Of labels, the first begins with background, 0.
        groups: Steps by which results are grouped into old and new; differs from ``steps`` where a method learns
            all of them at once.
    """

    name: str
    steps: Steps
    groups: Steps = ()

    def __post_init__(self) -> None:
        if not self.groups:
            object.__setattr__(self, "groups", self.steps)

    @property
    def order(self) -> tuple[int, ...]:
        """Every label id, in learned order; the position is the id that the network uses."""
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


def named_tasks(dataset: str) -> dict[str, Steps]:
    """The papers' tasks of a data set by name, aliases included."""
    dataset = SAME_LABELS.get(dataset, dataset)
    known = _known()
    tasks = {name: tuple(tuple(step) for step in steps) for name, steps in known["tasks"].get(dataset, {}).items()}
    aliases = {alias: tasks[name] for alias, name in known["aliases"].get(dataset, {}).items()}
    return tasks | aliases


def resolve_task(
    name: str, units: Sequence[str], dataset: str, *, background: bool = True, order_seed: int | None = None
) -> Task:
    """Finds or builds the task called ``name``.

    Args:
        name: A named task, an alias of one, ``X-Y``, ``joint`` or the path of a TOML file.
        units: Names by id of the data set's classes, background first, or of its domains.
        dataset: Name of the data set.
        background: Whether id 0 is the background, which belongs to step 0 and does not count in ``X-Y``.
        order_seed: Seed by which the classes (background aside) are shuffled before they are split into steps of the
            task's sizes.

    Raises:
        UsageError: No such task, or it does not fit the classes.
        DataError: The TOML file is missing or unreadable.
    """
    steps = _find_steps(name, units, dataset, background)
    name = Path(name).stem if _is_file(name) else name
    if order_seed is None:
        return Task(name, steps)
    return Task(f"{name}-order{order_seed}", _shuffled(steps, order_seed, background))


def _find_steps(name: str, units: Sequence[str], dataset: str, background: bool) -> Steps:
    if _is_file(name):
        path = Path(os.path.expanduser(name))  # noqa: PTH111  # pathlib's raises for unknown users
        return _steps_from_file(path, units, background)
    named = named_tasks(dataset)
    by_lower = {known.lower(): known for known in named}
    if name.lower() in by_lower:
        steps = named[by_lower[name.lower()]]
    elif name.lower() in JOINT_NAMES:
        steps = (tuple(range(len(units))),)
    elif match := re.fullmatch(r"(\d+)-(\d+)", name):
        steps = _regular_steps(name, int(match[1]), int(match[2]), len(units), background)
    else:
        raise UsageError(
            f"There is no task called '{name}' for data set {dataset}.",
            did_you_mean(name, [*named, "joint"])
            or "`plop tasks` lists the named ones; X-Y and a TOML file with `steps = [[...], ...]` work too.",
        )
    beyond = [unit for step in steps for unit in step if unit >= len(units)]
    if beyond:
        raise UsageError(
            f"Task '{name}' names label {beyond[0]}, but the data set has labels 0 to {len(units) - 1}.",
            "Choose a task made for this data set, or write one by class names in a TOML file.",
        )
    return steps


def _is_file(name: str) -> bool:
    return name.endswith(".toml") or "/" in name


def _regular_steps(name: str, first: int, then: int, units: int, background: bool) -> Steps:
    offset = 1 if background else 0
    if first < 1 or then < 1 or first > units - offset:
        raise UsageError(
            f"Task '{name}' does not fit {units - offset} {'foreground classes' if background else 'domains'}.",
            f"In X-Y, X (learned first) is 1 to {units - offset} and Y (learned in each later step) at least 1.",
        )
    start = first + offset
    steps = [tuple(range(start)), *(tuple(range(at, min(at + then, units))) for at in range(start, units, then))]
    return tuple(steps)


def _shuffled(steps: Steps, seed: int, background: bool) -> Steps:
    kept = (0,) if background else ()
    order = [unit for step in steps for unit in step if unit not in kept]
    # The legacy generator, whose numbers no version of NumPy may change.
    shuffled = iter(np.random.RandomState(seed).permutation(order).tolist())
    return tuple(tuple(unit if unit in kept else next(shuffled) for unit in step) for step in steps)


def _steps_from_file(path: Path, units: Sequence[str], background: bool) -> Steps:
    what = "class" if background else "domain"
    partition: list[tuple[int, ...]] = []
    learned: dict[int, int] = {}
    for number, step in enumerate(_listed_steps(path)):
        found = [_unit(entry, units, path, what) for entry in step]
        for unit in found:
            if background and unit == 0:
                if number > 0:
                    raise UsageError(
                        f"{path}: background is in step {number}.",
                        "Background belongs to step 0, and need not be listed.",
                    )
                continue
            if unit in learned:
                again = "twice in" if learned[unit] == number else f"in step {learned[unit]} and in"
                raise UsageError(
                    f"{path}: {what} '{units[unit]}' is {again} step {number}.", "Each is learned once: name it once."
                )
            learned[unit] = number
        found = [unit for unit in found if not (background and unit == 0)]
        if not found:
            raise UsageError(f"{path}: step {number} holds no class but background.", "Give it a class.")
        partition.append((0, *found) if background and number == 0 else tuple(found))
    return tuple(partition)


def _listed_steps(path: Path) -> list[list[object]]:
    """The steps of a task file as they are written."""
    try:
        content = tomllib.loads(read_text(path))
    except OSError as error:
        raise DataError(
            f"Cannot read the task file {path}: {error.strerror}.",
            'A task file holds `steps = [["person", "cat"], ["horse"]]`.',
        ) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{path} is not a TOML file: {error}.", 'It should hold: steps = [["person", "cat"], ["horse"]]'
        ) from error
    steps = content.get("steps")
    if not isinstance(steps, list) or not steps or not all(isinstance(step, list) for step in steps):
        raise UsageError(
            f"{path} needs `steps`, a list of lists of names or ids.",
            'For example: steps = [["person", "cat"], ["horse"]]',
        )
    if [] in steps:
        raise UsageError(f"{path}: step {steps.index([])} is empty.", "Give it a class, or remove it.")
    if unknown := sorted(set(content) - {"steps"}):
        raise UsageError(f"{path}: unknown key '{unknown[0]}'.", "A task file has one key, `steps`.")
    return steps


def _unit(entry: object, units: Sequence[str], path: Path, what: str) -> int:
    if isinstance(entry, int) and not isinstance(entry, bool):
        if 0 <= entry < len(units):
            return entry
        raise UsageError(f"{path}: label {entry} is not in 0 to {len(units) - 1}.", "Use names to be sure.")
    if isinstance(entry, str):
        by_lower = {name.lower(): position for position, name in enumerate(units)}
        if entry.lower() in by_lower:
            return by_lower[entry.lower()]
        error = unknown_name(what, entry, units)
        raise UsageError(f"{path}: {error.message}", error.hint)
    raise UsageError(f"{path}: {entry!r} is neither a {what} name nor an id.")
