"""Colours of classes: one colour map for masks on disk, overlays, legends and curves."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Palette = NDArray[np.uint8]
"""Colours (n, 3), RGB in 0..255; the row is the label."""

VOID = 255
"""The label that neither losses nor metrics count."""


def voc_palette(n: int = 256) -> Palette:
    """The PASCAL VOC colour map, as stored in the masks of the VOC development kit.

    The bits of a label are dealt to red, green and blue in turn, from the most significant bit of each channel
    downwards, so labels that follow each other get colours far apart.

    Args:
        n: Number of labels, 1 to 256.

    Returns:
        Colours (n, 3): label 0 is black, 15 is (192, 128, 128), 255 is (224, 224, 192).
    """
    assert 1 <= n <= 256, f"a palette has 1 to 256 colours, not {n}"
    labels = np.arange(n, dtype=np.uint8)
    colours = np.zeros((n, 3), dtype=np.uint8)
    for bit in range(8):
        channel, significance = bit % 3, 7 - bit // 3
        colours[:, channel] |= ((labels >> bit) & 1) << significance
    return colours


def class_colours(count: int, base: Palette | None = None) -> Palette:
    """One colour for each of ``count`` classes.

    Args:
        count: Number of classes, background included, 1 to 255 (label 255 is void).
        base: Colours (m, 3) that the data set brings along; ``None`` means the VOC colour map.

    Returns:
        Colours (count, 3): the rows of ``base``, then, where it has too few, those colours of the VOC map that are
        farthest from all colours chosen before.
    """
    assert 1 <= count <= VOID, f"labels are 0 to {VOID - 1}, so there are no {count} classes"
    if base is None:
        return voc_palette(count)
    chosen = [row.astype(np.int64) for row in base[:count]]
    candidates = voc_palette().astype(np.int64)
    if not chosen:
        chosen.append(candidates[0])
    nearest = np.min([np.square(candidates - colour).sum(axis=1) for colour in chosen], axis=0)
    nearest[VOID] = -1
    while len(chosen) < count:
        best = candidates[int(nearest.argmax())]
        chosen.append(best)
        nearest = np.minimum(nearest, np.square(candidates - best).sum(axis=1))
        nearest[VOID] = -1
    return np.array(chosen, dtype=np.uint8)
