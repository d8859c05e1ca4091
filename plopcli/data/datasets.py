"""Data sets: where their images, masks and class names are. A data set is a function and one line in `DATASETS`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from plopcli.data.toy import TOY_CLASSES
from plopcli.errors import DataError, UsageError, unknown_name

Split = Literal["train", "val", "test"]
MAX_CLASSES = 254
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_MASK_FOLDERS = ("SegmentationClassAug", "SegmentationClass")


@dataclass(frozen=True)
class Sample:
    """One image and its mask (uint8 label ids, 255 ignored)."""

    name: str
    image: Path
    mask: Path


@dataclass(frozen=True)
class SegmentationData:
    """A data set on disk.

    Args:
        name: Its name in `DATASETS`.
        root: Its folder.
        classes: Class names by label id, background first.
        splits: Samples of `train`, `test` and, where the data set has one, `val`.
        shift: Added to the ids of the masks, 255 aside: 1 where a synthetic background was put before the classes.
    """

    name: str
    root: Path
    classes: tuple[str, ...]
    splits: Mapping[str, tuple[Sample, ...]]
    shift: int = 0

    @property
    def label_table(self) -> npt.NDArray[np.uint8]:
        """Look-up table (256,) from the id in a mask to the label id; 255 stays."""
        table = np.minimum(np.arange(256) + self.shift, 255).astype(np.uint8)
        table[255] = 255
        return table


@dataclass(frozen=True)
class DatasetSpec:
    """A line of the registry: what the data set is, how it is loaded, and how a user gets it."""

    summary: str
    load: Callable[[Path, bool], SegmentationData]
    get: str
    classes: int | None = None


@cache
def class_facts() -> dict[str, Any]:
    """Class names and palettes of the known data sets."""
    facts: dict[str, Any] = json.loads(resources.files(__package__).joinpath("classes.json").read_text("utf-8"))
    return facts


def load_voc(root: Path, background: bool = True) -> SegmentationData:
    """PASCAL VOC 2012 with augmented labels; its val list is the test split, as in all papers."""
    _needs_background("voc", background)
    base = _voc_base(root, "voc")
    lists = base / "ImageSets" / "Segmentation"
    train = _first_list([base / "train_aug.txt", lists / "trainaug.txt", lists / "train_aug.txt"], base)
    # The augmented labels are for training; papers measure on VOC's own masks.
    test = _first_list([base / "val.txt", lists / "val.txt"], base, _MASK_FOLDERS[::-1])
    return SegmentationData("voc", root, tuple(class_facts()["voc"]), {"train": train, "test": test})


def load_toy(root: Path, background: bool = True) -> SegmentationData:
    """The generated data set: a VOC-style tree with lists train, val and test."""
    _needs_background("toy", background)
    base = _voc_base(root, "toy")
    lists = base / "ImageSets" / "Segmentation"
    splits = {name: _first_list([lists / f"{name}.txt"], base) for name in ("train", "val", "test")}
    return SegmentationData("toy", root, TOY_CLASSES, splits)


def load_folder(root: Path, background: bool = True) -> SegmentationData:
    """A user's own folder: `images/`, `masks/`, `classes.txt`, and lists train.txt, val.txt, test.txt if there are any.

    Without lists every fifth image, in order of name, is kept for the test; without test.txt alone, the images that
    are in no list.
    """
    for needed in (root / "images", root / "masks", root / "classes.txt"):
        if not needed.exists():
            raise DataError(
                f"{needed} does not exist.",
                "A data set of your own needs the folders images/ and masks/ and a classes.txt (line 1: background).",
            )
    classes = tuple(line.strip() for line in _lines(root / "classes.txt"))
    if not background:
        classes = ("background", *classes)
    if not 2 <= len(classes) <= MAX_CLASSES:
        raise DataError(f"{root / 'classes.txt'} names {len(classes)} classes; 2 to {MAX_CLASSES} are possible.")
    if doubles := sorted({name for name in classes if classes.count(name) > 1}):
        raise DataError(f"{root / 'classes.txt'} names '{doubles[0]}' twice.", "Every class needs its own name.")
    images = _by_stem(root / "images", IMAGE_SUFFIXES)
    masks = _by_stem(root / "masks", (".png",))
    splits: dict[str, tuple[Sample, ...]] = {}
    for split in ("train", "val", "test"):
        if (root / f"{split}.txt").exists():
            names = [Path(line).name for line in _lines(root / f"{split}.txt")]
            names = [Path(name).stem if Path(name).suffix.lower() in IMAGE_SUFFIXES else name for name in names]
            splits[split] = tuple(_folder_sample(name, images, masks, root) for name in names)
    listed = [sample.name for samples in splits.values() for sample in samples]
    if doubles := sorted({name for name in listed if listed.count(name) > 1}):
        raise DataError(f"The lists of {root} name '{doubles[0]}' twice.", "An image belongs to one list.")
    rest = [_folder_sample(name, images, masks, root) for name in sorted(images) if name not in set(listed)]
    if "train" not in splits:
        kept = () if "test" in splits else tuple(rest[4::5])
        splits["train"] = tuple(sample for sample in rest if sample not in kept)
        rest = list(kept)
    splits.setdefault("test", tuple(rest))
    for split in ("train", "test"):
        if not splits[split]:
            raise DataError(
                f"{root} leaves no image for {split}.",
                "Without lists at least 5 images are needed; with lists, those in no list are the test.",
            )
    return SegmentationData("folder", root, classes, splits, shift=0 if background else 1)


DATASETS: dict[str, DatasetSpec] = {
    "toy": DatasetSpec("generated shapes, 20 classes; runs on a laptop", load_toy, "plop download toy", 21),
    "voc": DatasetSpec("PASCAL VOC 2012 with augmented labels, 20 classes", load_voc, "plop download voc", 21),
    "folder": DatasetSpec("your own images/ and masks/ with a classes.txt", load_folder, "see data/README.md"),
}


def load_dataset(name: str, data_root: Path, path: Path | None = None, *, background: bool = True) -> SegmentationData:
    """Finds the data set ``name`` under ``path``, or else under ``data_root``/name.

    Raises:
        UsageError: No such data set.
        DataError: It is not there, or its lists are broken.
    """
    if name not in DATASETS:
        raise unknown_name("data set", name, DATASETS)
    spec = DATASETS[name]
    root = path if path is not None else data_root / name
    if not root.is_dir():
        where = "data.path" if path is not None else "--data-root"
        raise DataError(f"Data set {name} is not at {root}.", f"Get it with: {spec.get}   (or set {where})")
    return spec.load(root, background)


def _needs_background(name: str, background: bool) -> None:
    if not background:
        raise UsageError(f"Data set {name} has a background class.", "data.background = false is for data set folder.")


def _voc_base(root: Path, name: str) -> Path:
    for base in (root / "VOCdevkit" / "VOC2012", root / "PascalVOC12", root):
        if (base / "JPEGImages").is_dir():
            return base
    raise DataError(f"{root} holds no VOCdevkit/VOC2012/JPEGImages.", f"Get the data set with: {DATASETS[name].get}")


def _first_list(
    candidates: Iterable[Path], base: Path, mask_folders: tuple[str, ...] = _MASK_FOLDERS
) -> tuple[Sample, ...]:
    candidates = list(candidates)
    for path in candidates:
        if path.exists():
            return tuple(_voc_sample(line, path, base, mask_folders) for line in _lines(path))
    raise DataError(
        f"{base} has no list of its images.", f"Looked for {', '.join(str(p.relative_to(base)) for p in candidates)}."
    )


def _voc_sample(line: str, listed: Path, base: Path, mask_folders: tuple[str, ...]) -> Sample:
    """A line is a name, or the paths of an image and a mask below ``base`` (the reference's pair lists)."""
    parts = line.split()
    if len(parts) == 1:
        masks = [base / folder / f"{line}.png" for folder in mask_folders]
        mask = next((path for path in masks if path.exists()), masks[0])
        return Sample(line, base / "JPEGImages" / f"{line}.jpg", mask)
    if len(parts) == 2:
        image, mask = (base / part.lstrip("/") for part in parts)
        return Sample(image.stem, image, mask)
    raise DataError(f"{listed}: cannot read the line '{line}'.", "A line is a name, or an image path and a mask path.")


def _lines(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read {path}: {error}.") from error
    lines = [line for line in lines if line]
    if not lines:
        raise DataError(f"{path} is empty.", "It should hold one line per image (or class).")
    return lines


def _by_stem(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in suffixes and not path.name.startswith("."):
            if path.stem in found:
                raise DataError(
                    f"{folder} holds both {found[path.stem].name} and {path.name}.", "Names must differ before the dot."
                )
            found[path.stem] = path
    return found


def _folder_sample(name: str, images: dict[str, Path], masks: dict[str, Path], root: Path) -> Sample:
    if name not in images:
        raise DataError(f"{root / 'images'} holds no image called '{name}'.", "A list names it.")
    if name not in masks:
        raise DataError(f"{images[name]} has no mask {root / 'masks' / (name + '.png')}.", "Masks are PNG files.")
    return Sample(name, images[name], masks[name])
