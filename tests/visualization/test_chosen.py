from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plopcli.data.palettes import class_colours, voc_palette
from plopcli.errors import DataError, UsageError
from plopcli.runs.checkpoint import Checkpoint
from plopcli.runs.learned import learned_colours
from plopcli.visualization.chosen import DISTINCT, chosen_colours

Make = Callable[..., Checkpoint]


@pytest.fixture
def learned() -> Make:
    def make(classes: list[str], dataset: str = "folder", steps: list[list[int]] | None = None) -> Checkpoint:
        settings: dict[str, Any] = {"data": {"dataset": dataset}}
        order = steps or [list(range(len(classes)))]
        return Checkpoint(0, classes, [len(classes)], "mine", order, order, settings, {})

    return make


def test_by_default_a_data_set_has_its_own_colours(learned: Make) -> None:
    voc = learned(["background", "cat"], "voc", [[0, 8], [3]])
    np.testing.assert_array_equal(chosen_colours(voc, None), voc_palette()[[0, 8, 3]])
    own = learned(["background", "cat"])
    np.testing.assert_array_equal(chosen_colours(own, None), learned_colours(own))


def test_distinct_colours_go_by_the_label(learned: Make) -> None:
    voc = learned(["background", "cat"], "voc", [[0, 8], [3]])
    np.testing.assert_array_equal(chosen_colours(voc, DISTINCT), class_colours(9)[[0, 8, 3]])
    cities = learned(["road", "car"], "cityscapes-domain", [[0], [1]])
    np.testing.assert_array_equal(chosen_colours(cities, DISTINCT), class_colours(2))


def test_a_named_palette_goes_by_the_name(learned: Make) -> None:
    colours = chosen_colours(learned(["background", "Car", "tractor", "road"]), "cityscapes")
    assert colours[[0, 1, 3]].tolist() == [[0, 0, 0], [0, 0, 142], [128, 64, 128]]
    assert np.abs(colours[2].astype(int) - colours[[0, 1, 3]]).max(axis=1).min() > 60


def test_a_palette_from_a_file(learned: Make, tmp_path: Path) -> None:
    file = tmp_path / "colours.txt"
    file.write_text("#ff8000 cat\n1 2 3 dog\n9 9 9 ignored\n")
    colours = chosen_colours(learned(["background", "dog", "cat"]), str(file))
    assert colours.tolist() == [[0, 0, 0], [1, 2, 3], [255, 128, 0]], "as asked for, however close"
    with pytest.raises(DataError, match="There is no palette nowhere"):
        chosen_colours(learned(["background", "dog"]), "nowhere")
    with pytest.raises(UsageError, match="names no class of the model") as refused:
        chosen_colours(learned(["background", "horse"]), str(file))
    assert "--palette distinct" in str(refused.value.hint)
