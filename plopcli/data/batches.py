"""Batches as the networks and methods take them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """A micro-batch on the model's device.

    Attributes:
        images: (B, 3, H, W) float, normalised.
        labels: (B, H, W) int64 in learned order, 255 ignored.
        maps: Further maps (B, H, W), uint8, by the names by which the method asked for them.
        sources: (B,) uint8: 0 where an image is of the step itself, 1 where it is an exemplar; None: all are of it.
        names: Of the images.
    """

    images: Tensor
    labels: Tensor
    maps: Mapping[str, Tensor] = {}
    sources: Tensor | None = None
    names: tuple[str, ...] = ()
