"""Where a prediction and its ground truth differ, and how."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plopcli.data.palettes import VOID, Palette


class Kind(IntEnum):
    """What a pixel of an error map shows; `VOID` where the truth is void.

    Old classes are those of the first step, background included, new ones those of later steps, as in the tables. A
    model that forgets predicts new classes, or background, where old ones are.
    """

    RIGHT = 0
    """The prediction is the truth."""
    WRONG_OLD = 1
    """Another class than the truth, and an old one; where classes are neither old nor new, any other class."""
    WRONG_NEW = 2
    """Another class than the truth, and a new one."""
    MISSED = 3
    """Background, where the truth is a class."""


ERROR_PALETTE: Palette = np.array([[214, 232, 214], [230, 150, 0], [190, 0, 110], [30, 60, 160]], dtype=np.uint8)
"""Colours of the kinds, by their numbers; they differ in lightness, too."""


def error_map(
    truth: NDArray[np.integer[Any]],
    prediction: NDArray[np.integer[Any]],
    base: int | None,
    *,
    background: bool = True,
) -> NDArray[np.uint8]:
    """The `Kind` (H, W) of every pixel, 255 where the truth is void.

    Args:
        truth: Label map (H, W), 255 for void.
        prediction: Label map (H, W).
        base: Number of old classes, background included; None: classes are neither old nor new.
        background: Whether label 0 is background; else nothing counts as missed.
    """
    assert truth.shape == prediction.shape, f"truth {truth.shape} and prediction {prediction.shape} differ in size"
    old = np.ones_like(truth, dtype=np.bool_) if base is None else prediction < base
    kinds = np.where(old, Kind.WRONG_OLD, Kind.WRONG_NEW).astype(np.uint8)
    if background:
        kinds[prediction == 0] = Kind.MISSED
    kinds[prediction == truth] = Kind.RIGHT
    kinds[truth == VOID] = VOID
    return kinds


def error_names(base: int | None) -> dict[int, str]:
    """Names of the kinds for a legend."""
    wrong = "wrong: another class" if base is None else "wrong: drawn as an old class"
    return {
        Kind.RIGHT: "right",
        Kind.WRONG_OLD: wrong,
        Kind.WRONG_NEW: "wrong: drawn as a new class",
        Kind.MISSED: "missed: drawn as background",
        VOID: "void: not counted",
    }


def share_right(kinds: NDArray[np.uint8]) -> float | None:
    """Share of right pixels among those that count; None without any."""
    counted = np.count_nonzero(kinds != VOID)
    return np.count_nonzero(kinds == Kind.RIGHT) / counted if counted else None
