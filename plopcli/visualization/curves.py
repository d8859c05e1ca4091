"""Curves of a run as PNG files: loss terms, mIoU over the steps, IoU of every class, several runs side by side.

``matplotlib`` is imported inside the functions, and its ``pyplot`` never: a figure belongs to the call that draws it,
needs no display and leaves no state behind.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from plopcli.files.atomic import write_atomic
from plopcli.visualization.layout import drawn_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

    from plopcli.runs.results import Results, StepResults

Points = tuple[NDArray[np.float64], NDArray[np.float64]]

_DPI = 110
# Colour, marker and its size: "all" comes last and is small, since it often lies on one of the others.
_MEASURES = {"old": ("#1f77b4", "s", 8), "new": ("#ff7f0e", "^", 8), "all": ("#222222", "o", 4)}
_CURVES_HEIGHT = 2.8
_MARKERS = "os^DvP*X"
_LOG_FROM = 30.0


def plot_training(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Plots loss terms and learning rate over the iterations of all steps, as one PNG.

    All steps get the same width, since the first often has twenty times the iterations of a later one. The vertical
    axis is logarithmic where the terms span more than a factor of 30. Where a row appears twice (a step that was
    interrupted and resumed) the later one counts; rows without ``terms`` are ignored.

    Args:
        rows: Lines of the metrics log: ``step``, ``iteration`` (from 0 in each step), ``terms`` (name to value)
            and ``lr``.
        path: The PNG file to write.
    """
    logged = dict(sorted({(row["step"], row["iteration"]): row for row in rows if row.get("terms")}.items()))
    last_iteration = dict(logged.keys())  # of the pairs (step, iteration) of a step, the last stays
    lengths = {step: last + 1 for step, last in last_iteration.items()}
    names = list(dict.fromkeys(name for row in logged.values() for name in row["terms"]))

    figure = _figure(11, 6)
    losses, rates = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    for place, (step, length) in enumerate(lengths.items()):
        of_step = {place + (at + 0.5) / length: row for (of, at), row in logged.items() if of == step}
        for number, name in enumerate(names):
            _draw_term(losses, _finite({x: row["terms"].get(name) for x, row in of_step.items()}), f"C{number % 10}")
        _draw_curve(rates, _finite({x: row.get("lr") for x, row in of_step.items()}), "#555555")
        for panel in (losses, rates):
            panel.axvline(place + 1, color="#999999", linestyle=":", linewidth=1)
    _log_where_wide(losses)
    losses.set_ylabel("loss terms")
    rates.set(ylabel="learning rate", ylim=(0, None))
    if lengths:
        rates.set_xlim(0, len(lengths))
    roomy = len(lengths) <= 12
    labels = [f"step {step}\n{length} it." if roomy else str(step) for step, length in lengths.items()]
    rates.set_xticks([place + 0.5 for place in range(len(lengths))], labels)
    if names:
        handles = [losses.plot([], [], color=f"C{number % 10}")[0] for number in range(len(names))]
        shown, columns = list(map(drawn_text, names)), min(len(names), 6)
        _as_they_are(figure.legend(handles, shown, loc="outside upper center", ncols=columns, frameon=False))
    else:
        losses.set_title("no iteration was logged")
    _save(figure, path)


def plot_miou(results: Results, path: Path) -> None:
    """Plots mIoU of all, old and new classes after each step, and below it the IoU of each class, as one PNG.

    Cells are grey where a class is not learned yet or does not occur in the truth. One step (joint training) is enough.
    """
    steps, classes = results.steps, results.classes
    shown = [drawn_text(name) for name in classes]
    cell = 0.42 if len(classes) <= 30 else 0.24 if len(classes) <= 60 else 0.125
    map_height = max(0.5, 0.28 * len(steps))
    names_height = 0.08 * max(map(len, shown))
    figure = _figure(max(8.0, 2.2 + cell * len(classes)), _CURVES_HEIGHT + map_height + names_height + 1.8)
    curves, heat = figure.subplots(2, 1, height_ratios=(_CURVES_HEIGHT, map_height))

    lines = []
    for measure, (colour, marker, size) in _MEASURES.items():
        values = [_number(getattr(step.miou, measure)) for step in steps]
        if not all(map(math.isnan, values)):
            label = f"{measure} ({_percent(values[-1])} at the end)"
            lines += curves.plot(range(len(steps)), values, color=colour, marker=marker, markersize=size, label=label)
    _over_steps(curves, steps)
    curves.set_ylabel("mIoU (%)")
    curves.legend(handles=lines, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
    figure.suptitle(f"{drawn_text(results.title)}: mIoU avg {_percent(_number(results.avg))}", parse_math=False)

    iou = np.array([[_number(step.iou.get(name)) for name in classes] for step in steps])
    _draw_heat_map(figure, heat, iou, [str(step.step) for step in steps], shown, numbers=cell > 0.4)
    _save(figure, path)


def plot_comparison(runs: Sequence[tuple[str, Results]], path: Path) -> None:
    """Plots mIoU of all and of old classes over the steps of several labelled runs, as one PNG.

    A run with a single step (joint training) beside longer ones is a dashed line: an upper bound.
    """
    longest = max((results.steps for _, results in runs), key=len)
    figure = _figure(12, 5)
    panels: Sequence[Axes] = figure.subplots(1, 2, sharey=True)
    for panel, measure in zip(panels, ("all", "old"), strict=True):
        for number, (_, results) in enumerate(runs):
            values = [_number(getattr(step.miou, measure)) for step in results.steps]
            colour, marker = f"C{number % 10}", _MARKERS[number % len(_MARKERS)]
            if len(values) == 1 and len(longest) > 1:
                panel.axhline(values[0], linestyle="--", color=colour)
            else:
                panel.plot(range(len(values)), values, marker=marker, color=colour)
        _over_steps(panel, longest)
        panel.set_title(f"{measure} classes")
    panels[0].set_ylabel("mIoU (%)")
    labels = [drawn_text(label) for label, _ in runs]
    columns = max(1, min(len(runs), 130 // (8 + max(map(len, labels)))))
    _as_they_are(figure.legend(panels[0].lines, labels, loc="outside lower center", ncols=columns, frameon=False))
    _save(figure, path)


def _as_they_are(legend: Legend) -> None:
    """Shows the names of a legend as they are: a dollar sign begins no formula."""
    for text in legend.get_texts():
        text.set_parse_math(False)


def _figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, on the Agg canvas."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> None:
    write_atomic(path, lambda file: figure.savefig(file, dpi=_DPI, format="png"), durable=False)


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1f}"


def _finite(values: Mapping[float, float | None]) -> Points:
    """Abscissae and values of the entries that are finite numbers."""
    kept = {x: _number(value) for x, value in values.items() if math.isfinite(_number(value))}
    return np.array(list(kept), dtype=np.float64), np.array(list(kept.values()), dtype=np.float64)


def _draw_term(axes: Axes, points: Points, colour: str) -> None:
    """One loss term in one step: its running mean, over the pale raw values where those are many."""
    abscissae, values = points
    reach = len(values) // 20
    if reach:
        axes.plot(abscissae, values, color=colour, alpha=0.25, linewidth=0.8)
        values = np.array([values[max(0, at - reach) : at + reach + 1].mean() for at in range(len(values))])
    _draw_curve(axes, (abscissae, values), colour)


def _draw_curve(axes: Axes, points: Points, colour: str) -> None:
    """A line, or a dot where there is only one point."""
    axes.plot(*points, color=colour, marker="." if len(points[0]) == 1 else "")


def _log_where_wide(axes: Axes) -> None:
    drawn = np.concatenate([np.asarray(line.get_ydata(), dtype=np.float64) for line in axes.lines] or [np.zeros(0)])
    positive = drawn[drawn > 0]
    if positive.size and positive.max() > _LOG_FROM * positive.min():
        axes.set_yscale("log", nonpositive="mask")


def _over_steps(axes: Axes, steps: Sequence[StepResults]) -> None:
    """The axes of mIoU, from 0 %, over steps."""
    top = max(1.0, 1.05 * axes.get_ylim()[1])  # room for the marker of the highest value
    axes.set(xlabel="step", ylim=(0, top), xlim=(-0.3, len(steps) - 0.7))
    axes.set_xticks(range(len(steps)), [str(step.step) for step in steps])
    axes.grid(alpha=0.3)


def _draw_heat_map(
    figure: Figure, axes: Axes, iou: NDArray[np.float64], steps: Sequence[str], classes: Sequence[str], numbers: bool
) -> None:
    """IoU (steps, classes) in percent as colours and, where there is room, as numbers."""
    from matplotlib import colormaps

    colours = colormaps["viridis"].with_extremes(bad="#d9d9d9")
    image = axes.imshow(np.ma.masked_invalid(iou), cmap=colours, vmin=0, vmax=100, aspect="auto", interpolation="none")
    size = 9 if len(classes) <= 60 else 7
    axes.set_xticks(range(len(classes)), classes, rotation=90, fontsize=size, parse_math=False)
    axes.set_yticks(range(len(steps)), steps)
    axes.set_ylabel("step")
    axes.set_title("IoU of each class; grey: not learned yet or without a pixel in the truth", fontsize=9)
    figure.colorbar(image, ax=axes, label="IoU (%)", pad=0.01)
    if numbers:
        for (row, column), value in np.ndenumerate(iou):
            if not math.isnan(value):
                shade = "white" if value < 60 else "black"
                axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=8, color=shade)
