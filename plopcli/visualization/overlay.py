"""Pictures of label maps: coloured, blended with the photograph, side by side, with captions and a legend.

Every function is pure: arrays in, an array or a picture out. Images are uint8 (H, W, 3) in RGB, label maps are
integer (H, W) with values below the number of classes, or 255 for void.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from plopcli.visualization.palette import VOID, Palette

Photo = NDArray[np.uint8]
"""An image (H, W, 3), RGB."""
Labels = NDArray[np.integer[Any]]
"""A label map (H, W)."""

_PAPER, _INK, _RULE = (255, 255, 255), (30, 30, 30), (150, 150, 150)
_CONTOUR = (255, 255, 255)
_VOID_LIGHT, _VOID_DARK = (236, 236, 236), (176, 176, 176)
_HATCH_PERIOD, _HATCH_STROKE = 8, 2

_PANEL_SIDES = (256, 512)
_SHEET_SIDES = (256, 320)
_TITLE, _CAPTION, _LEGEND = 20, 16, 15
_MARGIN, _GAP, _LEAST_PAGE = 14, 10, 420
_SWATCH = 16


class LegendEntry(NamedTuple):
    """One line of a legend."""

    label: int
    name: str


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
    """A label map in the colours of its classes, void light and hatched.

    Args:
        labels: Label map (H, W).
        palette: Colours (n, 3) of the classes; every label but 255 is below n.

    Returns:
        Picture (H, W, 3).
    """
    void = labels == VOID
    colours = palette[np.where(void, 0, labels)]
    colours[void] = _hatching(labels.shape)[void]
    return colours


def blend(image: Photo, labels: Labels, palette: Palette, opacity: float = 0.5, *, background: bool = True) -> Photo:
    """The photograph with its classes laid over it and a contour of one pixel where two classes meet.

    Background (label 0) keeps the pixels of the photograph: a contour runs on the side of the higher label. Void is
    hatched and has no contour, since in most data sets it is one already.

    Args:
        image: Photograph (H, W, 3).
        labels: Label map (H, W).
        palette: Colours (n, 3) of the classes.
        opacity: 0 shows the photograph (and the contours) only, 1 covers the classes.
        background: Whether label 0 is background; else it is a class like the others.

    Returns:
        Picture (H, W, 3).
    """
    assert image.shape[:2] == labels.shape, f"image {image.shape} and labels {labels.shape} differ in size"
    photo = image.astype(np.float32)
    mixed = photo + opacity * (colourise(labels, palette).astype(np.float32) - photo)
    covered = labels != 0 if background else np.ones_like(labels, dtype=np.bool_)
    result = np.where(covered[..., None], mixed.round().astype(np.uint8), image)
    result[_contours(labels)] = _CONTOUR
    return result


def legend_entries(names: Sequence[str], *maps: Labels) -> list[LegendEntry]:
    """The classes that occur in at least one of ``maps``, by label, background and void among them."""
    present = np.unique(np.concatenate([np.unique(labels) for labels in maps])).tolist()
    return [LegendEntry(label, "void" if label == VOID else names[label]) for label in present]


def render_panel(
    image: Photo,
    prediction: Labels,
    names: Sequence[str],
    palette: Palette,
    truth: Labels | None = None,
    title: str | None = None,
    *,
    background: bool = True,
) -> Image.Image:
    """Image, prediction, blend and, where given, truth side by side, with captions and a legend.

    Small images are enlarged and large ones reduced so that the longer side of each lies in 256..512 pixels.

    Args:
        image: Photograph (H, W, 3).
        prediction: Label map (H, W).
        names: Class names by label.
        palette: Colours (n, 3) of the classes.
        truth: Annotation (H, W).
        title: Written above the panels.
        background: Whether label 0 is background, which the blend does not cover.
    """
    size = _fitted_size(image.shape[:2], _PANEL_SIDES)
    photo, predicted = _resize_photo(image, size), _resize_labels(prediction, size)
    pictures = [
        ("image", photo),
        ("prediction", colourise(predicted, palette)),
        ("blend", blend(photo, predicted, palette, background=background)),
    ]
    maps = [prediction]
    if truth is not None:
        pictures.append(("ground truth", colourise(_resize_labels(truth, size), palette)))
        maps.append(truth)
    captions = [_paragraph(caption, _CAPTION, max(size)) for caption, _ in pictures]
    body = _grid([captions, [Image.fromarray(picture) for _, picture in pictures]], _GAP)
    return _page(body, legend_entries(names, *maps), palette, title)


def prediction_sheet(rows: Sequence[SheetRow], names: Sequence[str], palette: Palette) -> Image.Image:
    """Several images below each other: image, ground truth if there is any, a column per prediction, one legend.

    Args:
        rows: The images; all have the same columns.
        names: Class names by label.
        palette: Colours (n, 3) of the classes.
    """
    headings = [heading for heading, _ in rows[0].predictions]
    truth = [] if rows[0].truth is None else ["ground truth"]
    cells: list[list[Image.Image]] = []
    maps: list[Labels] = []
    widest = 0
    for row in rows:
        assert [heading for heading, _ in row.predictions] == headings, "rows of a sheet differ in their columns"
        size = _fitted_size(row.image.shape[:2], _SHEET_SIDES)
        widest = max(widest, size[0])
        row_maps = [*([] if row.truth is None else [row.truth]), *(labels for _, labels in row.predictions)]
        coloured = [colourise(_resize_labels(labels, size), palette) for labels in row_maps]
        pictures = [Image.fromarray(picture) for picture in (_resize_photo(row.image, size), *coloured)]
        cells.append([_paragraph(row.title, _CAPTION, size[1]).rotate(90, expand=True), *pictures])
        maps += row_maps
    captions = [_paragraph(caption, _CAPTION, widest) for caption in ("", "image", *truth, *headings)]
    return _page(_grid([captions, *cells], _GAP), legend_entries(names, *maps), palette, None)


def contact_sheet(panels: Sequence[Image.Image], columns: int) -> Image.Image:
    """Pictures in rows of ``columns``, each centred in its cell, on white."""
    assert panels, "a contact sheet needs at least one picture"
    assert columns >= 1, f"a contact sheet has at least one column, not {columns}"
    return _grid([list(panels[start : start + columns]) for start in range(0, len(panels), columns)], _GAP)


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


def _fitted_size(shape: tuple[int, ...], sides: tuple[int, int]) -> tuple[int, int]:
    """Width and height that bring the longer side of (height, width) into the range ``sides``.

    Small images grow by a whole factor where one fits, so that every label pixel becomes a square of one size.
    """
    height, width = shape
    longer, (least, most) = max(height, width), sides
    factor = min(1.0, most / longer)
    if longer < least:
        whole = math.ceil(least / longer)
        factor = whole if whole * longer <= most else least / longer
    return max(1, round(width * factor)), max(1, round(height * factor))


def _resize_photo(image: Photo, size: tuple[int, int]) -> Photo:
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def _resize_labels(labels: Labels, size: tuple[int, int]) -> Labels:
    """The nearest label at the centre of every new pixel."""
    width, height = size
    rows = ((np.arange(height) + 0.5) * labels.shape[0] / height).astype(np.intp)
    columns = ((np.arange(width) + 0.5) * labels.shape[1] / width).astype(np.intp)
    resized: Labels = labels[rows[:, None], columns]
    return resized


@lru_cache
def _font(size: int, ascii_only: bool) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font; it has ASCII only, so matplotlib's for everything else."""
    if ascii_only:
        return ImageFont.load_default(size=size)
    import matplotlib  # takes half a second, and most class names are ASCII

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", size)


def _text_width(text: str, size: int) -> int:
    return math.ceil(_font(size, text.isascii()).getlength(text))


def _write(picture: Image.Image, place: tuple[float, float], text: str, size: int, anchor: str) -> None:
    ImageDraw.Draw(picture).text(place, text, fill=_INK, font=_font(size, text.isascii()), anchor=anchor)


def _wrap(text: str, size: int, width: int) -> list[str]:
    """``text`` in lines of at most ``width`` pixels, broken at spaces and inside words that are too long."""
    lines: list[str] = []
    line = ""
    for word in text.split():
        joined = f"{line} {word}" if line else word
        if _text_width(joined, size) <= width:
            line = joined
            continue
        if line:
            lines.append(line)
        line = ""
        for letter in word:
            if line and _text_width(line + letter, size) > width:
                lines.append(line)
                line = ""
            line += letter
    return [*lines, line] if line else lines


def _paragraph(text: str, size: int, width: int) -> Image.Image:
    """``text`` centred in lines of at most ``width`` pixels, on a picture no larger than it needs."""
    lines = _wrap(text, size, width)
    if not lines:
        return Image.new("RGB", (1, 1), _PAPER)
    pitch = round(size * 1.3)
    picture = Image.new("RGB", (max(_text_width(line, size) for line in lines), pitch * len(lines)), _PAPER)
    for number, line in enumerate(lines):
        _write(picture, (picture.width / 2, (number + 0.5) * pitch), line, size, anchor="mm")
    return picture


def _legend_entry(entry: LegendEntry, palette: Palette) -> Image.Image:
    """A colour swatch with the name of its class."""
    height = round(_LEGEND * 1.4)
    text_at = _SWATCH + 6
    picture = Image.new("RGB", (text_at + _text_width(entry.name, _LEGEND), height), _PAPER)
    swatch = Image.fromarray(colourise(np.full((_SWATCH, _SWATCH), entry.label), palette))
    ImageDraw.Draw(swatch).rectangle((0, 0, _SWATCH - 1, _SWATCH - 1), outline=_RULE)
    picture.paste(swatch, (0, (height - _SWATCH) // 2))
    _write(picture, (text_at, height / 2), entry.name, _LEGEND, anchor="lm")
    return picture


def _legend(entries: Sequence[LegendEntry], palette: Palette, width: int) -> Image.Image:
    """All entries in lines of at most ``width`` pixels, or of the widest entry where that is wider."""
    pictures = [_legend_entry(entry, palette) for entry in entries]
    width = max(width, *(picture.width for picture in pictures))
    pitch, space = pictures[0].height + 6, 18
    places: list[tuple[int, int]] = []
    left = top = 0
    for picture in pictures:
        if left and left + picture.width > width:
            left, top = 0, top + pitch
        places.append((left, top))
        left += picture.width + space
    legend = Image.new("RGB", (width, top + pitch), _PAPER)
    for picture, place in zip(pictures, places, strict=True):
        legend.paste(picture, place)
    return legend


def _grid(cells: Sequence[Sequence[Image.Image]], gap: int) -> Image.Image:
    """Rows of pictures, each centred in a cell as wide as its column and as high as its row."""
    columns = max(len(row) for row in cells)
    widths = [max(row[column].width for row in cells if column < len(row)) for column in range(columns)]
    heights = [max(picture.height for picture in row) for row in cells]
    size = (sum(widths) + gap * (columns - 1), sum(heights) + gap * (len(cells) - 1))
    sheet = Image.new("RGB", size, _PAPER)
    top = 0
    for row, height in zip(cells, heights, strict=True):
        left = 0
        for picture, width in zip(row, widths, strict=False):
            sheet.paste(picture, (left + (width - picture.width) // 2, top + (height - picture.height) // 2))
            left += width + gap
        top += height + gap
    return sheet


def _page(body: Image.Image, entries: Sequence[LegendEntry], palette: Palette, title: str | None) -> Image.Image:
    """Title, pictures and legend below each other, inside a white margin."""
    width = max(body.width, _LEAST_PAGE)
    parts = [body, _legend(entries, palette, width)]
    if title:
        parts.insert(0, _paragraph(title, _TITLE, width))
    stack = _grid([[part] for part in parts], _GAP)
    page = Image.new("RGB", (stack.width + 2 * _MARGIN, stack.height + 2 * _MARGIN), _PAPER)
    page.paste(stack, (_MARGIN, _MARGIN))
    return page
