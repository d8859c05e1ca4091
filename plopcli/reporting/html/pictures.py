"""The gallery: every image in a row with its ground truth and what was predicted after each step."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from plopcli.reporting.gallery import Gallery, GalleryRow
from plopcli.reporting.html.marks import escape, picture, tag

_QUALITY = 82


def gallery_rows(gallery: Gallery) -> str:
    """All rows, and the colours of the classes below them."""
    rows = [tag("div", *_row(row, gallery.steps), class_="row") for row in gallery.rows]
    colours = [
        tag("span", tag("i", "", style="background:#{:02x}{:02x}{:02x}".format(*colour)), escape(name))
        for name, colour in gallery.legend
    ]
    return "".join(rows) + tag("p", *colours, class_="classes")


def _row(row: GalleryRow, steps: tuple[int, ...]) -> list[str]:
    shown = [("image", _jpeg(row.image), "jpeg"), ("truth", _png(row.truth), "png")]
    shown += [(f"step {step}", _png(labels), "png") for step, labels in zip(steps, row.predictions, strict=True)]
    return [
        tag("figure", picture(content, kind, f"{row.name}: {name}"), tag("figcaption", escape(name)))
        for name, content, kind in shown
    ]


def _jpeg(pixels: npt.NDArray[np.uint8]) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG", quality=_QUALITY)
    return content.getvalue()


def _png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Few colours: a palette keeps them exactly, in a third of the bytes."""
    content = io.BytesIO()
    Image.fromarray(pixels).convert("P", palette=Image.Palette.ADAPTIVE, colors=256).save(content, "PNG", optimize=True)
    return content.getvalue()
