"""Outlines of the generated classes, as polygons.

Every outline is drawn in its own frame, x to the right and y down, roughly inside [-1, 1] x [-1, 1]. What uses an
outline rescales it to the area it wants, so a bell and a ring drawn "at 10 %" cover the same number of pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Floats = NDArray[np.float32]

_RASTER = 256
_EXTENT = 1.3


class Part(NamedTuple):
    """One polygon of an outline, added to it or (``hole``) cut out of the parts before it."""

    points: Floats  # (N, 2), x and y
    hole: bool = False


@dataclass(frozen=True)
class Outline:
    """A shape in its own frame, with what is needed to place it by area."""

    parts: tuple[Part, ...]
    area: float
    centre: Floats  # (2,), centroid


@cache
def outline(name: str) -> Outline:
    """The outline of a class.

    Args:
        name: A key of ``SHAPES``.
    """
    parts = tuple(SHAPES[name])
    pixels_per_unit = _RASTER / (2 * _EXTENT)
    inside = rasterise([((part.points + _EXTENT) * pixels_per_unit, part.hole) for part in parts], _RASTER, _RASTER)
    rows, columns = np.nonzero(inside)
    centre = np.array([columns.mean(), rows.mean()], dtype=np.float32) / pixels_per_unit - _EXTENT
    return Outline(parts, float(inside.sum()) / pixels_per_unit**2, centre.astype(np.float32))


def rasterise(polygons: Sequence[tuple[Floats, bool]], width: int, height: int) -> NDArray[np.bool_]:
    """Fill polygons, in order, without anti-aliasing.

    Args:
        polygons: Pairs of points (N, 2) in pixels and whether the polygon is a hole.
        width: Of the result, in pixels.
        height: Of the result, in pixels.

    Returns:
        (height, width), true inside.
    """
    canvas = Image.new("L", (width, height))
    draw = ImageDraw.Draw(canvas)
    for points, hole in polygons:
        draw.polygon(points.ravel().tolist(), fill=0 if hole else 1)
    inside: NDArray[np.bool_] = np.asarray(canvas) != 0
    return inside


def _polygon(*points: tuple[float, float]) -> Part:
    return Part(np.array(points, dtype=np.float32))


def _mirrored(*right: tuple[float, float]) -> Part:
    """A polygon symmetric about x = 0 from its right half, listed from top to bottom."""
    return _polygon(*right, *((-x, y) for x, y in reversed(right)))


def _ellipse(x: float, y: float, rx: float, ry: float, *, hole: bool = False) -> Part:
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    return Part(np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], axis=1).astype(np.float32), hole)


def _circle(x: float, y: float, radius: float, *, hole: bool = False) -> Part:
    return _ellipse(x, y, radius, radius, hole=hole)


def _polar(radii: Sequence[float], start: float) -> Part:
    """A polygon with corners at equal angles, the first one at ``start`` (radians)."""
    angle = start + np.linspace(0, 2 * np.pi, len(radii), endpoint=False)
    points = np.stack([np.cos(angle), np.sin(angle)], axis=1) * np.array(radii)[:, None]
    return Part(points.astype(np.float32))


def _heart() -> Part:
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return Part((np.stack([x, y], axis=1) / 16).astype(np.float32))


def _umbrella() -> list[Part]:
    """A dome whose lower rim is cut by four arcs, and a hooked handle."""
    angle = np.linspace(np.pi, 2 * np.pi, 24)
    dome = Part(np.stack([np.cos(angle), 1.05 * np.sin(angle)], axis=1).astype(np.float32))
    arcs = [_ellipse(x, 0.02, 0.21, 0.16, hole=True) for x in (-0.75, -0.25, 0.25, 0.75)]
    stick = _polygon((-0.1, -0.2), (0.1, -0.2), (0.1, 0.75), (-0.1, 0.75))
    hook = np.linspace(np.pi, 0, 12)
    outer = np.stack([0.24 + 0.34 * np.cos(hook), 0.7 + 0.34 * np.sin(hook)], axis=1)
    inner = np.stack([0.24 + 0.14 * np.cos(hook), 0.7 + 0.14 * np.sin(hook)], axis=1)[::-1]
    return [dome, *arcs, stick, Part(np.concatenate([outer, inner]).astype(np.float32))]


SHAPES: dict[str, list[Part]] = {
    "arrow": [_polygon((-1, -0.4), (0, -0.4), (0, -0.9), (1, 0), (0, 0.9), (0, 0.4), (-1, 0.4))],
    "ball": [_circle(0, 0, 1)],
    "bell": [
        _mirrored((0.15, -1), (0.2, -0.82), (0.5, -0.6), (0.6, -0.2), (0.66, 0.2), (0.98, 0.55), (0.98, 0.72)),
        _circle(0, 0.76, 0.24),
    ],
    "butterfly": [
        *(_ellipse(x, -0.42, 0.48, 0.5) for x in (-0.54, 0.54)),
        *(_ellipse(x, 0.45, 0.4, 0.42) for x in (-0.42, 0.42)),
        _ellipse(0, 0, 0.14, 0.8),
    ],
    "cloud": [
        _circle(-0.62, 0.2, 0.38),
        _circle(-0.2, -0.18, 0.5),
        _circle(0.38, -0.05, 0.42),
        _circle(0.75, 0.25, 0.33),
        _polygon((-0.62, 0.1), (0.75, 0.1), (0.75, 0.58), (-0.62, 0.58)),
    ],
    "crescent": [_circle(0, 0, 1), _circle(0.55, 0, 0.72, hole=True)],
    "cross": [
        _polygon((-1, -0.4), (1, -0.4), (1, 0.4), (-1, 0.4)),
        _polygon((-0.4, -1), (0.4, -1), (0.4, 1), (-0.4, 1)),
    ],
    "fish": [
        _ellipse(-0.25, 0, 0.75, 0.52),
        _polygon((0.25, 0), (1, -0.6), (0.82, 0), (1, 0.6)),
        _polygon((-0.55, -0.4), (0.1, -0.85), (0.2, -0.35)),
    ],
    "flower": [
        _circle(0, 0, 0.5),
        *(_circle(0.62 * np.cos(a), 0.62 * np.sin(a), 0.36) for a in np.arange(6) * np.pi / 3),
    ],
    "gear": [_polar([1, 1, 0.74, 0.74] * 8, start=0.0)],
    "heart": [_heart()],
    "house": [
        _polygon((-0.72, -0.1), (0.72, -0.1), (0.72, 0.9), (-0.72, 0.9)),
        _polygon((-1, -0.08), (0, -0.95), (1, -0.08)),
        _polygon((0.42, -0.9), (0.68, -0.9), (0.68, -0.3), (0.42, -0.3)),
    ],
    "kite": [_mirrored((0, -0.9), (0.7, -0.25), (0, 1.1))],
    "leaf": [
        _mirrored((0, -1.1), (0.25, -0.75), (0.5, -0.3), (0.58, 0.1), (0.45, 0.45), (0.2, 0.72), (0.08, 0.78)),
        _mirrored((0.09, 0.7), (0.09, 1.15)),
    ],
    "mushroom": [
        _mirrored((0, -0.9), (0.4, -0.83), (0.75, -0.58), (0.95, -0.2), (0.98, 0.05), (0.8, 0.17), (0, 0.2)),
        _mirrored((0.28, 0.1), (0.4, 0.95)),
    ],
    "ring": [_circle(0, 0, 1), _circle(0, 0, 0.46, hole=True)],
    "shield": [
        _mirrored((0, -0.85), (0.4, -1), (0.85, -0.85), (0.85, 0), (0.72, 0.42), (0.42, 0.8), (0, 1.08)),
    ],
    "star": [_polar([1.1, 0.5] * 5, start=-np.pi / 2)],
    "tree": [
        _mirrored((0, -1.1), (0.48, -0.45), (0.25, -0.45), (0.72, 0.12), (0.4, 0.12), (0.95, 0.72)),
        _mirrored((0.18, 0.7), (0.18, 1.05)),
    ],
    "umbrella": _umbrella(),
}
"""The parts of each outline, by class name."""
