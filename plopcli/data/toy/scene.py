"""One generated picture: a cluttered background and objects that occlude one another, with the mask.

Everything is painted with hard edges on a canvas of twice the size and averaged down, which smooths the edges of the
picture; the mask takes one sample per pixel and then gets the thin void contour that VOC's masks have.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from plopcli.data.palettes import VOID
from plopcli.data.toy.difficulty import Variation
from plopcli.data.toy.shapes import Outline, Part, outline, rasterise
from plopcli.data.toy.textures import TEXTURES, Texture, noise_tile, plain

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
# A pixel of the canvas is one number (red, green, blue, unused), which copies several times as fast as three bytes.
Packed = NDArray[np.uint32]

OBJECT_CLASSES: tuple[str, ...] = tuple(TEXTURES)

_OVERSAMPLING = 2
_SHARES = np.linspace(0, 1, 256, dtype=np.float32)[:, None]
_TRIES = 24
_SHRINK_EVERY = 6


@dataclass(frozen=True)
class _Place:
    """Where an outline lies on the canvas: ``canvas = pose @ (local - outline.centre) + position``."""

    outline: Outline
    pose: Floats  # (2, 2)
    position: Floats  # (2,), x and y in pixels of the canvas
    window: tuple[slice, slice]  # rows and columns of the canvas that the outline touches
    inside: NDArray[np.bool_]  # which pixels of the window it covers

    def local(self) -> tuple[Floats, Floats]:
        """The outline's own x and y at the covered pixels, (N,) each."""
        down, right = np.nonzero(self.inside)
        rows, columns = self.window
        dx = (right + (columns.start - self.position[0])).astype(np.float32)
        dy = (down + (rows.start - self.position[1])).astype(np.float32)
        (a, b), (c, d) = self.pose.tolist()
        scale = 1 / (a * d - b * c)
        x = (d * scale) * dx - (b * scale) * dy + self.outline.centre[0]
        y = (a * scale) * dy - (c * scale) * dx + self.outline.centre[1]
        return x, y


def _put(shape: Outline, pose: Floats, position: Floats, side: int) -> _Place:
    """Lay an outline on a canvas of ``side`` pixels; what lies beyond the canvas is cut off."""
    polygons: list[tuple[Floats, bool]] = []
    for part in shape.parts:
        points: Floats = ((part.points - shape.centre) @ pose.T + position).astype(np.float32)
        polygons.append((points, part.hole))
    solid = np.concatenate([points for points, hole in polygons if not hole])
    left, top = (int(value) for value in np.clip(np.floor(solid.min(axis=0)), 0, side - 1))
    right, bottom = (int(value) for value in np.clip(np.ceil(solid.max(axis=0)) + 1, (left + 1, top + 1), side))
    corner = np.array([left, top], dtype=np.float32)
    inside = rasterise([(points - corner, hole) for points, hole in polygons], right - left, bottom - top)
    return _Place(shape, pose, position, (slice(top, bottom), slice(left, right)), inside)


def draw_scene(rng: np.random.Generator, labels: Sequence[int], size: int, variation: Variation) -> tuple[Bytes, Bytes]:
    """Draw one picture.

    Args:
        rng: Source of everything that is random.
        labels: Class ids (1 .. 20) of the objects, from the rearmost to the foremost.
        size: Side of the picture in pixels.
        variation: Ranges to draw from.

    Returns:
        The picture (size, size, 3), and its mask (size, size) of class ids, 0 for background and 255 for the contour.
    """
    side = size * _OVERSAMPLING
    canvas = _background(rng, size, int(rng.integers(variation.lines[0], variation.lines[1] + 1)))
    _add_blobs(rng, canvas, variation)
    depth = np.zeros((side, side), dtype=np.uint8)  # 0 background, k the k-th object
    areas: list[int] = []
    for index, label in enumerate(labels, start=1):
        name = OBJECT_CLASSES[label - 1]
        place, full_area = _find_place(rng, outline(name), depth, areas, variation)
        areas.append(full_area)
        depth[place.window][place.inside] = index
        _paint(rng, canvas, place, TEXTURES[name], _object_colours(rng, label - 1, variation))
    return _expose(rng, canvas, variation.noise), _mask(depth[::_OVERSAMPLING, ::_OVERSAMPLING], labels)


def _paint(
    rng: np.random.Generator, canvas: Packed, place: _Place, texture: Texture, colours: tuple[Floats, Floats]
) -> None:
    """Paint one textured shape, in place."""
    mix = texture(*place.local(), float(rng.random()))
    canvas[place.window][place.inside] = _blend(colours, mix)


def _expose(rng: np.random.Generator, canvas: Packed, noise: int) -> Bytes:
    """Average the canvas down to the picture, under a slope of light and with pixel noise, (size, size, 3)."""
    side = canvas.shape[0]
    image = Image.frombuffer("RGBX", (side, side), canvas.tobytes(), "raw", "RGBX", 0, 1).reduce(_OVERSAMPLING)
    picture = np.asarray(image)[..., :3]
    slope = np.linspace(-0.5, 0.5, picture.shape[0], dtype=np.float32)
    level, across, down = (float(value) for value in rng.uniform((0.85, -0.25, -0.25), (1.1, 0.25, 0.25)))
    light = level + across * slope[None, :] + down * slope[:, None]
    lit = picture * light[..., None] + rng.integers(-noise, noise + 1, picture.shape, dtype=np.int8)
    return np.clip(lit, 0, 255).astype(np.uint8)


def _mask(depth: Bytes, labels: Sequence[int]) -> Bytes:
    """Class ids from the depth order; pixels just outside a nearer object become void, one pixel per 96 of the side."""
    nearest = depth
    for _ in range(max(1, round(depth.shape[0] / 96))):
        padded = np.pad(nearest, 1, mode="edge")
        nearest = np.maximum.reduce([nearest, padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]])
    table = np.array([0, *labels], dtype=np.uint8)
    return np.where(nearest > depth, np.uint8(VOID), table[depth])


def _find_place(
    rng: np.random.Generator, shape: Outline, depth: Bytes, areas: Sequence[int], variation: Variation
) -> tuple[_Place, int]:
    """Find room for one more object: the first try that leaves every object visible enough, else the best one.

    Args:
        rng: Source of the tries.
        shape: Outline of the object.
        depth: Which of the earlier objects each pixel of the canvas shows, counted from 1.
        areas: Full areas of the earlier objects in pixels of the canvas.
        variation: Ranges to draw from.

    Returns:
        The place, and the full area of the object in pixels of the canvas.
    """
    side = depth.shape[0]
    share = math.exp(rng.uniform(math.log(variation.area[0]), math.log(variation.area[1])))
    before = np.bincount(depth.ravel(), minlength=len(areas) + 1)[1:]
    best: tuple[float, _Place, int] | None = None
    for attempt in range(_TRIES):
        if attempt % _SHRINK_EVERY == _SHRINK_EVERY - 1:
            share = max(variation.area[0], share * 0.75)
        area = round(share * side * side)
        margin = 0.35 * math.sqrt(area)
        position = rng.uniform(margin, side - margin, 2).astype(np.float32)
        place = _put(shape, _pose(rng, math.sqrt(area / shape.area), variation), position, side)
        hidden = np.bincount(depth[place.window][place.inside], minlength=len(areas) + 1)[1:]
        visible = min([float(place.inside.sum()) / area, *((before - hidden) / areas if areas else [])])
        if best is None or visible > best[0]:
            best = (visible, place, area)
        if visible >= variation.visible:
            break
    assert best is not None
    return best[1], best[2]


def _pose(rng: np.random.Generator, scale: float, variation: Variation) -> Floats:
    """A random rotation, stretch and mirror image that keeps the area at scale squared, (2, 2)."""
    angle = math.radians(rng.uniform(-variation.rotation, variation.rotation))
    stretch = math.exp(rng.uniform(-1, 1) * math.log(variation.stretch) / 2)
    flip = 1 if rng.random() < 0.5 else -1
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return (scale * turn @ np.diag([flip * stretch, 1 / stretch])).astype(np.float32)


def _colour(hue: float, saturation: float, value: float) -> Floats:
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value), dtype=np.float32) * 255


def _object_colours(rng: np.random.Generator, index: int, variation: Variation) -> tuple[Floats, Floats]:
    """A main colour around the hue of the class, and a second one that is clearly lighter or darker."""
    # 7 steps through 20 hues: neighbours in the class order do not have neighbouring hues.
    hue = (index * 7 % len(OBJECT_CLASSES)) / len(OBJECT_CLASSES) + rng.uniform(-variation.hue, variation.hue)
    main = _colour(hue, rng.uniform(0.55, 0.95), rng.uniform(0.6, 0.95))
    other = hue + rng.uniform(-0.12, 0.12)
    light = (index % 2 == 0) ^ (rng.random() < variation.inverted)
    if light:
        return main, _colour(other, rng.uniform(0.05, 0.3), rng.uniform(0.88, 1))
    return main, _colour(other, rng.uniform(0.4, 0.9), rng.uniform(0.1, 0.28))


def _blend(colours: tuple[Floats, Floats], mix: Floats) -> Packed:
    """Pixels from the first colour (mix 0) to the second (mix 1), in the shape of ``mix``."""
    first, second = colours
    ramp = np.zeros((256, 4), dtype=np.uint8)
    ramp[:, :3] = first + _SHARES * (second - first)
    packed: Packed = ramp.view(np.uint32)[:, 0][(mix * 255).astype(np.uint8)]
    return packed


def _muted_colour(rng: np.random.Generator) -> Floats:
    return _colour(rng.random(), rng.uniform(0.05, 0.55), rng.uniform(0.25, 0.9))


def _background(rng: np.random.Generator, size: int, lines: int) -> Packed:
    """A slope between two muted colours under noise, crossed by lines, on a canvas for a picture of ``size`` pixels."""
    angle = rng.uniform(0, 2 * math.pi)
    ramp = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    mix = 0.5 + math.cos(angle) * ramp[None, :] + math.sin(angle) * ramp[:, None]
    tile = Image.fromarray(noise_tile(int(rng.choice([6, 10, 26]))))
    cut = int(rng.integers(0, 64))
    texture = np.asarray(tile.crop((cut, cut, cut + 64, cut + 64)).resize((size, size), Image.Resampling.BILINEAR))
    mix = np.clip(mix + rng.uniform(0.1, 0.8) * (texture - 0.5), 0, 1).astype(np.float32)
    # The slope has no edges to smooth, so a quarter of the canvas's pixels is enough to compute.
    pixels = _blend((_muted_colour(rng), _muted_colour(rng)), mix).repeat(_OVERSAMPLING, 0).repeat(_OVERSAMPLING, 1)
    side = pixels.shape[0]
    canvas = Image.frombuffer("RGBX", (side, side), pixels.tobytes(), "raw", "RGBX", 0, 1)
    draw = ImageDraw.Draw(canvas)
    for _ in range(lines):
        red, green, blue = (int(value) for value in _muted_colour(rng))
        width = max(1, round(side * rng.uniform(0.01, 0.035)))
        draw.line(rng.uniform(0, side, 4).tolist(), fill=(red, green, blue, 0), width=width)
    return np.array(canvas).view(np.uint32)[..., 0]


def _add_blobs(rng: np.random.Generator, canvas: Packed, variation: Variation) -> None:
    """Paint shapes that belong to no class but may share the colours or the texture of one, in place."""
    side = canvas.shape[0]
    for _ in range(int(rng.integers(variation.blobs[0], variation.blobs[1] + 1))):
        blob = _blob(rng)
        pose = _pose(rng, side * math.sqrt(rng.uniform(0.01, 0.08) / blob.area), variation)
        place = _put(blob, pose, rng.uniform(0, side, 2).astype(np.float32), side)
        index = int(rng.integers(len(OBJECT_CLASSES)))
        texture = TEXTURES[OBJECT_CLASSES[index]] if rng.random() < variation.textured else plain
        borrowed = rng.random() < variation.borrowed
        colours = _object_colours(rng, index, variation) if borrowed else (_muted_colour(rng), _muted_colour(rng))
        _paint(rng, canvas, place, texture, colours)


def _blob(rng: np.random.Generator) -> Outline:
    """An irregular closed curve about the origin: rounded, or with few corners."""
    corners = int(rng.choice([4, 5, 32]))
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    if corners == 32:
        amplitude, phase = rng.uniform(0, 0.2, 3), rng.uniform(0, 2 * np.pi, 3)
        waves = [a * np.cos(k * angle + p) for k, (a, p) in enumerate(zip(amplitude, phase, strict=True), start=2)]
        radius = 1 + np.sum(waves, axis=0)
    else:
        radius = rng.uniform(0.6, 1.4, corners)
    points = np.stack([np.cos(angle), np.sin(angle)], axis=1) * radius[:, None]
    x, y = points.T
    area = abs(float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)))) / 2
    return Outline((Part(points.astype(np.float32)),), area, np.zeros(2, dtype=np.float32))
