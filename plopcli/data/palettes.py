"""Colours of classes: one colour map for masks on disk, and colours far apart for overlays, legends and curves."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Palette = NDArray[np.uint8]
"""Colours (n, 3), RGB in 0..255; the row is the label."""

VOID = 255
"""The label that neither losses nor metrics count."""

CLOSE = 2.3
"""Distance in CIE Lab below which two colours look like one even side by side (Mahy et al., 1994)."""

# Linear sRGB to XYZ over the white point D65 (IEC 61966-2-1), and the bend of CIE Lab.
_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
_WHITE = np.array([0.9505, 1.0, 1.089])
_BEND = 6 / 29

# Of these levels of red, green and blue, colours that are neither dark, nor pale, nor grey, nor glaring.
_LEVELS = (*range(0, 255, 24), 255)
_LIGHTNESS = (26, 90)
_CHROMA = (24, 92)
_TAKEN = ((0, 0, 0), (255, 255, 255), (206, 206, 206))  # by background, contours and paper, void


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


def cielab(colours: NDArray[np.integer] | NDArray[np.floating]) -> NDArray[np.float64]:
    """CIE L*a*b* (..., 3) of sRGB colours (..., 3) in 0..255, in which distances are about as large as they look."""
    values = np.asarray(colours, dtype=np.float64) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    relative = linear @ _XYZ.T / _WHITE
    bent = np.where(relative > _BEND**3, np.cbrt(relative), relative / (3 * _BEND**2) + 4 / 29)
    x, y, z = np.moveaxis(bent, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def class_colours(count: int, base: Palette | None = None) -> Palette:
    """One colour for each of ``count`` classes; no two of them closer than they can be told apart.

    Args:
        count: Number of classes, background included, 1 to 255 (label 255 is void).
        base: Colours (m, 3) that the data set brings along; ``None``: black for the background, all others chosen.

    Returns:
        Colours (count, 3): the rows of ``base``, but for those closer than `CLOSE` to one before; in place of these,
        and where ``base`` has too few, colours as far as possible from all others.
    """
    assert 1 <= count <= VOID, f"labels are 0 to {VOID - 1}, so there are no {count} classes"
    colours = np.zeros((count, 3), dtype=np.uint8)
    given = np.zeros((1, 3), dtype=np.uint8) if base is None else base[:count]
    lab = cielab(given)
    distances = np.linalg.norm(lab[:, None] - lab[None], axis=-1)
    doubled = (np.tril(distances, -1) + np.triu(np.full_like(distances, np.inf)) < CLOSE).any(axis=1)
    kept = np.flatnonzero(~doubled)
    colours[kept] = given[kept]
    missing = [*np.flatnonzero(doubled).tolist(), *range(len(given), count)]
    colours[missing] = _far_from(given[kept], len(missing))
    return colours


def _far_from(taken: Palette, count: int) -> Palette:
    """``count`` colours, one after the other the one that is farthest from the nearest of all before it.

    They keep away from black, white and the grey of void as well, so that photographs and paper are no classes.
    """
    candidates, lab = _candidates()
    nearest = np.full(len(candidates), np.inf)
    for colour in (*_TAKEN, *taken.tolist()):
        nearest = np.minimum(nearest, np.linalg.norm(lab - cielab(np.array(colour)), axis=1))
    chosen = np.empty((count, 3), dtype=np.uint8)
    for number in range(count):
        best = int(nearest.argmax())
        chosen[number] = candidates[best]
        nearest = np.minimum(nearest, np.linalg.norm(lab - lab[best], axis=1))
    return chosen


@lru_cache(maxsize=1)
def _candidates() -> tuple[Palette, NDArray[np.float64]]:
    """Colours (n, 3) to choose from, and their places in CIE Lab."""
    grid = np.stack(np.meshgrid(_LEVELS, _LEVELS, _LEVELS, indexing="ij"), axis=-1).reshape(-1, 3).astype(np.uint8)
    lab = cielab(grid)
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    usable = (lab[:, 0] >= _LIGHTNESS[0]) & (lab[:, 0] <= _LIGHTNESS[1])
    usable &= (chroma >= _CHROMA[0]) & (chroma <= _CHROMA[1])
    return grid[usable], lab[usable]
