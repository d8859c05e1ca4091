"""Heat maps by class: IoU over the steps, forgetting, confusion, pseudo-labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from plopcli.metrics.forgetting import forgetting
from plopcli.runs.confusion import Confusion
from plopcli.runs.diagnosis import Diagnosis
from plopcli.runs.results import StepMatrix

Floats = npt.NDArray[np.float64]

#: Classes up to which a confusion matrix has room for names.
NAMED = 40
_LARGEST = 12


class Cell(NamedTuple):
    """A figure: as text, as colours, and said in full."""

    text: str
    style: str
    title: str


class MapRow(NamedTuple):
    """A row: its name, whether a line divides it from the one before, and a cell (or None) for every column."""

    name: str
    starts: bool
    cells: Sequence[Cell | None]


class HeatMap(NamedTuple):
    """Figures in percent as colours."""

    columns: Sequence[str]
    rows: Sequence[MapRow]


class Bar(NamedTuple):
    """Forgetting of a class: the best IoU before the last step, that after it, and the difference."""

    name: str
    best: float
    last: float
    change: str


def colours(values: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    """Colours (..., 3) of figures from 0 to 100: dark blue to yellow, ever lighter."""
    from matplotlib import colormaps

    shares = np.asarray(values, dtype=np.float64) / 100
    return np.asarray(colormaps["viridis"](shares, bytes=True), dtype=np.uint8)[..., :3]


def style(value: float) -> str:
    """CSS of a cell: its colour, and black or white text, whichever is easier to read on it."""
    return f"background:#{bytes(colours(value)).hex()};color:{'#fff' if value < 55 else '#111'}"


def iou_map(matrix: StepMatrix) -> HeatMap:
    """IoU of every class after every step."""
    return _over_steps(matrix, matrix.names, matrix.steps, matrix.values)


def recovered_map(matrix: StepMatrix, found: Diagnosis) -> HeatMap:
    """Percentage of the hidden pixels of every class that got their class back, in every step."""
    shares = {
        name: [100 * (np.nan if (share := audit.recovered(name)) is None else share) for audit in found.steps]
        for name in matrix.names[1:]
    }
    hidden = {name: row for name, row in shares.items() if not all(map(np.isnan, row))}
    values = np.array(list(hidden.values()), dtype=np.float64).reshape(len(hidden), len(found.steps)).T
    return _over_steps(matrix, list(hidden), [audit.step for audit in found.steps], values)


def _over_steps(matrix: StepMatrix, names: Sequence[str], steps: Sequence[int], values: Floats) -> HeatMap:
    """A row per name and a column per step of ``values`` (steps, names), with lines where a step added names."""
    learned: Mapping[str, int] = dict(zip(matrix.names, matrix.learned.tolist(), strict=True))
    rows = []
    for column, name in enumerate(names):
        cells = [
            None if np.isnan(value) else Cell(f"{value:.0f}", style(value), f"{name}, step {step}: {value:.1f}")
            for step, value in zip(steps, values[:, column].tolist(), strict=True)
        ]
        rows.append(MapRow(name, column > 0 and learned[name] != learned[names[column - 1]], cells))
    return HeatMap([str(step) for step in steps], rows)


def forgetting_bars(matrix: StepMatrix) -> list[Bar]:
    """A bar for every class that could be forgotten."""
    fallen = forgetting(matrix.values, matrix.learned)
    return [
        Bar(name, last + fall, last, f"{0.0 - fall:+.1f}".replace("-", "−"))
        for name, last, fall in zip(matrix.names, matrix.values[-1].tolist(), fallen.tolist(), strict=True)
        if not np.isnan(fall)
    ]


def shares(confusion: Confusion) -> Floats:
    """Predictions (columns) of the pixels of every class (rows), in percent; nan for classes without a pixel."""
    counts = confusion.counts.astype(np.float64)
    totals = counts.sum(axis=1, keepdims=True)
    found: Floats = np.divide(100 * counts, totals, out=np.full_like(counts, np.nan), where=totals > 0)
    return found


def confusion_map(confusion: Confusion) -> HeatMap:
    """The same as a heat map with names; cells without numbers."""
    rows = []
    for truth, values in zip(confusion.classes, shares(confusion).tolist(), strict=True):
        cells = [
            None if np.isnan(value) else Cell("", style(value), f"{truth} taken for {predicted}: {value:.1f} %")
            for predicted, value in zip(confusion.classes, values, strict=True)
        ]
        rows.append(MapRow(truth, False, cells))
    return HeatMap(confusion.classes, rows)


def largest_confusions(confusion: Confusion) -> list[tuple[str, str, float]]:
    """The most frequent confusions: truth, prediction, percent of the pixels of the truth."""
    wrong = np.nan_to_num(shares(confusion))
    np.fill_diagonal(wrong, 0.0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_LARGEST]
    pairs = [divmod(int(place), len(confusion.classes)) for place in order]
    return [
        (confusion.classes[row], confusion.classes[column], float(wrong[row, column]))
        for row, column in pairs
        if wrong[row, column] >= 1
    ]
