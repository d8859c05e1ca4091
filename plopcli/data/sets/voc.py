"""PASCAL VOC 2012 with augmented labels, and the generated data set, whose tree is laid out alike."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from plopcli.data.samples import Sample, SegmentationData, class_facts, find_base, read_lines, refuse_doubles
from plopcli.data.toy import TOY_CLASSES
from plopcli.errors import DataError

#: The development kit's tree, that of the original implementation, and either without the folders around it.
BASES = ("VOCdevkit/VOC2012", "PascalVOC12", "VOC2012", ".")
LISTS = (".", "ImageSets/Segmentation", "list", "splits")
_AUGMENTED = ("SegmentationClassAug", "SegmentationClass")


def load_voc(root: Path) -> SegmentationData:
    """Finds PASCAL VOC 2012; its val list is the test split, as in all papers."""
    base = find_base(root, BASES, "JPEGImages", "plop download voc")
    _needs_masks(base)
    train = _first_list(base, ("train_aug.txt", "trainaug.txt"), _AUGMENTED)
    # The augmented labels are for training; papers measure on VOC's own masks.
    test = _first_list(base, ("val.txt",), _AUGMENTED[::-1])
    return SegmentationData("voc", root, tuple(class_facts()["voc"]), {"train": train, "test": test})


def load_toy(root: Path) -> SegmentationData:
    """Finds the generated data set, with lists train, val and test."""
    base = find_base(root, BASES, "JPEGImages", "plop download toy")
    splits = {name: _first_list(base, (f"{name}.txt",), _AUGMENTED) for name in ("train", "val", "test")}
    return SegmentationData("toy", root, TOY_CLASSES, splits)


def _needs_masks(base: Path) -> None:
    if not any((base / folder).is_dir() for folder in _AUGMENTED):
        raise DataError(
            f"{base} holds JPEGImages/, but no masks: neither {' nor '.join(f'{name}/' for name in _AUGMENTED)}.",
            "`plop download voc` adds the augmented masks.",
        )


def _first_list(base: Path, names: Sequence[str], mask_folders: Sequence[str]) -> tuple[Sample, ...]:
    candidates = [base / folder / name for folder in LISTS for name in names]
    for path in candidates:
        if path.is_file():
            samples = tuple(_sample(line, path, base, mask_folders) for line in read_lines(path))
            refuse_doubles([sample.name for sample in samples], f"{path} names", "Remove the second line.")
            return samples
    looked = ", ".join(str(path.relative_to(base)) for path in candidates)
    raise DataError(
        f"{base} has no list {names[0]} of its images. Looked for {looked}.",
        "The augmented training list has 10,582 names; VOC's own train.txt is part of it. `plop download voc` gets it."
        if names[0] == "train_aug.txt"
        else "It holds one name per line.",
    )


def _sample(line: str, listed: Path, base: Path, mask_folders: Sequence[str]) -> Sample:
    """A line is a name, or the paths of an image and a mask below ``base`` (the original's pair lists)."""
    if "/" not in line:
        masks = [base / folder / f"{line}.png" for folder in mask_folders]
        # os.path takes a name that no file can have for one that is not there; pathlib raises.
        mask = next((path for path in masks if os.path.exists(path)), masks[0])  # noqa: PTH110
        return Sample(line, base / "JPEGImages" / f"{line}.jpg", mask, drawn_as_stored=True)
    parts = line.split()
    if len(parts) == 2:
        image, mask = (base / part.lstrip("/") for part in parts)
        return Sample(image.stem, image, mask, drawn_as_stored=True)
    raise DataError(f"{listed}: cannot read the line '{line}'.", "A line is a name, or an image path and a mask path.")
