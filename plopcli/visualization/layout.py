"""Pages of pictures and text: wrapped paragraphs, grids, legends. Nothing but names beyond reason is cut off: pages
grow instead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from plopcli.console.streams import printable

PAPER, INK = (255, 255, 255), (30, 30, 30)
TITLE, CAPTION = 20, 16
GAP, MARGIN = 10, 14
SWATCH = 16

_RULE = (150, 150, 150)
_LEGEND = 15
_LEAST_PAGE = 420
_PALE = 225
#: Letters of a name.
_LONGEST = 120


Entry = tuple[Image.Image, str]
"""One line of a legend: a square of `SWATCH` pixels a side, and what it stands for."""


def edged(picture: Image.Image) -> Image.Image:
    """``picture``, with a thin line along its edge where that is too light to be told from the paper."""
    grey = np.asarray(picture.convert("L"))
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    if border.mean() < _PALE:
        return picture
    return _framed(picture)


def _framed(picture: Image.Image) -> Image.Image:
    lined = picture.copy()
    ImageDraw.Draw(lined).rectangle((0, 0, picture.width - 1, picture.height - 1), outline=_RULE)
    return lined


def paragraph(text: str, size: int, width: int, height: int = 0) -> Image.Image:
    """``text`` centred in lines of at most ``width`` pixels, in letters of ``size`` pixels.

    The picture is as small as the text allows, but at least ``height`` high; words wider than a line are broken.
    """
    lines = _wrap(text, size, width)
    if not lines:
        return Image.new("RGB", (1, max(1, height)), PAPER)
    pitch = round(size * 1.3)
    needed = pitch * len(lines)
    picture = Image.new("RGB", (max(_text_width(line, size) for line in lines), max(needed, height)), PAPER)
    top = (picture.height - needed) / 2
    for number, line in enumerate(lines):
        _write(picture, (picture.width / 2, top + (number + 0.5) * pitch), line, size, anchor="mm")
    return picture


def grid(cells: Sequence[Sequence[Image.Image]], gap: int = GAP) -> Image.Image:
    """Rows of pictures, each centred in a cell as wide as its column and as high as its row."""
    columns = max(len(row) for row in cells)
    widths = [max(row[column].width for row in cells if column < len(row)) for column in range(columns)]
    heights = [max(picture.height for picture in row) for row in cells]
    size = (sum(widths) + gap * (columns - 1), sum(heights) + gap * (len(cells) - 1))
    sheet = Image.new("RGB", size, PAPER)
    top = 0
    for row, height in zip(cells, heights, strict=True):
        left = 0
        for picture, width in zip(row, widths, strict=False):
            sheet.paste(picture, (left + (width - picture.width) // 2, top + (height - picture.height) // 2))
            left += width + gap
        top += height + gap
    return sheet


def legend(entries: Sequence[Entry], width: int) -> Image.Image:
    """All entries in lines of at most ``width`` pixels, or of the widest entry where that is wider."""
    pictures = [_legend_entry(entry) for entry in entries]
    width = max(width, *(picture.width for picture in pictures))
    pitch, space = pictures[0].height + 6, 18
    places: list[tuple[int, int]] = []
    left = top = 0
    for picture in pictures:
        if left and left + picture.width > width:
            left, top = 0, top + pitch
        places.append((left, top))
        left += picture.width + space
    sheet = Image.new("RGB", (width, top + pitch), PAPER)
    for picture, place in zip(pictures, places, strict=True):
        sheet.paste(picture, place)
    return sheet


def page(body: Image.Image, legends: Sequence[Sequence[Entry]] = (), title: Image.Image | str = "") -> Image.Image:
    """Title, pictures and legends below each other, inside a white margin; empty legends are left out."""
    width = max(body.width, _LEAST_PAGE)
    parts = [body, *(legend(entries, width) for entries in legends if entries)]
    if title:
        parts.insert(0, paragraph(title, TITLE, width) if isinstance(title, str) else title)
    stack = grid([[part] for part in parts])
    sheet = Image.new("RGB", (stack.width + 2 * MARGIN, stack.height + 2 * MARGIN), PAPER)
    sheet.paste(stack, (MARGIN, MARGIN))
    return sheet


def page_width(body_width: int) -> int:
    """Pixels that a title has above pictures of ``body_width``."""
    return max(body_width, _LEAST_PAGE)


@lru_cache
def _font(size: int, ascii_only: bool) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font; it has ASCII only, so matplotlib's for everything else."""
    if ascii_only:
        return ImageFont.load_default(size=size)
    import matplotlib  # takes half a second, and most class names are ASCII

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", size)


def drawn_text(text: str) -> str:
    """A name as it is drawn: in one line, of letters alone, and no longer than is legible."""
    shown = _plain(text)
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 3]}..."


def _plain(text: str) -> str:
    return printable(text).replace("\n", " ")


def _text_width(text: str, size: int) -> int:
    text = _plain(text)
    return math.ceil(_font(size, text.isascii()).getlength(text))


def _write(picture: Image.Image, place: tuple[float, float], text: str, size: int, anchor: str) -> None:
    text = _plain(text)
    ImageDraw.Draw(picture).text(place, text, fill=INK, font=_font(size, text.isascii()), anchor=anchor)


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


def _legend_entry(entry: Entry) -> Image.Image:
    square, name = entry
    name = drawn_text(name)
    height = round(_LEGEND * 1.4)
    text_at = SWATCH + 6
    picture = Image.new("RGB", (text_at + _text_width(name, _LEGEND), height), PAPER)
    picture.paste(_framed(square), (0, (height - SWATCH) // 2))
    _write(picture, (text_at, height / 2), name, _LEGEND, anchor="lm")
    return picture
