from __future__ import annotations

import numpy as np

from plopcli.data.palettes import VOID, cielab
from plopcli.visualization.error_map import ERROR_PALETTE, Kind, error_map, error_names, share_right
from plopcli.visualization.overlay import colourise

RIGHT, OLD, NEW, MISSED = Kind.RIGHT, Kind.WRONG_OLD, Kind.WRONG_NEW, Kind.MISSED
# Labels 0 to 2 are old, 3 and 4 new.
TRUTH = np.array([[0, 0, 0, 1, 1, 1, 1, 3, 3, 3, VOID, VOID]])
PREDICTION = np.array([[0, 2, 4, 1, 0, 2, 3, 3, 4, 0, 0, 3]])
KINDS = [[RIGHT, OLD, NEW, RIGHT, MISSED, OLD, NEW, RIGHT, NEW, MISSED, VOID, VOID]]


def test_the_kinds_of_every_case() -> None:
    np.testing.assert_array_equal(error_map(TRUTH, PREDICTION, 3), KINDS)


def test_their_colours_are_exact() -> None:
    drawn = colourise(error_map(TRUTH, PREDICTION, 3), ERROR_PALETTE)
    colours = {RIGHT: (214, 232, 214), OLD: (230, 150, 0), NEW: (190, 0, 110), MISSED: (30, 60, 160)}
    for column, kind in enumerate(KINDS[0][:-2]):
        assert tuple(drawn[0, column]) == colours[Kind(kind)]
    assert not {tuple(colour) for colour in drawn[0, -2:].tolist()} & set(colours.values()), "void is hatched"


def test_without_old_and_new_classes_and_without_background() -> None:
    """Where steps bring domains, label 0 is a class like the others, and an error is an error."""
    kinds = error_map(TRUTH, PREDICTION, None, background=False)
    expected = [[OLD if kind in (NEW, MISSED) else kind for kind in KINDS[0]]]
    np.testing.assert_array_equal(kinds, expected)
    assert error_names(None)[OLD] == "wrong: another class"
    assert error_names(3)[OLD] == "wrong: drawn as an old class"


def test_the_share_that_is_right_counts_no_void() -> None:
    assert share_right(error_map(TRUTH, PREDICTION, 3)) == 0.3
    assert share_right(np.full((2, 2), VOID, dtype=np.uint8)) is None


def test_the_colours_are_far_apart() -> None:
    lab = cielab(np.array([*ERROR_PALETTE.tolist(), (255, 255, 255), (236, 236, 236), (0, 0, 0)]))
    distances = np.linalg.norm(lab[:, None] - lab[None], axis=2) + 1e3 * np.eye(len(lab))
    assert distances[:4, :4].min() > 40
    assert distances[:4].min() > 10
