"""Textures of the generated classes, painted in the frame of their outlines.

A texture is a function of x, y (arrays of one shape, in the units of ``shapes``) and a phase in [0, 1) that shifts what
has no fixed place. It returns how much of the second colour to mix into the first: 0 the first, 1 the second.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.floating]
Texture = Callable[[Floats, Floats, float], Floats]

_TILE = 128
_CELLS_PER_UNIT = 32


@cache
def noise_tile(cells: int) -> Floats:
    """A fixed tile of smooth noise, (128, 128), stretched to [0, 1]; ``cells`` random values along each side."""
    # One row and column of the opposite edge make the tile repeat without a seam.
    values = np.pad(np.random.default_rng(cells).random((cells, cells), dtype=np.float32), (0, 1), mode="wrap")
    side = round(_TILE * (cells + 1) / cells)
    tile = np.asarray(Image.fromarray(values).resize((side, side), Image.Resampling.BILINEAR))[:_TILE, :_TILE]
    stretched: Floats = (tile - tile.min()) / (tile.max() - tile.min())
    return stretched


def _noise(x: Floats, y: Floats, phase: float, cells: int) -> Floats:
    columns = (x * _CELLS_PER_UNIT + phase * 7919).astype(np.int32) % _TILE
    rows = (y * _CELLS_PER_UNIT + phase * 104729).astype(np.int32) % _TILE
    values: Floats = noise_tile(cells)[rows, columns]
    return values


def _where(*conditions: NDArray[np.bool_]) -> Floats:
    """1 where any of the conditions holds."""
    covered: NDArray[np.bool_] = np.logical_or.reduce(conditions)
    return covered.astype(np.float32)


def _bands(t: Floats, share: float = 0.5) -> NDArray[np.bool_]:
    """True in the first ``share`` of every unit of ``t``."""
    inside: NDArray[np.bool_] = np.mod(t, 1) < share
    return inside


def _distance(x: Floats, y: Floats, cx: float = 0, cy: float = 0) -> Floats:
    distance: Floats = np.hypot(x - cx, y - cy)
    return distance


def _clipped(mix: Floats) -> Floats:
    """Limited to [0, 1]."""
    return np.clip(mix, 0, 1)


def plain(x: Floats, y: Floats, phase: float) -> Floats:
    """One even colour, anywhere between the first and halfway to the second."""
    return np.full_like(x, phase / 2)


def stripes(x: Floats, y: Floats, phase: float) -> Floats:
    """Bands across the x axis."""
    return _where(_bands(x * 1.9 + phase))


def checks(x: Floats, y: Floats, phase: float) -> Floats:
    """A chess board."""
    return _where(_bands(x * 1.25 + 0.25) ^ _bands(y * 1.25 + 0.25))


def dots(x: Floats, y: Floats, phase: float) -> Floats:
    """Round dots on a square grid."""
    return _where(np.hypot(np.mod(x * 2.2 + phase, 1) - 0.5, np.mod(y * 2.2, 1) - 0.5) < 0.32)


def sphere(x: Floats, y: Floats, phase: float) -> Floats:
    """Light from the upper left, fading smoothly."""
    return _clipped(1.05 - _distance(x, y, -0.4, -0.4) / 1.2)


def brass(x: Floats, y: Floats, phase: float) -> Floats:
    """A smooth sheen from side to side and one solid band."""
    sheen = _clipped(0.75 - np.abs(x + 0.25) * 1.1)
    return np.where((y > 0.3) & (y < 0.52), 1, sheen)


def wings(x: Floats, y: Floats, phase: float) -> Floats:
    """Eyes of concentric rings on four wings, and a body."""
    side = np.abs(x)
    radius = np.where(y < 0.05, _distance(side, y, 0.54, -0.42), _distance(side, y, 0.42, 0.45))
    return _where((radius < 0.14) | ((radius > 0.27) & (radius < 0.4)), side < 0.1)


def billows(x: Floats, y: Floats, phase: float) -> Floats:
    """Soft, broad noise, lighter towards the top."""
    return _clipped(_noise(x, y, phase, 10) * 0.9 - y * 0.5)


def grain(x: Floats, y: Floats, phase: float) -> Floats:
    """Coarse, hard speckle around a solid hub."""
    speckle = _noise(x, y, phase, 26) > 0.56
    radius = _distance(x, y)
    return _where(speckle & (radius > 0.42), radius < 0.3)


def scales(x: Floats, y: Floats, phase: float) -> Floats:
    """Rows of arcs on the body, a solid tail and an eye."""
    row = np.floor(x * 2.8)
    along = np.mod(x * 2.8, 1)
    across = np.mod(y * 2.4 + 0.5 * np.mod(row, 2), 1) - 0.5
    arcs = (np.hypot(across * 1.5, along - 0.95) > 0.62) & (x > -0.5)
    return _where(arcs, x > 0.45, _distance(x, y, -0.68, -0.1) < 0.13)


def petals(x: Floats, y: Floats, phase: float) -> Floats:
    """A solid heart, and petals that fade outwards."""
    radius = _distance(x, y)
    return np.where(radius < 0.36, 1, _clipped(0.7 - radius * 0.7))


def gloss(x: Floats, y: Floats, phase: float) -> Floats:
    """One plain colour with a small bright spot."""
    return _where(np.hypot((x + 0.45) / 0.28, (y + 0.4) / 0.2) < 1)


def facade(x: Floats, y: Floats, phase: float) -> Floats:
    """A solid roof, two windows and a door."""
    windows = (np.abs(np.abs(x) - 0.4) < 0.18) & (np.abs(y - 0.2) < 0.16)
    door = (np.abs(x) < 0.18) & (y > 0.5)
    return _where(y < -0.1, windows, door)


def quarters(x: Floats, y: Floats, phase: float) -> Floats:
    """Four fields of alternating colour."""
    return _where((x > 0) ^ (y > -0.25))


def veins(x: Floats, y: Floats, phase: float) -> Floats:
    """A midrib and slanting side veins."""
    return _where(np.abs(x) < 0.09, _bands((y + np.abs(x) * 0.9) * 2.5, 0.4))


def spots(x: Floats, y: Floats, phase: float) -> Floats:
    """Five large spots on a cap, and a plain stem."""
    places = ((0.0, -0.58), (-0.52, -0.3), (0.52, -0.3), (0.0, -0.1), (-0.8, 0.05), (0.8, 0.05))
    return _where(y > 0.18, *(_distance(x, y, cx, cy) < 0.2 for cx, cy in places))


def sectors(x: Floats, y: Floats, phase: float) -> Floats:
    """Eight sectors of alternating colour around the centre."""
    return _where(_bands(np.arctan2(y, x) * (2 / np.pi) + phase))


def lattice(x: Floats, y: Floats, phase: float) -> Floats:
    """A broad cross of lines and a border, as on a coat of arms."""
    return _where(_bands((x + y) * 1.35 + 0.15, 0.3), _bands((x - y) * 1.35 + 0.15, 0.3))


def facets(x: Floats, y: Floats, phase: float) -> Floats:
    """Each of five arms split into a light and a dark half."""
    return _where(_bands((np.arctan2(y, x) + np.pi / 2) * (5 / (2 * np.pi))))


def zigzag(x: Floats, y: Floats, phase: float) -> Floats:
    """Broad zigzag lines and a solid foot."""
    wave = np.abs(np.mod(x * 1.8, 1) - 0.5)
    return _where(_bands((y + wave * 0.5) * 2 + phase, 0.45), y > 0.72)


def panels(x: Floats, y: Floats, phase: float) -> Floats:
    """Four panels that meet at the top of a dome, and a solid handle."""
    width = np.sqrt(np.clip(1 - (y / 1.05) ** 2, 0.01, 1))
    return _where(_bands(x / width + 2), y > 0.02)


TEXTURES: dict[str, Texture] = {
    "arrow": stripes,
    "ball": sphere,
    "bell": brass,
    "butterfly": wings,
    "cloud": billows,
    "crescent": dots,
    "cross": checks,
    "fish": scales,
    "flower": petals,
    "gear": grain,
    "heart": gloss,
    "house": facade,
    "kite": quarters,
    "leaf": veins,
    "mushroom": spots,
    "ring": sectors,
    "shield": lattice,
    "star": facets,
    "tree": zigzag,
    "umbrella": panels,
}
"""The texture of each class."""
