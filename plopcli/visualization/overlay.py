"""Pictures of label maps: coloured, blended with the photograph, side by side, with captions and a legend.

Every function is pure: arrays in, an array or a picture out. Images are uint8 (H, W, 3) in RGB, label maps are
integer (H, W) with values below the number of classes, or 255 for void.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from plopcli.data.palettes import VOID, Palette
from plopcli.visualization.error_map import ERROR_PALETTE, error_map, error_names, share_right
from plopcli.visualization.layout import CAPTION, SWATCH, Entry, edged, grid, page, paragraph

Photo = NDArray[np.uint8]
"""An image (H, W, 3), RGB."""
Labels = NDArray[np.integer[Any]]
"""A label map (H, W)."""
Sides = tuple[int, int]
"""Smallest and largest length in pixels of the longer side of a picture on a page."""

CONTOUR = (255, 255, 255)
OPACITY = 0.5
PANEL_SIDES: Sides = (256, 512)
SHEET_SIDES: Sides = (256, 320)

_VOID_LIGHT, _VOID_DARK = (236, 236, 236), (176, 176, 176)
_HATCH_PERIOD, _HATCH_STROKE = 8, 2


@dataclass(frozen=True)
class Style:
    """How label maps are drawn.

    Attributes:
        opacity: Of classes over the photograph, 0 to 1. None: `OPACITY` in the blend of a panel, and plain class maps
            without the photograph everywhere else.
        contours: White lines where classes meet. None: where classes are laid over the photograph.
        legend: Names and colours of the classes that occur.
        errors: Error maps beside the predictions, where there is truth.
        background: Whether label 0 is background, which a blend does not cover.
        base: Number of old classes for error maps, background included; None where classes are neither old nor new.
    """

    opacity: float | None = None
    contours: bool | None = None
    legend: bool = True
    errors: bool = False
    background: bool = True
    base: int | None = None


PLAIN = Style()


class SheetRow(NamedTuple):
    """One image of a prediction sheet.

    Attributes:
        title: Written upright at the left of the row; may be empty.
        image: The photograph (H, W, 3).
        truth: Its annotation (H, W); None for all rows where there is none.
        predictions: Heading of the column and label map (H, W), in the order of the columns.
    """

    title: str
    image: Photo
    truth: Labels | None
    predictions: Sequence[tuple[str, Labels]]


def colourise(labels: Labels, palette: Palette) -> Photo:
    """Picture (H, W, 3) of a label map (H, W) in the colours (n, 3) of its classes; void is light and hatched."""
    void = labels == VOID
    colours = palette[np.where(void, 0, labels)]
    colours[void] = _hatching(labels.shape)[void]
    return colours


def blend(
    image: Photo,
    labels: Labels,
    palette: Palette,
    opacity: float = OPACITY,
    *,
    background: bool = True,
    contours: bool = True,
) -> Photo:
    """The photograph with its classes laid over it and a contour of one pixel where two classes meet.

    Background (label 0) keeps the pixels of the photograph: a contour runs on the side of the higher label. Void is
    hatched and has no contour, since in most data sets it is one already.

    Args:
        image: Photograph (H, W, 3).
        labels: Label map (H, W).
        palette: Colours (n, 3) of the classes.
        opacity: 0 shows the photograph (and the contours) only, 1 covers the classes.
        background: Whether label 0 is background; else it is a class like the others.
        contours: Whether contours are drawn.
    """
    assert image.shape[:2] == labels.shape, f"image {image.shape} and labels {labels.shape} differ in size"
    photo = image.astype(np.float32)
    mixed = photo + opacity * (colourise(labels, palette).astype(np.float32) - photo)
    covered = labels != 0 if background else np.ones_like(labels, dtype=np.bool_)
    result = np.where(covered[..., None], mixed.round().astype(np.uint8), image)
    if contours:
        result[_contours(labels)] = CONTOUR
    return result


def draw_labels(photo: Photo, labels: Labels, palette: Palette, style: Style = PLAIN) -> Image.Image:
    """A label map as sheets show it: plain, or laid over the photograph where the style has an opacity."""
    if style.opacity is not None:
        contours = style.contours is not False
        drawn = blend(photo, labels, palette, style.opacity, background=style.background, contours=contours)
        return Image.fromarray(drawn)
    drawn = colourise(labels, palette)
    if style.contours:
        drawn[_contours(labels)] = CONTOUR
    return Image.fromarray(drawn)


def draw_errors(kinds: Labels, size: tuple[int, int] | None = None) -> Image.Image:
    """An error map in the colours of its kinds, resized to (width, height) if given."""
    return Image.fromarray(colourise(kinds if size is None else resize_labels(kinds, size), ERROR_PALETTE))


def legend_entries(names: Sequence[str] | Mapping[int, str], *maps: Labels) -> list[tuple[int, str]]:
    """The classes that occur in at least one of ``maps``, by label, background and void among them."""
    present = np.unique(np.concatenate([np.unique(labels) for labels in maps])).tolist()
    if isinstance(names, Mapping):
        named = names
    else:
        # The first class of ADE is called void.
        named = {**dict(enumerate(names)), VOID: "not counted" if "void" in names else "void"}
    return [(label, named[label]) for label in present]


def legends(
    style: Style, names: Sequence[str], palette: Palette, maps: Sequence[Labels], errors: Sequence[Labels] = ()
) -> list[list[Entry]]:
    """The legend of the classes in ``maps``, and that of the error maps below it; nothing where ``style`` has none."""
    if not style.legend:
        return []
    shown = [_swatches(legend_entries(names, *maps), palette)]
    if errors:
        shown.append(_swatches(legend_entries(error_names(style.base), *errors), ERROR_PALETTE))
    return shown


def render_panel(
    image: Photo,
    prediction: Labels,
    names: Sequence[str],
    palette: Palette,
    truth: Labels | None = None,
    title: str | None = None,
    style: Style = PLAIN,
) -> Image.Image:
    """Image, prediction, blend and, where given, truth and errors side by side, with captions and a legend.

    Images are resized so that their longer side has 256 to 512 pixels.
    """
    size = fitted_size(image.shape[:2], PANEL_SIDES)
    photo, predicted = resize_photo(image, size), resize_labels(prediction, size)
    opacity = OPACITY if style.opacity is None else style.opacity
    pictures = [
        ("image", edged(Image.fromarray(photo))),
        ("prediction", draw_labels(photo, predicted, palette)),
        ("blend", draw_labels(photo, predicted, palette, replace(style, opacity=opacity))),
    ]
    maps, errors = [prediction], []
    if truth is not None:
        pictures.append(("ground truth", draw_labels(photo, resize_labels(truth, size), palette)))
        maps.append(truth)
        if style.errors:
            kinds = error_map(truth, prediction, style.base, background=style.background)
            right = share_right(kinds)
            caption = "errors" if right is None else f"errors: {right:.1%} right"
            pictures.append((caption, draw_errors(kinds, size)))
            errors.append(kinds)
    captions = [paragraph(caption, CAPTION, max(size)) for caption, _ in pictures]
    body = grid([captions, [picture for _, picture in pictures]])
    return page(body, legends(style, names, palette, maps, errors), title or "")


def prediction_sheet(
    rows: Sequence[SheetRow], names: Sequence[str], palette: Palette, style: Style = PLAIN
) -> Image.Image:
    """Several images below each other: image, ground truth if there is any, a column per prediction, one legend.

    All rows have the same columns. Error maps stand to the right of their predictions.
    """
    headings = [heading for heading, _ in rows[0].predictions]
    with_errors = style.errors and rows[0].truth is not None
    cells: list[list[Image.Image]] = []
    maps: list[Labels] = []
    errors: list[Labels] = []
    widest = 0
    for row in rows:
        assert [heading for heading, _ in row.predictions] == headings, "rows of a sheet differ in their columns"
        size = fitted_size(row.image.shape[:2], SHEET_SIDES)
        widest = max(widest, size[0])
        photo = resize_photo(row.image, size)
        pictures = [edged(Image.fromarray(photo))]
        if row.truth is not None:
            pictures.append(draw_labels(photo, resize_labels(row.truth, size), palette, style))
            maps.append(row.truth)
        for _, labels in row.predictions:
            pictures.append(draw_labels(photo, resize_labels(labels, size), palette, style))
            maps.append(labels)
            if with_errors and row.truth is not None:
                errors.append(error_map(row.truth, labels, style.base, background=style.background))
                pictures.append(draw_errors(errors[-1], size))
        cells.append([paragraph(row.title, CAPTION, size[1]).rotate(90, expand=True), *pictures])
    columns = [column for heading in headings for column in ([heading, "errors"] if with_errors else [heading])]
    truth = [] if rows[0].truth is None else ["ground truth"]
    captions = [paragraph(caption, CAPTION, widest) for caption in ("", "image", *truth, *columns)]
    return page(grid([captions, *cells]), legends(style, names, palette, maps, errors))


def fitted_size(shape: tuple[int, ...], sides: Sides) -> tuple[int, int]:
    """Width and height that bring the longer side of (height, width) into the range ``sides``.

    Small images are enlarged by an integer factor where one fits, so that every label pixel becomes a square.
    """
    height, width = shape
    longer, (least, most) = max(height, width), sides
    factor = min(1.0, most / longer)
    if longer < least:
        whole = math.ceil(least / longer)
        factor = whole if whole * longer <= most else least / longer
    return max(1, round(width * factor)), max(1, round(height * factor))


def resize_photo(image: Photo, size: tuple[int, int]) -> Photo:
    """The photograph (H, W, 3) at (width, height)."""
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def resize_labels(labels: Labels, size: tuple[int, int]) -> Labels:
    """The nearest label at the centre of every new pixel."""
    width, height = size
    rows = ((np.arange(height) + 0.5) * labels.shape[0] / height).astype(np.intp)
    columns = ((np.arange(width) + 0.5) * labels.shape[1] / width).astype(np.intp)
    resized: Labels = labels[rows[:, None], columns]
    return resized


def _swatches(entries: Sequence[tuple[int, str]], palette: Palette) -> list[Entry]:
    return [(Image.fromarray(colourise(np.full((SWATCH, SWATCH), label), palette)), name) for label, name in entries]


def _hatching(shape: tuple[int, ...]) -> Photo:
    """Light grey (H, W, 3) with darker diagonal strokes."""
    rows, columns = np.indices(shape)
    stroke = (rows + columns) % _HATCH_PERIOD < _HATCH_STROKE
    return np.where(stroke[..., None], _VOID_DARK, _VOID_LIGHT).astype(np.uint8)


def _contours(labels: Labels) -> NDArray[np.bool_]:
    """Pixels (H, W) with a neighbour above, below, left or right of a lower label."""
    edge: NDArray[np.bool_] = np.zeros(labels.shape, dtype=np.bool_)
    edge[1:] |= labels[1:] > labels[:-1]
    edge[:-1] |= labels[:-1] > labels[1:]
    edge[:, 1:] |= labels[:, 1:] > labels[:, :-1]
    edge[:, :-1] |= labels[:, :-1] > labels[:, 1:]
    edge &= labels != VOID
    return edge
