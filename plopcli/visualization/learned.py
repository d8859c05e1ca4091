"""Colours of what has been learned."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from plopcli.data.colours import class_palette
from plopcli.data.datasets import DATASETS, DatasetSpec
from plopcli.runs.checkpoint import Checkpoint
from plopcli.visualization.palette import Palette, class_colours


def data_set_of(checkpoint: Checkpoint) -> DatasetSpec | None:
    """The data set that a checkpoint has learned from, where it is one of the registry."""
    return DATASETS.get(checkpoint.settings["data"]["dataset"])


def learned_colours(checkpoint: Checkpoint) -> Palette:
    """Colours of the classes of a checkpoint in learned order: `colours_in_order`."""
    dataset = str(checkpoint.settings["data"]["dataset"])
    return colours_in_order(dataset, checkpoint.task.order, len(checkpoint.classes))


def colours_in_order(dataset: str, order: Sequence[int], classes: int) -> Palette:
    """Colours (n, 3) in learned order: a class keeps the colour of its label, whatever the task.

    Data sets that come with colours are drawn in these.

    Args:
        dataset: Name of the data set.
        order: Label ids in the order in which the task brings them; of no use where it brings domains.
        classes: How many there are, where steps bring domains.
    """
    spec = DATASETS.get(dataset)
    base = None if spec is None else class_palette(spec.palette)
    if spec is not None and spec.domains:
        return class_colours(classes, base)
    if base is not None and spec is not None and spec.classes == len(base) + 1:
        base = np.concatenate([np.zeros((1, 3), dtype=np.uint8), base])  # a background that was put before the classes
    colours: Palette = class_colours(max(order) + 1, base)[list(order)]
    return colours
