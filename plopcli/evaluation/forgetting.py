"""What a run has learned, kept and forgotten over its steps: figures from the IoU of every class after every step.

Pure functions of a matrix (steps, classes) of IoU in percent, nan where a class was not learned yet or does not occur
in the truth. Where steps bring domains, its columns are these, with their mIoU.

Forgetting is that of Chaudhry et al. (ECCV 2018) and backward transfer that of Lopez-Paz and Ranzato (NeurIPS 2017),
with IoU in place of accuracy. The literature knows two conventions for means over classes: with background, which was
learned in step 0 (PLOP), and without (MiB).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from plopcli.evaluation.metrics import Vector, mean

Rows = npt.NDArray[np.int64]


class StepClasses(NamedTuple):
    """IoU of every class after every step.

    Attributes:
        names: Of the columns: classes in learned order, or domains.
        steps: Numbers of the rows.
        values: (steps, classes), in percent; nan where there is none.
        learned: (classes,): the row after which a class was learned.
        background: Whether the first column is background.
    """

    names: list[str]
    steps: list[int]
    values: Vector
    learned: Rows
    background: bool


def step_classes(results: Mapping[str, Any]) -> StepClasses:
    """The matrix of the content of `results.json`."""
    domains = bool(results.get("domains"))
    rows: list[Mapping[str, float | None]] = [
        {name: figures["miou"] for name, figures in step["domains"].items()} if step.get("domains") else step["iou"]
        for step in results["steps"]
    ]
    names = list(dict.fromkeys(name for row in rows for name in row))
    values = np.array([[row.get(name) for name in names] for row in rows], dtype=np.float64).reshape(len(rows), -1)
    learned = np.array([next(n for n, row in enumerate(rows) if name in row) for name in names], dtype=np.int64)
    return StepClasses(names, [step["step"] for step in results["steps"]], values, learned, background=not domains)


def forgetting(values: Vector, learned: Rows) -> Vector:
    """By how much every class has fallen below the best it ever was.

    Args:
        values: (steps, classes), nan where there is no value.
        learned: (classes,): the row after which a class was learned.

    Returns:
        (classes,): the best value at an earlier step minus that after the last; negative where the last is the best;
        nan for classes of the last step, and where a value is missing.
    """
    earlier = np.where(np.isnan(values[:-1]), -np.inf, values[:-1])
    best = earlier.max(axis=0, initial=-np.inf)
    fallen: Vector = np.where(np.isfinite(best) & (learned < len(values) - 1), best - values[-1], np.nan)
    return fallen


def backward_transfer(values: Vector, learned: Rows) -> Vector:
    """What later steps did to every class: its value after the last step minus that right after it was learned.

    Args:
        values: (steps, classes), nan where there is no value.
        learned: (classes,): the row after which a class was learned.

    Returns:
        (classes,): mostly negative; nan for classes of the last step, and where a value is missing.
    """
    then = values[learned, np.arange(values.shape[1])]
    change: Vector = np.where(learned < len(values) - 1, values[-1] - then, np.nan)
    return change


def harmonic(old: float | None, new: float | None) -> float | None:
    """The harmonic mean of the mIoU of old and of new classes, high only where both are; None where either is."""
    if old is None or new is None:
        return None
    return 2 * old * new / (old + new) if old + new else 0.0


def over_steps(results: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a run, from the steps that it has so far.

    They are None where steps are missing before the last one: part of them would look like a result.

    Args:
        results: The content of `results.json`; of it, ``steps`` and ``domains`` are read.

    Returns:
        ``avg``, the mean of "all" over the steps; ``hiou``, of old and new after the last one; both without background
        as ``avg_foreground`` and ``hiou_foreground``. ``forgetting`` and ``backward_transfer`` hold the ``mean`` over
        the classes (or domains) learned before the last step, ``mean_foreground`` without background, and each
        ``by_class`` (or ``by_domain``). IoU in percent, changes in percentage points.
    """
    steps = results["steps"]
    complete = bool(steps) and [step["step"] for step in steps] == list(range(len(steps)))
    figures: dict[str, Any] = {}
    for suffix in ("", "_foreground"):
        means = [step.get(f"miou{suffix}") or {} for step in steps]
        alls = [group["all"] for group in means if group.get("all") is not None]
        figures[f"avg{suffix}"] = sum(alls) / len(alls) if complete and len(alls) == len(steps) else None
        figures[f"hiou{suffix}"] = harmonic(means[-1].get("old"), means[-1].get("new")) if complete else None
    figures["forgetting"] = figures["backward_transfer"] = None
    if complete:
        matrix = step_classes(results)
        for name, measure in (("forgetting", forgetting), ("backward_transfer", backward_transfer)):
            figures[name] = _summarised(measure(matrix.values, matrix.learned), matrix)
    return figures


def _summarised(changes: Vector, matrix: StepClasses) -> dict[str, Any]:
    each = {name: None if np.isnan(value) else float(value) for name, value in zip(matrix.names, changes, strict=True)}
    foreground = changes[1:] if matrix.background else changes
    unit = "by_class" if matrix.background else "by_domain"
    return {"mean": mean(changes), "mean_foreground": mean(foreground), unit: each}
