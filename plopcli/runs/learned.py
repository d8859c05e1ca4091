"""Colours of what has been learned."""

from __future__ import annotations

from plopcli.data.colours import colours_in_order
from plopcli.data.datasets import DATASETS, DatasetSpec
from plopcli.data.palettes import Palette
from plopcli.runs.checkpoint import Checkpoint


def data_set_of(checkpoint: Checkpoint) -> DatasetSpec | None:
    """The data set that a checkpoint has learned from, where it is one of the registry."""
    return DATASETS.get(checkpoint.settings["data"]["dataset"])


def learned_colours(checkpoint: Checkpoint) -> Palette:
    """Colours of the classes of a checkpoint in learned order: `colours_in_order`."""
    dataset = str(checkpoint.settings["data"]["dataset"])
    return colours_in_order(dataset, checkpoint.task.order, len(checkpoint.classes))
