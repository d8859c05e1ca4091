"""Line charts by matplotlib, as SVG inside the page.

Colours and fonts are those of the page's style sheet, so that charts fit a light and a dark page and print. No text of
a user is drawn: names stand in the legend, which the page's template writes, and in tooltips.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple
from xml.etree import ElementTree

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Colours that matplotlib draws with, and their names in the style sheet.
_INK, _FAINT, _RULE, _CARD = "#1c1e21", "#646a73", "#dfe1e4", "#fefefe"
_SERIES = ("#2259a8", "#c8531c", "#17806d", "#8750b8", "#a57a00", "#bf3268", "#3b86a5", "#6a6f78")
_VARIABLES = {_INK: "ink", _FAINT: "faint", _RULE: "rule", _CARD: "card"} | {
    colour: f"c{number}" for number, colour in enumerate(_SERIES)
}
_MARKERS = {"o": "●", "s": "■", "^": "▲", "D": "◆"}
_LOG_FROM = 30.0
_LARGEST = 1e30
#: Points up to which each is marked, and has a tooltip.
_MARKED = 14
_SVG = "{http://www.w3.org/2000/svg}"
_DROPPED = tuple(f"{_SVG}{name}" for name in ("defs", "metadata", "style"))
_UNUSED = ("id", "clip-path", "{http://www.w3.org/1999/xlink}href")
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


class Series(NamedTuple):
    """A line.

    Attributes:
        name: For the legend.
        points: Abscissa and value.
        look: Number of its colour, marker and dashes.
        flat: Drawn as a dashed line over the whole width: an upper bound.
    """

    name: str
    points: Sequence[tuple[float, float]]
    look: int
    flat: bool = False

    @property
    def colour(self) -> str:
        """As in the style sheet."""
        return f"var(--c{self.look % len(_SERIES)})"

    @property
    def dashed(self) -> bool:
        """Whether its line is."""
        return self.flat or self.look >= len(_SERIES)

    @property
    def marker(self) -> str:
        """Marker of the points, by matplotlib's name."""
        return "" if self.flat else list(_MARKERS)[self.look % len(_MARKERS)]

    @property
    def sign(self) -> str:
        """For the legend: a character that looks like the line."""
        return "╌" if self.flat else _MARKERS[self.marker]


class Axis(NamedTuple):
    """The abscissa: its range, the marks on it, and where lines divide it."""

    start: float
    stop: float
    marks: Sequence[tuple[float, str]]
    dividers: Sequence[float] = ()


class Chart(NamedTuple):
    """A drawing, None without a single point, and the lines in it."""

    drawing: Markup | None
    series: Sequence[Series]


def over_steps(steps: Sequence[int]) -> Axis:
    """An abscissa of steps."""
    first, last = (steps[0], steps[-1]) if steps else (0, 0)
    return Axis(first - 0.25, last + 0.25, [(float(step), str(step)) for step in steps])


def over_training(lengths: Mapping[int, int]) -> Axis:
    """An abscissa of iterations in which every step has the same width: the first often has twenty times as many.

    ``lengths`` are the iterations by step.
    """
    marks = [(place + 0.5, str(step)) for place, step in enumerate(lengths)]
    return Axis(0.0, float(max(1, len(lengths))), marks, tuple(float(n) for n in range(1, len(lengths))))


def line_chart(series: Sequence[Series], axis: Axis, *, top: float | None = None, text: str) -> Chart:
    """Draws lines.

    Args:
        series: The lines.
        axis: The abscissa.
        top: Upper end of the ordinate, which then starts at 0; None: fitted to the values, logarithmic where they span
            more than a factor of 30.
        text: Description for screen readers.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    values = [value for line in series for _, value in line.points if abs(value) < _LARGEST]
    if not values:
        return Chart(None, series)
    file = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "plop", "font.size": 11}):
        figure = Figure(figsize=(5, 2.9))
        FigureCanvasSVG(figure)
        axes = figure.add_axes((0.12, 0.17, 0.855, 0.78))
        figure.patch.set_visible(False)
        axes.patch.set_visible(False)
        _draw_frame(axes, axis)
        _scale(axes, values, top)
        for number, line in enumerate(series):
            _draw(axes, line, f"line-{number}", top)
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return Chart(_inline(file.getvalue(), series, text), series)


def _draw_frame(axes: Axes, axis: Axis) -> None:
    axes.spines[:].set_visible(False)
    axes.tick_params(left=False, bottom=False, pad=5, labelcolor=_INK)
    axes.grid(axis="y", color=_RULE, linewidth=1)
    for divider in axis.dividers:
        axes.axvline(divider, color=_FAINT, linewidth=1, linestyle=(0, (1, 3)))
    marks = axis.marks[:: max(1, math.ceil(len(axis.marks) / 12))]
    axes.set_xticks([at for at, _ in marks], [name for _, name in marks])
    axes.set_xlim(axis.start, axis.stop)
    axes.set_xlabel("step", color=_FAINT)


def _scale(axes: Axes, values: Sequence[float], top: float | None) -> None:
    """The ordinate."""
    if top is not None:
        axes.set_ylim(0, top)
        axes.set_yticks([top * part / 4 for part in range(5)])
    elif min(values) > 0 and max(values) > _LOG_FROM * min(values):
        axes.set_yscale("log")
        powers = range(math.floor(math.log10(min(values))), math.ceil(math.log10(max(values))) + 1)
        axes.set_ylim(10.0 ** powers[0], 10.0 ** powers[-1])
        axes.set_yticks([10.0**power for power in powers[:: max(1, len(powers) // 5)]])
        axes.minorticks_off()
    else:
        low, high = min(0.0, *values), max(0.0, *values)
        axes.set_ylim(low, high if high > low else low + 1)
        axes.locator_params(axis="y", nbins=5)
        ticks = list(axes.get_yticks())
        axes.set_ylim(min(ticks[0], low), max(ticks[-1], high))
    axes.yaxis.set_major_formatter(lambda value, _: _written(value))


def _written(mark: float) -> str:
    """A short form of a number: small powers of ten as such."""
    if 0 < mark < 0.01 and math.isclose(math.log10(mark), round(math.log10(mark))):
        return "10" + str(round(math.log10(mark))).translate(_RAISED)
    return f"{mark:g}"


def _draw(axes: Axes, line: Series, name: str, top: float | None) -> None:
    points = [(at, value) for at, value in line.points if abs(value) < _LARGEST]
    if not points:
        return
    colour = _SERIES[line.look % len(_SERIES)]
    places, values = zip(*points, strict=True)
    if top is not None:
        values = tuple(min(top, max(0.0, value)) for value in values)
    if line.flat:
        axes.axhline(values[0], color=colour, linewidth=1.8, linestyle=(0, (5, 4)), clip_on=False)
        return
    (drawn,) = axes.plot(places, values, color=colour, linewidth=1.8, clip_on=False, gid=name)
    if line.dashed:
        drawn.set_linestyle((0, (5, 4)))
    if len(points) <= _MARKED:
        drawn.set(marker=line.marker, markeredgecolor=_CARD)


def _inline(svg: str, series: Sequence[Series], text: str) -> Markup:
    """Matplotlib's drawing as an element of the page, with the page's colours and fonts, and tooltips."""
    root = ElementTree.fromstring(svg)
    for number, line in enumerate(series):
        group = root.find(f".//*[@id='line-{number}']")
        marks = [] if group is None else group.iter(f"{_SVG}use")
        for mark, (_, value) in zip(marks, line.points, strict=False):
            # Defined once in the page, so that no two drawings define the same.
            mark.set("href", f"#marker-{line.look % len(_MARKERS)}")
            ElementTree.SubElement(mark, "title").text = f"{line.name}: {value:.4g}"
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag in _DROPPED]:
            parent.remove(child)
    for element in root.iter():
        element.tag, element.tail = element.tag.removeprefix(_SVG), None
        element.attrib = {name: _plain(name, value) for name, value in element.items() if name not in _UNUSED}
    root.attrib = {"viewBox": root.get("viewBox", ""), "role": "img", "aria-label": text, "class": "chart"}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _plain(name: str, value: str) -> str:
    """A shorter attribute: coordinates to a hundredth, colours by their names in the style sheet."""
    if name == "style":
        return re.sub("#[0-9a-f]{6}", lambda match: f"var(--{_VARIABLES.get(match[0], 'ink')})", value)
    return _rounded(" ".join(value.split())) if name in ("d", "x", "y", "transform") else value


def _rounded(numbers: str) -> str:
    return re.sub(r"-?\d+\.\d+", lambda match: f"{float(match[0]):.2f}".rstrip("0").rstrip("."), numbers)
