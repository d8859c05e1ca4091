from __future__ import annotations

import numpy as np
import pytest

from plopcli.data.colours import class_palette
from plopcli.data.palettes import CLOSE, VOID, Palette, cielab, class_colours, voc_palette


def distances(colours: Palette) -> np.ndarray:
    """Between each two of them in CIE Lab."""
    lab = cielab(colours)
    return np.linalg.norm(lab[:, None] - lab[None], axis=2)[~np.eye(len(lab), dtype=bool)]


@pytest.mark.parametrize(
    ("label", "colour"),
    [
        (0, (0, 0, 0)),
        (1, (128, 0, 0)),
        (2, (0, 128, 0)),
        (4, (0, 0, 128)),
        (8, (64, 0, 0)),
        (15, (192, 128, 128)),
        (20, (0, 64, 128)),
        (VOID, (224, 224, 192)),
    ],
)
def test_the_voc_colour_map(label: int, colour: tuple[int, int, int]) -> None:
    assert tuple(voc_palette()[label]) == colour


def test_voc_colours_differ_and_neighbours_are_far_apart() -> None:
    palette = voc_palette()
    assert palette.shape == (256, 3)
    assert palette.dtype == np.uint8
    assert len(np.unique(palette, axis=0)) == 256
    steps = np.linalg.norm(np.diff(palette.astype(float), axis=0), axis=1)
    assert steps.min() >= 128


def test_a_short_palette_is_the_beginning_of_the_long_one() -> None:
    np.testing.assert_array_equal(voc_palette(21), voc_palette()[:21])


def test_cie_lab_of_known_colours() -> None:
    colours = np.array([(0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 0, 255), (119, 119, 119)])
    expected = [(0, 0, 0), (100, 0, 0), (53.24, 80.09, 67.20), (32.30, 79.19, -107.86), (50.03, 0, 0)]
    np.testing.assert_allclose(cielab(colours), expected, atol=0.05)


@pytest.mark.parametrize(("count", "apart"), [(21, 35), (51, 22), (151, 12), (VOID, 10)])
def test_chosen_colours_are_far_apart(count: int, apart: float) -> None:
    """Those of the VOC map are 8.8 apart at the least, with 20 classes: bus and motorbike."""
    colours = class_colours(count)
    assert colours[0].tolist() == [0, 0, 0]
    assert distances(colours).min() > apart
    away = cielab(np.array([(255, 255, 255), (206, 206, 206)]))  # of paper and contours, and of void
    assert np.linalg.norm(cielab(colours)[:, None] - away, axis=2).min() > 10
    assert distances(voc_palette(21)).min() < 9


def test_a_class_has_the_same_colour_however_many_there_are() -> None:
    np.testing.assert_array_equal(class_colours(40)[:21], class_colours(21))


def test_of_two_colours_that_look_alike_the_later_is_another() -> None:
    base = np.array([(0, 0, 0), (140, 140, 140), (0, 200, 0), (140, 140, 140), (141, 140, 140)], dtype=np.uint8)
    colours = class_colours(5, base)
    np.testing.assert_array_equal(colours[:3], base[:3])
    assert distances(colours).min() > 40
    ade = class_palette("ade")
    assert ade is not None
    assert distances(ade).min() == 0, "road and skyscraper"
    drawn = class_colours(len(ade), ade)
    assert distances(drawn).min() >= CLOSE
    assert (drawn == ade).all(axis=1).sum() > 130, "nearly all keep theirs"


@pytest.mark.parametrize("name", ["voc", "cityscapes"])
def test_palettes_whose_colours_differ_stay_as_they_are(name: str) -> None:
    base = class_palette(name)
    assert base is not None
    np.testing.assert_array_equal(class_colours(len(base), base), base)


def test_own_colours_come_first_and_the_rest_is_far_from_them() -> None:
    own = np.array([(0, 0, 0), (250, 0, 0), (60, 60, 60)], dtype=np.uint8)
    colours = class_colours(12, own)
    np.testing.assert_array_equal(colours[:3], own)
    assert distances(colours[3:]).min() > 40


def test_own_colours_are_enough_for_fewer_classes() -> None:
    own = np.array([(1, 2, 3), (40, 50, 60), (70, 80, 90)], dtype=np.uint8)
    np.testing.assert_array_equal(class_colours(2, own), own[:2])


def test_every_label_below_void_can_have_its_own_colour() -> None:
    assert len(np.unique(class_colours(VOID, voc_palette(30)), axis=0)) == VOID
