"""Predictions as files: which ids and colours they hold."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from plopcli.data.datasets import Sample, class_facts, load_dataset
from plopcli.evaluation.saved_predictions import PredictionFiles, mask_ids_of

FACTS = class_facts()["cityscapes"]


def checkpoint(dataset: str, classes: int, order: tuple[int, ...] = ()) -> Any:
    names = [f"class {number}" for number in range(classes)]
    settings = {"data": {"dataset": dataset}}
    return SimpleNamespace(classes=names, task=SimpleNamespace(order=order), settings=settings)


def test_ids_are_those_of_the_masks_whatever_the_order_of_learning(city_root: Path) -> None:
    data = load_dataset("cityscapes", city_root)
    of_label = {entry["train_id"] + 1: entry["label_id"] for entry in FACTS}
    ids = mask_ids_of(checkpoint("cityscapes", 4, (0, 14, 1, 19, 2, 3)), data)
    # The masks know no background: what is not learned yet has many ids there.
    assert ids.tolist() == [255, of_label[14], of_label[1], of_label[19]]


def test_where_steps_bring_domains_all_classes_are_there(city_root: Path) -> None:
    data = load_dataset("cityscapes-domain", city_root)
    ids = mask_ids_of(checkpoint("cityscapes-domain", 19, (3, 0, 1)), data)
    assert ids.tolist() == [entry["label_id"] for entry in sorted(FACTS, key=lambda entry: entry["train_id"])]


def test_files_have_the_colours_of_the_data_set(city_root: Path, tmp_path: Path) -> None:
    data = load_dataset("cityscapes-domain", city_root)
    learned = np.arange(19, dtype=np.uint8).reshape(1, 19)
    write = PredictionFiles(tmp_path / "step-0", checkpoint("cityscapes-domain", 19), data)
    write(Sample("aachen_1", Path(), Path()), learned)
    with Image.open(tmp_path / "step-0" / "aachen_1.png") as picture:
        assert picture.mode == "P"
        colours = np.asarray(picture.convert("RGB"))[0]
    expected = [entry["color"] for entry in sorted(FACTS, key=lambda entry: entry["train_id"])]
    assert colours.tolist() == expected
