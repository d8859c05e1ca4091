"""Line charts as SVG. Colours are those of the page's style sheet, so that they fit a light and a dark page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from plopcli.reporting.html.marks import escape, tag, void

_WIDTH, _HEIGHT = 360, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 42, 10, 10, 32
#: Colours in the style sheet.
COLOURS = 8
_LOG_FROM = 30.0
_MARKED = 14
_SHAPES = ("circle", "square", "triangle", "diamond")
_CORNERS = {
    "square": ((-3, -3), (3, -3), (3, 3), (-3, 3)),
    "triangle": ((0, -4), (4, 3), (-4, 3)),
    "diamond": ((0, -4.4), (4.4, 0), (0, 4.4), (-4.4, 0)),
}

_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


class Series(NamedTuple):
    """A line.

    Attributes:
        name: For the legend.
        points: Abscissa and value.
        look: Number of its colour, shape and dashes.
        flat: Drawn as a dashed line over the whole width: it bounds the others.
    """

    name: str
    points: Sequence[tuple[float, float]]
    look: int
    flat: bool = False


class Axis(NamedTuple):
    """The abscissa: its range, the marks on it, where lines divide it, and its name."""

    start: float
    stop: float
    marks: Sequence[tuple[float, str]]
    name: str
    dividers: Sequence[float] = ()


def line_chart(series: Sequence[Series], axis: Axis, *, top: float | None = None, text: str) -> str:
    """A chart with a legend below it.

    Args:
        series: The lines; where none has a point, the chart says so.
        axis: The abscissa.
        top: Upper end of the ordinate, which then starts at 0; None: as the values want it, logarithmic where they span
            more than a factor of 30.
        text: What it shows, for those who cannot see it.
    """
    values = [value for line in series for _, value in line.points]
    if not values:
        return tag("p", "No figures yet.", class_="note")
    scale = _Scale.over(values, top)
    drawn = [_grid(scale, axis)]
    drawn += [_line(line, scale, axis) for line in series]
    drawing = tag("svg", *drawn, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=text, class_="chart")
    return drawing + legend(series)


def legend(series: Iterable[Series]) -> str:
    """Names and looks of lines."""
    entries = []
    for line in series:
        shape = void("line", x1=0, y1=6, x2=22, y2=6, class_=_classes(line)) + _marker(line, 11, 6)
        entries.append(tag("span", tag("svg", shape, viewBox="0 0 22 12", class_="key"), escape(line.name)))
    return tag("p", *entries, class_="legend")


class _Scale(NamedTuple):
    """The ordinate: values to pixels."""

    low: float
    high: float
    logarithmic: bool
    marks: list[float]

    @classmethod
    def over(cls, values: Sequence[float], top: float | None) -> _Scale:
        if top is not None:
            return cls(0.0, top, False, [top * part / 4 for part in range(5)])
        positive = [value for value in values if value > 0]
        if positive and min(values) > 0 and max(positive) > _LOG_FROM * min(positive):
            powers = range(math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive))) + 1)
            return cls(powers[0], powers[-1], True, [10.0**power for power in powers[:: max(1, len(powers) // 5)]])
        low, high = min(0.0, *values), max(0.0, *values)
        step = _round_step((high - low) or 1.0)
        first, last = math.floor(low / step), math.ceil(high / step) or 1
        return cls(first * step, last * step, False, [number * step for number in range(first, last + 1)])

    def place(self, value: float) -> float:
        """Pixels from the top."""
        at = math.log10(max(value, 10.0**self.low)) if self.logarithmic else value
        share = (at - self.low) / ((self.high - self.low) or 1.0)
        return _TOP + (1 - min(1.0, max(0.0, share))) * (_HEIGHT - _TOP - _BOTTOM)


def _round_step(span: float) -> float:
    """A distance between marks that is easy to read: about four of them."""
    power = 10.0 ** math.floor(math.log10(span / 4))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= span / 4.001)


def _written(mark: float) -> str:
    """A number in at most five letters: small ones as powers of ten."""
    text = f"{mark:g}"
    if 0 < mark < 0.01 and math.log10(mark).is_integer():
        return "10" + str(round(math.log10(mark))).translate(_RAISED)
    return text


def _across(at: float, axis: Axis) -> float:
    return _LEFT + (at - axis.start) / ((axis.stop - axis.start) or 1.0) * (_WIDTH - _LEFT - _RIGHT)


def _grid(scale: _Scale, axis: Axis) -> str:
    parts = []
    for mark in scale.marks:
        y = round(scale.place(mark), 1)
        parts.append(void("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y, class_="rule"))
        parts.append(tag("text", escape(_written(mark)), x=_LEFT - 6, y=y + 4, class_="right"))
    bottom = _HEIGHT - _BOTTOM
    for divider in axis.dividers:
        x = round(_across(divider, axis), 1)
        parts.append(void("line", x1=x, x2=x, y1=_TOP, y2=bottom, class_="divider"))
    every = max(1, math.ceil(len(axis.marks) / 12))
    for at, name in axis.marks[::every]:
        parts.append(tag("text", escape(name), x=round(_across(at, axis), 1), y=bottom + 14, class_="middle"))
    parts.append(tag("text", escape(axis.name), x=(_LEFT + _WIDTH - _RIGHT) / 2, y=_HEIGHT - 4, class_="middle faint"))
    return "".join(parts)


def _line(line: Series, scale: _Scale, axis: Axis) -> str:
    if line.flat:
        y = round(scale.place(line.points[0][1]), 1) if line.points else None
        return "" if y is None else void("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y, class_=_classes(line))
    places = [(round(_across(at, axis), 1), round(scale.place(value), 1)) for at, value in line.points]
    path = void("polyline", points=" ".join(f"{x},{y}" for x, y in places), class_=_classes(line))
    marked = len(places) <= _MARKED
    dots = "".join(
        tag("g", tag("title", escape(f"{line.name}: {value:.4g}")), _marker(line, x, y))
        for (x, y), (_, value) in zip(places, line.points, strict=True)
        if marked
    )
    return path + dots


def _classes(line: Series) -> str:
    dashed = line.flat or line.look >= COLOURS
    return f"line c{line.look % COLOURS}" + (" dashed" if dashed else "")


def _marker(line: Series, x: float, y: float) -> str:
    if line.flat:
        return ""
    colour = f"dot c{line.look % COLOURS}"
    shape = _SHAPES[line.look % len(_SHAPES)]
    if shape == "circle":
        return void("circle", cx=x, cy=y, r=3.4, class_=colour)
    corners = " ".join(f"{x + right:.1f},{y + down:.1f}" for right, down in _CORNERS[shape])
    return void("polygon", points=corners, class_=colour)


def over_steps(steps: Sequence[int]) -> Axis:
    """An abscissa of steps."""
    marks = [(float(step), str(step)) for step in steps]
    first, last = (steps[0], steps[-1]) if steps else (0, 0)
    return Axis(first - 0.25, last + 0.25, marks, "step")


def over_training(lengths: Mapping[int, int]) -> Axis:
    """An abscissa of iterations in which every step has the same width: the first often has twenty times as many.

    Args:
        lengths: Iterations by step.
    """
    marks = [(place + 0.5, str(step)) for place, step in enumerate(lengths)]
    return Axis(0.0, float(max(1, len(lengths))), marks, "step", tuple(float(n) for n in range(1, len(lengths))))
