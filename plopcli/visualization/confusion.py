"""A confusion matrix as a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from plopcli.visualization.layout import drawn_text

#: Classes up to which their names, and the shares in the cells, are legible.
_NAMED, _WRITTEN = 40, 25
#: Letters of a name for which there is room.
_USUAL = 20
_WRITTEN_FROM = 0.005


def confusion_picture(counts: npt.NDArray[np.int64], names: Sequence[str]) -> npt.NDArray[np.uint8]:
    """Picture (H, W, 3) of the classes that the pixels of each class were predicted as, in percent.

    ``counts`` (C, C) has the truth in its rows; rows of classes without a pixel stay empty.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    total = counts.sum(axis=1, keepdims=True)
    shares = np.where(total > 0, counts / np.maximum(total, 1), np.nan)
    names = [drawn_text(name) for name in names]
    size = min(max(4.0, 0.36 * len(names) + 1.5), 15.0)
    if len(names) <= _NAMED:
        size += 0.1 * max([0, *(len(name) - _USUAL for name in names)])
    figure = Figure(figsize=(size, size), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    if len(names) <= _NAMED:
        axes.set_xticks(range(len(names)), list(names), rotation=90, parse_math=False)
        axes.set_yticks(range(len(names)), list(names), parse_math=False)
    if len(names) <= _WRITTEN:
        for row, column in zip(*np.nonzero(np.nan_to_num(shares) >= _WRITTEN_FROM), strict=True):
            share = shares[row, column]
            colour = "white" if share > 0.5 else "black"
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=7, color=colour)
    axes.set(xlabel="predicted", ylabel="truth", title="what the pixels of each class were taken for (%)")
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
