"""Maps of figures by class: IoU over the steps, forgetting, confusion, pseudo-labels."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from plopcli.metrics.forgetting import StepClasses, forgetting
from plopcli.reporting.html import scale
from plopcli.reporting.html.marks import escape, percent, picture, tag, void
from plopcli.runs.confusion import Confusion

#: Classes up to which a confusion matrix has room for names.
_NAMED = 40
_CELL, _NAME = 13, 92
_LARGEST = 12
_BAR, _BAR_LEFT, _BAR_ROW = 170, 104, 17


def heat_map(
    names: Sequence[str], steps: Sequence[int], values: Mapping[tuple[str, int], float], starts: Sequence[str]
) -> str:
    """Figures in percent: a row per class, a column per step, as colours and numbers.

    Args:
        names: Classes in learned order.
        steps: Steps.
        values: By class and step; a cell without one stays empty.
        starts: Classes at which a line divides the rows: the first ones of their steps.
    """
    head = tag("tr", tag("th", ""), *(tag("th", escape(f"{step}"), scope="col") for step in steps))
    rows = []
    for name in names:
        cells = []
        for step in steps:
            value = values.get((name, step))
            if value is None:
                cells.append(tag("td", "", class_="none"))
            else:
                about = f"{name}, step {step}: {value:.1f}"
                cells.append(tag("td", f"{value:.0f}", style=scale.style(value), title=about))
        rows.append(tag("tr", tag("th", escape(name), scope="row"), *cells, class_="start" if name in starts else None))
    return tag("div", tag("table", tag("thead", head), tag("tbody", *rows), class_="heat"), class_="scroll")


def iou_map(matrix: StepClasses) -> str:
    """IoU of every class after every step."""
    values = {
        (name, step): float(matrix.values[row, column])
        for row, step in enumerate(matrix.steps)
        for column, name in enumerate(matrix.names)
        if not np.isnan(matrix.values[row, column])
    }
    return heat_map(matrix.names, matrix.steps, values, first_of_steps(matrix))


def first_of_steps(matrix: StepClasses) -> list[str]:
    """The first class that each later step brought."""
    learned = matrix.learned
    return [name for place, name in enumerate(matrix.names) if place and learned[place] != learned[place - 1]]


def forgetting_bars(matrix: StepClasses) -> str:
    """The best IoU that a class ever had before the last step, pale, and its last one over it; the fall in numbers."""
    fallen = forgetting(matrix.values, matrix.learned)
    shown = [column for column in range(len(matrix.names)) if not np.isnan(fallen[column])]
    if not shown:
        return tag("p", "Nothing could be forgotten yet: no later step is measured.", class_="note")
    parts = []
    for place, column in enumerate(shown):
        name, last, fall = matrix.names[column], float(matrix.values[-1, column]), float(fallen[column])
        y = place * _BAR_ROW
        best = last + fall
        about = f"{name}: {best:.1f} at best, {last:.1f} at the end"
        bars = [
            tag("title", escape(about)),
            tag("text", escape(_short(name)), x=_BAR_LEFT - 6, y=y + 12, class_="right"),
            void("rect", x=_BAR_LEFT, y=y + 3, width=_bar(best), height=11, class_="best"),
            void("rect", x=_BAR_LEFT, y=y + 3, width=_bar(last), height=11, class_="last"),
            tag("text", escape(f"{-fall:+.1f}".replace("-", "−")), x=_BAR_LEFT + _BAR + 50, y=y + 12, class_="right"),
        ]
        parts.append(tag("g", *bars))
    height = len(shown) * _BAR_ROW + 4
    return tag(
        "svg",
        *parts,
        viewBox=f"0 0 {_BAR_LEFT + _BAR + 54} {height}",
        role="img",
        class_="bars",
        aria_label="Forgetting of every class",
    )


def confusion_map(confusion: Confusion) -> str:
    """Where the pixels of every class (row) went (column), in percent of the row; with names where there is room."""
    counts = confusion.counts.astype(np.float64)
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(100 * counts, totals, out=np.zeros_like(counts), where=totals > 0)
    size = len(confusion.classes)
    if size > _NAMED:
        return tag("div", _pixel_map(shares), class_="scroll")
    parts = []
    for place, name in enumerate(confusion.classes):
        middle = _NAME + place * _CELL + _CELL / 2
        parts.append(tag("text", escape(_short(name)), x=_NAME - 5, y=middle + 3.5, class_="right small"))
        turned = f"translate({middle + 3.5},{_NAME - 5}) rotate(-90)"
        parts.append(tag("text", escape(_short(name)), transform=turned, class_="small"))
    for row, truth in enumerate(confusion.classes):
        for column, predicted in enumerate(confusion.classes):
            about = f"{truth} taken for {predicted}: {shares[row, column]:.1f} %"
            cell = {"x": _NAME + column * _CELL, "y": _NAME + row * _CELL, "width": _CELL - 1, "height": _CELL - 1}
            fill = scale.colour(float(shares[row, column])) if totals[row] else None
            parts.append(tag("rect", tag("title", escape(about)), **cell, fill=fill, class_=None if fill else "none"))
    side = _NAME + size * _CELL
    drawing = tag(
        "svg", *parts, viewBox=f"0 0 {side} {side}", role="img", aria_label="Confusion matrix", class_="matrix"
    )
    return tag("div", drawing, class_="scroll")


def largest_confusions(confusion: Confusion) -> list[tuple[str, str, float]]:
    """What is most often taken for something else: truth, prediction, percent of the pixels of the truth."""
    counts = confusion.counts.astype(np.float64)
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(100 * counts, totals, out=np.zeros_like(counts), where=totals > 0)
    np.fill_diagonal(shares, 0.0)
    order = np.argsort(-shares, axis=None, kind="stable")[:_LARGEST]
    pairs = [divmod(int(place), len(confusion.classes)) for place in order]
    return [
        (confusion.classes[row], confusion.classes[column], float(shares[row, column]))
        for row, column in pairs
        if shares[row, column] >= 1
    ]


def colour_key(title: str) -> str:
    """What the colours mean."""
    cells = [tag("span", str(value), style=scale.style(value)) for value in (0, 20, 40, 60, 80, 100)]
    return tag("p", escape(f"{title} "), *cells, class_="scale")


def _pixel_map(shares: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> str:
    rows = [[_rgb(scale.colour(float(value))) for value in row] for row in shares]
    content = io.BytesIO()
    Image.fromarray(np.array(rows, dtype=np.uint8)).save(content, "PNG", optimize=True)
    return picture(content.getvalue(), "png", "Confusion matrix", class_="pixels")


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _bar(value: float) -> float:
    return round(max(0.0, value) / 100 * _BAR, 1)


def _short(name: str) -> str:
    return name if len(name) <= 15 else f"{name[:14]}…"


def share(value: float | None) -> str:
    """A share as percentage; a dash for none."""
    return percent(None if value is None else 100 * value)
