from __future__ import annotations

import numpy as np
import pytest

from plopcli.visualization.palette import VOID, class_colours, voc_palette


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


def test_class_colours_default_to_the_voc_map() -> None:
    np.testing.assert_array_equal(class_colours(150), voc_palette(150))


def test_own_colours_come_first_and_the_rest_is_far_from_them() -> None:
    own = np.array([(0, 0, 0), (250, 0, 0), (60, 60, 60)], dtype=np.uint8)
    colours = class_colours(12, own)
    np.testing.assert_array_equal(colours[:3], own)
    distances = np.linalg.norm(colours[:, None].astype(float) - colours[None], axis=2) + 1e9 * np.eye(12)
    assert distances[3:].min() > 90


def test_own_colours_are_enough_for_fewer_classes() -> None:
    own = np.array([(1, 2, 3), (4, 5, 6), (7, 8, 9)], dtype=np.uint8)
    np.testing.assert_array_equal(class_colours(2, own), own[:2])


def test_every_label_below_void_can_have_its_own_colour() -> None:
    assert len(np.unique(class_colours(VOID, voc_palette(30)), axis=0)) == VOID
