"""Measures of forgetting over the steps of a run.

Pure functions of a matrix (steps, classes) of IoU in percent, nan where a class was not learned yet or does not occur
in the truth. Where steps bring domains, its columns are these, with their mIoU.

Forgetting is that of Chaudhry et al. (ECCV 2018) and backward transfer that of Lopez-Paz and Ranzato (NeurIPS 2017),
with IoU in place of accuracy.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from plopcli.metrics.segmentation import Vector

Rows = npt.NDArray[np.int64]


def forgetting(values: Vector, learned: Rows) -> Vector:
    """Best value of every class at an earlier step minus that after the last step.

    Args:
        values: (steps, classes), nan where there is no value.
        learned: (classes,): the row after which a class was learned.

    Returns:
        (classes,); negative where the last is the best; nan for classes of the last step, and where a value is missing.
    """
    earlier = np.where(np.isnan(values[:-1]), -np.inf, values[:-1])
    best = earlier.max(axis=0, initial=-np.inf)
    fallen: Vector = np.where(np.isfinite(best) & (learned < len(values) - 1), best - values[-1], np.nan)
    return fallen


def backward_transfer(values: Vector, learned: Rows) -> Vector:
    """Value of every class after the last step minus that right after it was learned.

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
    """Harmonic mean of the mIoU of old and of new classes; None where either is None."""
    if old is None or new is None:
        return None
    return 2 * old * new / (old + new) if old + new else 0.0
