"""Cityscapes, 19 classes: learned class after class, or city after city.

Masks hold label ids; those of the 19 classes that are evaluated are numbered anew, the others are ignored.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from plopcli.data.samples import Sample, SegmentationData, class_facts, files_by_stem, find_base, id_table
from plopcli.errors import DataError

_GET = "plop download cityscapes"
_IMAGES, _MASKS = "leftImg8bit", "gtFine"
#: The archives unpacked side by side, or each into a folder of its own name.
_IMAGE_BASES = (".", "leftImg8bit_trainvaltest")
_MASK_BASES = (".", "gtFine_trainvaltest")
#: The ids that the data set defines, from unlabeled (0) to bicycle (33); the licence plate's, -1, is saved as 255.
_LABEL_IDS = range(34)


def load_cityscapes(root: Path) -> SegmentationData:
    """Finds Cityscapes for learning classes: label 0 is a background that holds what is not learned yet.

    The images of val are the test split, as in all papers; those of test have no public labels.
    """
    classes = ("background", *(entry["name"] for entry in _classes()))
    label_of = {entry["label_id"]: entry["train_id"] + 1 for entry in _classes()}
    found, notes = _find(root, {"train": "train", "test": "val"})
    # Here a city is no more than a folder.
    splits = {split: tuple(replace(sample, domain="") for sample in samples) for split, samples in found.items()}
    return SegmentationData("cityscapes", root, classes, splits, id_table(label_of, _LABEL_IDS), notes=notes)


def load_cityscapes_domain(root: Path) -> SegmentationData:
    """Finds Cityscapes for learning cities: 19 classes in every step, no background; train and val are pooled."""
    classes = tuple(entry["name"] for entry in _classes())
    label_of = {entry["label_id"]: entry["train_id"] for entry in _classes()}
    cities = tuple(class_facts()["cityscapes_cities"]["order"])
    splits, notes = _find(root, {"train": "train", "val": "val"})
    pool = (*splits["train"], *splits["val"])
    if strange := sorted({sample.domain for sample in pool} - set(cities)):
        raise DataError(
            f"{root} holds the city {strange[0]}, which is none of the {len(cities)} of Cityscapes' train and val.",
            f"These are {', '.join(cities)}.",
        )
    table = id_table(label_of, _LABEL_IDS)
    return SegmentationData("cityscapes-domain", root, classes, {"all": pool}, table, cities, notes)


def _classes() -> list[dict[str, Any]]:
    classes: list[dict[str, Any]] = class_facts()["cityscapes"]
    return classes


def _find(root: Path, folders: dict[str, str]) -> tuple[dict[str, tuple[Sample, ...]], tuple[str, ...]]:
    """The samples of each split, in order of city and name, and what is missing."""
    image_root = find_base(root, _IMAGE_BASES, _IMAGES, _GET) / _IMAGES
    mask_root = find_base(root, _MASK_BASES, _MASKS, _GET) / _MASKS
    splits: dict[str, tuple[Sample, ...]] = {}
    notes = []
    for split, folder in folders.items():
        images, masks = image_root / folder, mask_root / folder
        if not images.is_dir():
            notes.append(f"{images} does not exist: there is nothing for {split}. Get it with: {_GET}")
            splits[split] = ()
            continue
        if not masks.is_dir():
            raise DataError(f"{images} has no masks: {masks} does not exist.", f"Get them with: {_GET}")
        cities = sorted(path for path in images.iterdir() if path.is_dir())
        splits[split] = tuple(sample for city in cities for sample in _samples(city, masks / city.name))
    if not any(splits.values()):
        looked = ", ".join(str(image_root / folder / "CITY" / f"*_{_IMAGES}.png") for folder in folders.values())
        raise DataError(f"{image_root} holds no image. Looked for {looked}.", f"Get the data set with: {_GET}")
    return splits, tuple(notes)


def _samples(images: Path, masks: Path) -> list[Sample]:
    end = f"_{_IMAGES}"
    return [
        Sample(stem.removesuffix(end), path, masks / f"{stem.removesuffix(end)}_{_MASKS}_labelIds.png", images.name)
        for stem, path in files_by_stem(images, (".png",)).items()
        if stem.endswith(end)
    ]
