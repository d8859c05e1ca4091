from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from plopcli.data.palettes import Palette, class_colours
from plopcli.visualization.error_map import ERROR_PALETTE, Kind
from plopcli.visualization.overlay import Style
from plopcli.visualization.steps import Steps, step_caption, step_frames, step_sheet

NAMES = ["background", "cat", "dog", "horse", "zebra"]
SIDE = 64
MARGIN = 14


@pytest.fixture
def palette() -> Palette:
    return class_colours(len(NAMES))


def runs(count: int, steps: int) -> Steps:
    """After step s, run r sees class s + 1 everywhere, but for one row of pixels per run that is background."""
    image = np.full((SIDE, SIDE, 3), 100, dtype=np.uint8)
    maps = [np.full((SIDE, SIDE), step + 1, dtype=np.uint8) for step in range(steps)]
    truths = [np.ones((SIDE, SIDE), dtype=np.uint8)] * steps
    captions = [step_caption(step, [NAMES[step + 1]]) for step in range(steps)]
    return Steps("a picture", image, truths, captions, [(f"run {number}", maps) for number in range(count)])


def blocks(picture: Image.Image, colour: np.ndarray) -> tuple[int, int]:
    """In how many columns and lines of pictures a colour is found; the legend is too small to count."""
    found = (np.asarray(picture) == colour).all(axis=2)
    wide = found.sum(axis=0) > 40
    high = found.sum(axis=1) > 40
    return int((np.diff(wide.astype(int)) == 1).sum()), int((np.diff(high.astype(int)) == 1).sum())


@pytest.mark.parametrize(
    ("step", "new", "caption"),
    [
        (0, NAMES[1:], "step 0: 4 classes"),
        (0, ["cat"], "step 0: cat"),
        (3, ["star"], "step 3: + star"),
        (1, ["a", "b", "c"], "step 1: + a, b, c"),
        (1, ["a", "b", "c", "d"], "step 1: + 4 classes"),
    ],
)
def test_captions_tell_what_is_new(step: int, new: list[str], caption: str) -> None:
    assert step_caption(step, new) == caption
    assert step_caption(2, list("abcd"), "domains") == "step 2: + 4 domains"


def test_a_sheet_has_a_column_per_step_and_a_line_per_run(palette: Palette) -> None:
    sheet = step_sheet(runs(2, 4), NAMES, palette)
    # The truth is cats, and so is what both runs see after step 0.
    assert blocks(sheet, palette[1]) == (2, 2)
    for label in (2, 3, 4):
        assert blocks(sheet, palette[label]) == (1, 2)
    wider = step_sheet(runs(2, 3), NAMES, palette)
    assert sheet.width - wider.width == 256 + 10


def test_errors_get_a_line_of_their_own(palette: Palette) -> None:
    plain = step_sheet(runs(2, 3), NAMES, palette)
    sheet = step_sheet(runs(2, 3), NAMES, palette, Style(errors=True, base=2))
    assert sheet.height > plain.height + 2 * 256
    assert blocks(sheet, ERROR_PALETTE[Kind.RIGHT]) == (1, 2), "after step 0 all is right"
    assert blocks(sheet, ERROR_PALETTE[Kind.WRONG_NEW]) == (2, 2)
    assert blocks(plain, ERROR_PALETTE[Kind.RIGHT]) == (0, 0)


def test_many_steps_still_fit_on_a_sheet() -> None:
    names = [f"class {label}" for label in range(25)]
    image = np.full((300, 400, 3), 100, dtype=np.uint8)
    maps = [np.full((300, 400), label, dtype=np.uint8) for label in range(20)]
    shown = Steps("x", image, None, [f"step {step}: + class {step}" for step in range(20)], [("plop", maps)])
    sheet = step_sheet(shown, names, class_colours(25))
    assert sheet.width < 3200
    pixels = np.asarray(sheet).copy()
    pixels[MARGIN:-MARGIN, MARGIN:-MARGIN] = 255
    assert (pixels == 255).all(), "nothing is cut"


def test_a_frame_per_step_all_of_one_size(palette: Palette) -> None:
    shown = runs(2, 4)
    captions = [*shown.captions[:-1], "step 3: + " + "a very long name of a class " * 8]
    frames = step_frames(Steps(shown.title, shown.image, shown.truths, captions, shown.runs), NAMES, palette)
    assert len(frames) == 4
    assert len({frame.size for frame in frames}) == 1
    for step, frame in enumerate(frames):
        both = 3 if step == 0 else 2  # the truth is what is seen after step 0
        assert blocks(frame, palette[step + 1])[0] == both
    assert all(one.tobytes() != other.tobytes() for one, other in pairwise(frames))
    # The truth stands still.
    columns = slice(MARGIN + 256 + 10, MARGIN + 2 * 256 + 10)
    np.testing.assert_array_equal(np.asarray(frames[1])[120:300, columns], np.asarray(frames[3])[120:300, columns])


def test_frames_show_errors_and_lay_classes_over_the_photograph(palette: Palette) -> None:
    plain = step_frames(runs(1, 2), NAMES, palette)
    errors = step_frames(runs(1, 2), NAMES, palette, Style(errors=True, base=2))
    assert errors[0].height > plain[0].height + 256
    assert blocks(errors[0], ERROR_PALETTE[Kind.RIGHT]) == (1, 1)
    assert blocks(errors[1], ERROR_PALETTE[Kind.WRONG_NEW]) == (1, 1)
    over = step_frames(runs(1, 2), NAMES, palette, Style(opacity=0.0))
    grey = np.array([100, 100, 100])
    assert blocks(plain[0], grey) == (1, 1)
    # Image, truth and prediction are all the photograph.
    assert blocks(over[0], grey) == (3, 1)
    assert step_frames(runs(1, 2), NAMES, palette, Style(legend=False))[0].height < plain[0].height
