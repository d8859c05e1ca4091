"""The picture of `python -m benchmarks scaling --plot`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.report import Figures, processor

_COLOURS = {"plop": "#0b61a4", "ft": "#d9730d"}
_NAMES = {"plop": "PLOP", "ft": "FT"}


def draw(figures: Figures, path: Path) -> None:
    """Costs over classes, their ratio, and costs over steps."""
    figure = Figure(figsize=(13, 4.6), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    over_classes, over, over_steps = figure.subplots(1, 3)
    classes, steps = figures["classes"], figures["steps"]

    _costs(over_classes, classes, "classes")
    sizes = [point["classes"] for point in classes]
    anchor = 1000 * classes[-1]["seconds"]["plop, losses"] / sizes[-1]
    over_classes.plot(sizes, [anchor * size for size in sizes], color="0.6", linestyle=":", label="proportional")
    over_classes.set(xscale="log", yscale="log", title="Cost over classes", xlabel="classes in all")

    ratio = [point["plop_over_ft"] for point in classes]
    bars = [[r["median"] - r["min"] for r in ratio], [r["max"] - r["median"] for r in ratio]]
    over.errorbar(sizes, [r["median"] for r in ratio], yerr=bars, marker="o", capsize=3, color=_COLOURS["plop"])
    over.set(xscale="log", title="A PLOP iteration over one of FT", xlabel="classes in all", ylabel="ratio of times")
    over.set_ylim(bottom=0)

    _costs(over_steps, steps, "steps")
    over_steps.set(title=f"Cost over steps, {steps[0]['classes']} classes", xlabel="steps (classifiers)")
    over_steps.set_ylim(bottom=0)

    for axes in (over_classes, over):
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
        # 101 and 151 stand too close to each other to be written side by side.
        axes.tick_params(axis="x", labelrotation=45)
    over_steps.set_xticks([point["steps"] for point in steps])
    for axes in (over_classes, over, over_steps):
        axes.grid(alpha=0.3)
    over_classes.legend(fontsize=8)
    first = classes[0]
    figure.supxlabel(
        f"ResNet-18 of width 16, output stride 16, {first['images']} images of {first['crop']} pixels, float32; "
        f"{_machine(figures['threads'])}; torch {torch.__version__}",
        fontsize=8,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _costs(axes: Axes, points: Sequence[dict[str, Any]], size: str) -> None:
    sizes = [point[size] for point in points]
    for method in ("plop", "ft"):
        for name, style, what in ((method, "-", "iteration"), (f"{method}, losses", "--", "losses alone")):
            values = [1000 * point["seconds"][name] for point in points]
            axes.plot(sizes, values, style, marker="o", color=_COLOURS[method], label=f"{_NAMES[method]}, {what}")
    axes.set_ylabel("milliseconds")


def _machine(threads: int) -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    return f"{processor() or 'CPU'}, {threads} threads"
