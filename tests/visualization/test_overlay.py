from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from plopcli.data.palettes import VOID, Palette, voc_palette
from plopcli.visualization.error_map import ERROR_PALETTE, Kind
from plopcli.visualization.layout import edged, grid
from plopcli.visualization.overlay import (
    SheetRow,
    Style,
    blend,
    colourise,
    draw_labels,
    legend_entries,
    prediction_sheet,
    render_panel,
)

NAMES = ["background", "cat", "dog", "horse", "zebra"]
CAT, DOG, HORSE, ZEBRA = 1, 2, 3, 4
MARGIN = 14


@pytest.fixture
def palette() -> Palette:
    return voc_palette(len(NAMES))


def photograph(height: int, width: int) -> np.ndarray:
    """A photograph of greys, so that no pixel has the colour of a class."""
    grey = np.random.default_rng(0).integers(90, 120, size=(height, width, 1))
    return np.repeat(grey, 3, axis=2).astype(np.uint8)


def two_animals(height: int, width: int) -> np.ndarray:
    labels = np.zeros((height, width), dtype=np.uint8)
    labels[height // 4 : height // 2, width // 4 : width // 2] = CAT
    labels[height // 4 : height // 2, width // 2 : 3 * width // 4] = DOG
    return labels


def colours_of(picture: Image.Image) -> set[tuple[int, ...]]:
    return {tuple(colour) for colour in np.unique(np.asarray(picture).reshape(-1, 3), axis=0).tolist()}


def shows(picture: Image.Image, palette: Palette, label: int) -> bool:
    return bool((np.asarray(picture) == palette[label]).all(axis=2).any())


def assert_nothing_is_cut(picture: Image.Image) -> None:
    """Everything stays inside the white margin."""
    pixels = np.asarray(picture).copy()
    pixels[MARGIN:-MARGIN, MARGIN:-MARGIN] = 255
    assert (pixels == 255).all()


def test_colourise_uses_the_palette_and_hatches_void(palette: Palette) -> None:
    labels = two_animals(32, 32)
    labels[-8:] = VOID
    coloured = colourise(labels, palette)
    np.testing.assert_array_equal(coloured[:-8], palette[labels[:-8]])
    void = coloured[-8:]
    assert void.min() > 150
    assert len(np.unique(void)) == 2


def test_blend_leaves_the_background_alone(palette: Palette) -> None:
    image, labels = photograph(40, 60), two_animals(40, 60)
    blended = blend(image, labels, palette)
    np.testing.assert_array_equal(blended[labels == 0], image[labels == 0])
    assert (blended[labels != 0] != image[labels != 0]).any(axis=1).all()


def test_blend_mixes_by_opacity_inside_a_class(palette: Palette) -> None:
    image, labels = photograph(40, 60), two_animals(40, 60)
    at = (15, 20)
    assert labels[at] == CAT
    expected = 0.75 * image[at].astype(float) + 0.25 * palette[CAT]
    np.testing.assert_allclose(blend(image, labels, palette, opacity=0.25)[at], expected, atol=0.5)
    np.testing.assert_array_equal(blend(image, labels, palette, opacity=1.0)[at], palette[CAT])
    np.testing.assert_array_equal(blend(image, labels, palette, opacity=0.0)[at], image[at])


def test_blend_draws_a_contour_of_one_pixel_between_classes(palette: Palette) -> None:
    image, labels = photograph(40, 40), two_animals(40, 40)
    white = (blend(image, labels, palette) == 255).all(axis=2)
    row = 15
    assert np.flatnonzero(white[row]).tolist() == [10, 20, 29]  # left of the cat, cat to dog, right of the dog
    assert not white[labels == 0].any()


def test_blend_draws_no_contour_against_void_but_hatches_it(palette: Palette) -> None:
    image = photograph(24, 24)
    labels = np.full((24, 24), CAT)
    labels[:, 12:] = VOID
    blended = blend(image, labels, palette)
    assert not (blended == 255).all(axis=2).any()
    assert (blended[:, 12:] > image[:, 12:]).all()


def test_blend_does_not_change_its_inputs(palette: Palette) -> None:
    image, labels = photograph(16, 16), two_animals(16, 16)
    labels[0] = VOID
    image_before, labels_before = image.copy(), labels.copy()
    blend(image, labels, palette)
    np.testing.assert_array_equal(image, image_before)
    np.testing.assert_array_equal(labels, labels_before)


def test_legend_lists_only_what_is_present() -> None:
    prediction, truth = np.array([[0, DOG]]), np.array([[VOID, HORSE]])
    assert legend_entries(NAMES, prediction) == [(0, "background"), (DOG, "dog")]
    entries = legend_entries(NAMES, prediction, truth)
    assert entries == [(0, "background"), (DOG, "dog"), (HORSE, "horse"), (VOID, "void")]


@pytest.mark.parametrize(
    ("height", "width", "panel"),
    [
        (96, 96, (288, 288)),
        (64, 96, (192, 288)),
        (200, 200, (400, 400)),
        (300, 200, (300, 200)),
        (375, 500, (375, 500)),
        (768, 1024, (384, 512)),
    ],
)
def test_panels_have_a_readable_size(palette: Palette, height: int, width: int, panel: tuple[int, int]) -> None:
    sheet = render_panel(photograph(height, width), np.full((height, width), ZEBRA), NAMES, palette)
    prediction = (np.asarray(sheet) == palette[ZEBRA]).all(axis=2)
    prediction[-50:] = False  # the legend
    rows, columns = prediction.nonzero()
    assert (rows.max() - rows.min() + 1, columns.max() - columns.min() + 1) == panel
    assert sheet.width == 3 * panel[1] + 2 * 10 + 2 * MARGIN


def test_a_panel_shows_title_truth_and_the_classes_of_both(palette: Palette) -> None:
    image, prediction = photograph(96, 96), two_animals(96, 96)
    truth = np.where(prediction == DOG, HORSE, prediction)
    plain = render_panel(image, prediction, NAMES, palette)
    full = render_panel(image, prediction, NAMES, palette, truth=truth, title="a title")
    assert full.width > plain.width
    assert full.height > plain.height
    assert not shows(plain, palette, HORSE)
    assert shows(full, palette, HORSE)
    assert not shows(full, palette, ZEBRA)


def test_labels_of_small_images_are_enlarged_to_whole_squares(palette: Palette) -> None:
    checker = (np.indices((96, 96)).sum(axis=0) % 2).astype(np.int64)
    sheet = np.asarray(render_panel(photograph(96, 96), checker, NAMES, palette))
    assert {tuple(colour) for colour in sheet[200, 14 + 298 : 14 + 298 + 288]} == {(0, 0, 0), (128, 0, 0)}
    reds = (sheet[200, 14 + 298 : 14 + 298 + 288] == palette[CAT]).all(axis=1)
    assert np.flatnonzero(np.diff(reds.astype(int))).tolist() == list(range(2, 285, 3))


@pytest.mark.parametrize(("height", "width"), [(200, 12), (12, 200)])
def test_nothing_is_cut_whatever_the_names(height: int, width: int) -> None:
    names = ["background", "x" * 90, "Fußgänger – человек", "a name of several words " * 4, "z"]
    labels = np.resize(np.arange(5), (height, width))
    sheet = render_panel(photograph(height, width), labels, names, voc_palette(5), title="long_title" * 20)
    assert_nothing_is_cut(sheet)


def test_the_legend_wraps_over_several_lines() -> None:
    names = [f"class number {label}" for label in range(60)]
    labels = np.resize(np.arange(60, dtype=np.uint8), (96, 96))
    few = render_panel(photograph(96, 96), labels % 3, names, voc_palette(60))
    many = render_panel(photograph(96, 96), labels, names, voc_palette(60))
    assert many.width == few.width
    assert many.height > few.height + 100
    assert_nothing_is_cut(many)
    assert shows(many, voc_palette(60), 59)


def test_a_name_outside_ascii_is_drawn_with_its_letters(palette: Palette) -> None:
    labels = np.full((96, 96), CAT)
    sheets = [
        render_panel(photograph(96, 96), labels, ["background", name], palette).tobytes() for name in ("Kü", "Kö", "Kч")
    ]
    assert len(set(sheets)) == 3


def test_a_grid_centres_pictures_in_cells(palette: Palette) -> None:
    pictures = [Image.new("RGB", (50, 20 + 10 * number), (0, number, 0)) for number in range(5)]
    sheet = grid([pictures[:2], pictures[2:4], pictures[4:]])
    assert sheet.size == (50 * 2 + 10, 30 + 50 + 60 + 2 * 10)
    assert colours_of(sheet) == {(0, number, 0) for number in range(5)} | {(255, 255, 255)}


def test_prediction_sheet_has_a_column_per_prediction_and_one_legend(palette: Palette) -> None:
    image, truth = photograph(96, 96), two_animals(96, 96)
    forgotten = np.where(truth == CAT, 0, truth)
    rows = [SheetRow(f"image {number}", image, truth, [("PLOP", truth), ("FT", forgotten)]) for number in range(2)]
    sheet = prediction_sheet(rows, NAMES, palette)
    assert_nothing_is_cut(sheet)
    cats = (np.asarray(sheet) == palette[CAT]).all(axis=2)
    squares = 24 * 24 * 9  # a quarter of 96 pixels squared, enlarged three times
    swatch = cats.sum() - 2 * 2 * squares  # two images, in the truth and in the prediction of PLOP
    assert 100 < swatch <= 16 * 16
    wider = prediction_sheet(
        [row._replace(predictions=[*row.predictions, ("MiB", truth)]) for row in rows], NAMES, palette
    )
    assert wider.width == sheet.width + 288 + 10
    assert wider.height == sheet.height


def test_prediction_sheet_takes_images_of_different_shapes(palette: Palette) -> None:
    rows = [
        SheetRow("", photograph(height, width), two_animals(height, width), [("FT", two_animals(height, width))])
        for height, width in ((96, 96), (500, 375), (60, 400))
    ]
    assert_nothing_is_cut(prediction_sheet(rows, NAMES, palette))


def test_rows_with_different_columns_are_our_own_mistake(palette: Palette) -> None:
    image, truth = photograph(32, 32), two_animals(32, 32)
    rows = [SheetRow("", image, truth, [(heading, truth)]) for heading in ("PLOP", "FT")]
    with pytest.raises(AssertionError, match="columns"):
        prediction_sheet(rows, NAMES, palette)


def test_where_there_is_no_background_label_0_is_covered_as_well() -> None:
    image, labels = photograph(16, 16), np.zeros((16, 16), dtype=np.int64)
    palette = np.array([[128, 64, 128]], dtype=np.uint8)
    np.testing.assert_array_equal(blend(image, labels, palette, opacity=1.0), image)
    covered = blend(image, labels, palette, opacity=1.0, background=False)
    np.testing.assert_array_equal(covered, np.broadcast_to(palette[0], covered.shape))


@pytest.mark.parametrize("background", [True, False])
def test_opacity_0_is_the_photograph_and_1_the_classes(palette: Palette, background: bool) -> None:
    image, labels = photograph(40, 60), two_animals(40, 60)
    labels[-5:] = VOID
    clear = blend(image, labels, palette, 0.0, background=background, contours=False)
    np.testing.assert_array_equal(clear, image)
    covered = blend(image, labels, palette, 1.0, background=background, contours=False)
    expected = colourise(labels, palette)
    if background:
        expected[labels == 0] = image[labels == 0]
    np.testing.assert_array_equal(covered, expected)


def test_label_maps_of_sheets_are_plain_unless_asked_otherwise(palette: Palette) -> None:
    image, labels = photograph(40, 60), two_animals(40, 60)
    plain = colourise(labels, palette)

    def drawn(**style: float | bool) -> np.ndarray:
        return np.asarray(draw_labels(image, labels, palette, Style(**style)))  # type: ignore[arg-type]

    np.testing.assert_array_equal(drawn(), plain)
    np.testing.assert_array_equal(drawn(opacity=0.3), blend(image, labels, palette, 0.3))
    np.testing.assert_array_equal(
        drawn(opacity=0.3, contours=False), blend(image, labels, palette, 0.3, contours=False)
    )
    lined = drawn(contours=True)
    border = (lined == 255).all(axis=2)
    assert np.flatnonzero(border[15]).tolist() == [15, 30, 44]  # left of the cat, cat to dog, right of the dog
    np.testing.assert_array_equal(lined[~border], plain[~border])


def test_a_panel_obeys_its_style(palette: Palette) -> None:
    image, labels = photograph(96, 96), two_animals(96, 96)
    mixed = (0.5 * image[40, 30].astype(float) + 0.5 * palette[CAT]).round()

    def panel(**style: float | bool) -> np.ndarray:
        return np.asarray(render_panel(image, labels, NAMES, palette, style=Style(**style)))  # type: ignore[arg-type]

    plain = panel()
    beginning = 14 + 2 * 298
    blended = plain[: 14 + 21 + 10 + 288, beginning : beginning + 288]
    assert (blended == 255).all(axis=2)[100:].any(), "contours"
    assert not (panel(contours=False)[100 : 14 + 21 + 10 + 280, beginning : beginning + 288] == 255).all(axis=2).any()
    assert panel(legend=False).shape[0] < plain.shape[0]
    assert panel(legend=False).shape[1] == plain.shape[1]
    at = (14 + 21 + 10 + 40 * 3 + 1, beginning + 30 * 3 + 1)
    assert np.abs(plain[at] - mixed).max() <= 8, "enlarged between its neighbours"
    np.testing.assert_array_equal(panel(opacity=1.0)[at], palette[CAT])


def test_a_panel_shows_errors_in_their_colours_and_how_much_is_right(palette: Palette) -> None:
    image, truth = photograph(96, 96), two_animals(96, 96)
    prediction = truth.copy()
    prediction[truth == CAT] = 0
    prediction[truth == DOG] = ZEBRA
    style = Style(errors=True, base=3)
    without = render_panel(image, prediction, NAMES, palette, truth, style=Style(base=3))
    sheet = render_panel(image, prediction, NAMES, palette, truth, style=style)
    assert sheet.width == without.width + 288 + 10
    assert_nothing_is_cut(sheet)
    square = 24 * 24 * 9
    for kind, pixels in ((Kind.MISSED, square), (Kind.WRONG_NEW, square), (Kind.RIGHT, 288 * 288 - 2 * square)):
        found = int((np.asarray(sheet) == ERROR_PALETTE[kind]).all(axis=2).sum())
        assert 100 < found - pixels <= 16 * 16, "the map, and the square of the legend"
    assert not shows(sheet, ERROR_PALETTE, Kind.WRONG_OLD)
    assert render_panel(image, prediction, NAMES, palette, style=style).width < without.width, "no truth, no errors"


def test_a_sheet_shows_errors_beside_each_prediction(palette: Palette) -> None:
    image, truth = photograph(96, 96), two_animals(96, 96)
    rows = [SheetRow("x", image, truth, [("PLOP", truth), ("FT", np.zeros_like(truth))])]
    plain = prediction_sheet(rows, NAMES, palette)
    sheet = prediction_sheet(rows, NAMES, palette, Style(errors=True, base=3))
    assert sheet.width == plain.width + 2 * (288 + 10)
    missed = (np.asarray(sheet) == ERROR_PALETTE[Kind.MISSED]).all(axis=2).sum()
    assert 100 < missed - 2 * 24 * 24 * 9 <= 16 * 16


def test_the_class_that_is_called_void_is_not_what_is_not_counted() -> None:
    assert legend_entries(["void", "wall"], np.array([[0, VOID]])) == [(0, "void"), (VOID, "not counted")]


def test_a_photograph_that_is_as_bright_as_the_paper_gets_an_edge() -> None:
    bright = Image.new("RGB", (30, 20), (250, 250, 250))
    lined = np.asarray(edged(bright))
    assert (lined[0] < 200).all()
    assert (lined[:, -1] < 200).all()
    np.testing.assert_array_equal(lined[1:-1, 1:-1], 250)
    dark = Image.new("RGB", (30, 20), (90, 90, 90))
    np.testing.assert_array_equal(np.asarray(edged(dark)), 90)
    assert edged(Image.new("RGB", (1, 1), (255, 255, 255))).size == (1, 1)
