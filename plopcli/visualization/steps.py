"""What one or several runs say about one image after each of their steps: a sheet, or the frames of an animation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from PIL import Image

from plopcli.data.palettes import Palette
from plopcli.visualization.error_map import error_map
from plopcli.visualization.layout import CAPTION, GAP, TITLE, edged, grid, page, page_width, paragraph
from plopcli.visualization.overlay import (
    PLAIN,
    Labels,
    Photo,
    Sides,
    Style,
    draw_errors,
    draw_labels,
    fitted_size,
    legends,
    resize_labels,
    resize_photo,
)

#: Pixels that the columns of a sheet share, and the least that one gets.
_SHEET_WIDTH = 2400
_LEAST_SIDE = 128
_MOST_SIDE = 320
FRAME_SIDES: Sides = (240, 288)
_NAMES_SHOWN = 3


@dataclass(frozen=True)
class Steps:
    """One image through the steps of runs.

    Attributes:
        title: What the image is called.
        image: The photograph (H, W, 3).
        truths: Its annotation (H, W) as the model of each step is measured on it; None where there is none.
        captions: What each step is called.
        runs: Name of each run and its label maps (H, W), one per step.
    """

    title: str
    image: Photo
    truths: Sequence[Labels] | None
    captions: Sequence[str]
    runs: Sequence[tuple[str, Sequence[Labels]]]

    def fitted(self, sides: Sides) -> Steps:
        """The same at the size that it is drawn at."""
        size = fitted_size(self.image.shape[:2], sides)
        runs = [(name, [resize_labels(labels, size) for labels in maps]) for name, maps in self.runs]
        truths = None if self.truths is None else [resize_labels(truth, size) for truth in self.truths]
        return Steps(self.title, resize_photo(self.image, size), truths, self.captions, runs)

    def errors(self, style: Style) -> list[list[Labels]]:
        """The error maps of each run, one per step; none without truth, or where ``style`` has none."""
        if self.truths is None or not style.errors:
            return []
        errors = partial(error_map, base=style.base, background=style.background)
        return [list(map(errors, self.truths, maps)) for _, maps in self.runs]

    def labels(self) -> list[Labels]:
        """Every label map that is shown: the predictions, and the truth of all classes."""
        shown = [labels for _, maps in self.runs for labels in maps]
        return shown if self.truths is None else [*shown, self.truths[-1]]


def step_caption(step: int, new: Sequence[str], kind: str = "classes") -> str:
    """What a step added, in few words: ``step 3: + star``.

    ``new`` names the classes (without background) or domains that it added; ``kind`` is what to call many of them.
    """
    if step == 0 and len(new) > 1:
        return f"step 0: {len(new)} {kind}"
    if len(new) > _NAMES_SHOWN:
        return f"step {step}: + {len(new)} {kind}"
    return f"step {step}: {'+ ' if step else ''}{', '.join(new)}"


def step_sheet(shown: Steps, names: Sequence[str], palette: Palette, style: Style = PLAIN) -> Image.Image:
    """Image and truth, then a column per step; a row per run, and one for its error maps.

    Columns share some 2400 pixels, 128 to 320 each.
    """
    leading = ["image"] if shown.truths is None else ["image", "ground truth"]
    most = min(max(_SHEET_WIDTH // (len(leading) + len(shown.captions)) - GAP, _LEAST_SIDE), _MOST_SIDE)
    all_maps = shown.labels()
    shown = shown.fitted((min(256, most), most))
    height, width = shown.image.shape[:2]
    errors = shown.errors(style)
    first = [edged(Image.fromarray(shown.image))]
    if shown.truths is not None:
        first.append(draw_labels(shown.image, shown.truths[-1], palette, style))
    blank = [Image.new("RGB", (1, 1), (255, 255, 255))] * len(leading)
    cells = [[paragraph(text, CAPTION, max(width, most // 2)) for text in ("", *leading, *shown.captions)]]
    for number, (name, maps) in enumerate(shown.runs):
        # A single run is named in the title.
        side = [_upright(name if len(shown.runs) > 1 else "", height)]
        predictions = [draw_labels(shown.image, labels, palette, style) for labels in maps]
        cells.append(side + (blank if number else first) + predictions)
        if errors:
            pictures = [draw_errors(kinds) for kinds in errors[number]]
            cells.append([_upright("errors", height), *blank, *pictures])
    kinds = [kinds for of_run in errors for kinds in of_run]
    title = shown.title if len(shown.runs) > 1 else f"{shown.title}   ({shown.runs[0][0]})"
    return page(grid(cells), legends(style, names, palette, all_maps, kinds), title)


def step_frames(
    shown: Steps, names: Sequence[str], palette: Palette, style: Style = PLAIN, sides: Sides = FRAME_SIDES
) -> list[Image.Image]:
    """A picture per step, all of one size: its caption, the image, the truth, the prediction of each run.

    ``sides`` is the range of the longer side of each picture.
    """
    all_maps = shown.labels()
    shown = shown.fitted(sides)
    errors = shown.errors(style)
    first = [edged(Image.fromarray(shown.image))]
    leading = ["image"]
    if shown.truths is not None:
        first.append(draw_labels(shown.image, shown.truths[-1], palette, style))
        leading.append("ground truth")
    side = max(shown.image.shape[:2])
    captions = [paragraph(text, CAPTION, side) for text in (*leading, *(name for name, _ in shown.runs))]
    bodies = []
    for step in range(len(shown.captions)):
        predictions = [draw_labels(shown.image, maps[step], palette, style) for _, maps in shown.runs]
        cells = [captions, first + predictions]
        if errors:
            blank = Image.new("RGB", (1, 1), (255, 255, 255))
            of_step = [draw_errors(of_run[step]) for of_run in errors]
            above = [paragraph(f"{name}: errors", CAPTION, side) for name, _ in shown.runs]
            cells += [[*[blank] * len(first), *above], [*[blank] * len(first), *of_step]]
        bodies.append(grid(cells))
    width = page_width(bodies[0].width)
    # A caption of two lines must not move the pictures below it.
    tallest = max(paragraph(caption, TITLE, width).height for caption in shown.captions)
    listed = legends(style, names, palette, all_maps, [kinds for of_run in errors for kinds in of_run])
    return [
        page(body, listed, paragraph(caption, TITLE, width, tallest))
        for caption, body in zip(shown.captions, bodies, strict=True)
    ]


def _upright(text: str, height: int) -> Image.Image:
    return paragraph(text, CAPTION, height).rotate(90, expand=True)
