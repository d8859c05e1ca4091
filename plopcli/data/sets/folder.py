"""A user's own data set: two folders and a list of class names."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from plopcli.data.samples import (
    IGNORED,
    IMAGE_SUFFIXES,
    MAX_CLASSES,
    SAME_IDS,
    UNKNOWN,
    Sample,
    SegmentationData,
    as_read,
    dealt_apart,
    files_by_stem,
    read_lines,
    refuse_doubles,
)
from plopcli.errors import DataError

_NEEDED = {"images": Path.is_dir, "masks": Path.is_dir, "classes.txt": Path.is_file}
Files = dict[str, Path]
_TEST_SHARE = 0.2
#: What systems leave in any folder.
_OF_SYSTEMS = ("Thumbs.db", "desktop.ini")
_SHOWN = 5


def load_folder(root: Path, background: bool = True, dealt_by: str = "name") -> SegmentationData:
    """Finds `images/`, `masks/`, `classes.txt`, and lists train.txt, val.txt, test.txt if there are any.

    Without lists about a fifth of the images is kept for the test, chosen by a hash of their names (``dealt_by`` name),
    or every fifth in order of name (position); without test.txt alone, the images that are in no list. Without any
    list, masks that have no image are samples as well: broken ones.
    """
    for needed, is_there in _NEEDED.items():
        if not is_there(root / needed):
            raise DataError(
                f"{root / needed} does not exist.",
                "A data set of your own needs the folders images/ and masks/ and a classes.txt (line 1: background). "
                "docs/own-data.md walks through it.",
            )
    classes = _classes(root / "classes.txt", background)
    images = files_by_stem(root / "images", IMAGE_SUFFIXES)
    masks = files_by_stem(root / "masks", IMAGE_SUFFIXES)
    splits: dict[str, tuple[Sample, ...]] = {}
    for split in ("train", "val", "test"):
        if (root / f"{split}.txt").is_file():
            splits[split] = tuple(
                _listed(_bare(line), images, masks, root) for line in read_lines(root / f"{split}.txt")
            )
    listed = [sample.name for samples in splits.values() for sample in samples]
    refuse_doubles(listed, f"The lists of {root} name", "An image belongs to one list.")
    names = sorted({*images, *masks}) if not splits else sorted(images)
    taken = set(listed)
    rest = [_sample(name, images, masks, root) for name in names if name not in taken]
    if "train" not in splits:
        dealt = dealt_apart([sample.name for sample in rest], _TEST_SHARE, "test")
        kept = [] if "test" in splits else rest[4::5]
        if kept and dealt_by == "name":
            kept = [sample for sample, apart in zip(rest, dealt, strict=True) if apart]
        names_apart = {sample.name for sample in kept}
        splits["train"] = tuple(sample for sample in rest if sample.name not in names_apart)
        rest = kept
    splits.setdefault("test", tuple(rest))
    notes = tuple(_not_read(root / name) for name in ("images", "masks"))
    for split in ("train", "test"):
        if not splits[split]:
            raise DataError(
                f"{root} leaves no image for {split}.",
                " ".join(
                    ("Without lists at least 5 images are needed; with lists, those in no list are the test.", *notes)
                ).strip(),
            )
    ids = SAME_IDS if background else _shifted()
    return SegmentationData("folder", root, classes, splits, ids, notes=tuple(filter(None, notes)))


def _not_read(folder: Path) -> str:
    """What a folder holds that is no picture, with its number; empty where there is nothing."""
    others = [path for path in folder.iterdir() if path.suffix.lower() not in IMAGE_SUFFIXES]
    others = [path for path in others if not path.name.startswith(".") and path.name not in _OF_SYSTEMS]
    folders = sum(path.is_dir() for path in others)
    kinds = Counter(path.suffix or path.name for path in others if not path.is_dir()).most_common(_SHOWN)
    listed = [f"{number} file{'s' if number > 1 else ''} ending in {kind}" for kind, number in kinds]
    listed += [f"{folders} folder{'s' if folders > 1 else ''}"] if folders else []
    known = ", ".join(IMAGE_SUFFIXES)
    return f"{folder} also holds, not read: {', '.join(listed)}. Pictures end in {known}." if listed else ""


def _classes(path: Path, background: bool) -> tuple[str, ...]:
    classes = tuple(read_lines(path))
    if not background:
        classes = ("background", *classes)
    if not 2 <= len(classes) <= MAX_CLASSES:
        raise DataError(
            f"{path} names {len(classes)} classes; 2 to {MAX_CLASSES} are possible.",
            "Masks have 8 bits, and 255 is for ignored pixels: merge rare classes."
            if len(classes) > MAX_CLASSES
            else "Line 1 is the background, every further line a class.",
        )
    refuse_doubles(
        classes,
        f"{path} names",
        "Every class needs its own name."
        if background
        else "With --no-background a class called background is put before those of the file: rename it there.",
    )
    return classes


def _shifted() -> bytes:
    """Ids that begin with the first class, where a background has been put before it."""
    return bytes([*range(1, UNKNOWN), UNKNOWN, UNKNOWN, IGNORED])


def _bare(line: str) -> str:
    name = as_read(Path(line).name)
    return Path(name).stem if Path(name).suffix.lower() in IMAGE_SUFFIXES else name


def _listed(name: str, images: Files, masks: Files, root: Path) -> Sample:
    if name not in images:
        raise DataError(
            f"{root / 'images'} holds no image called '{name}'.", "A list names it: mend the list, or add the image."
        )
    return _sample(name, images, masks, root)


def _sample(name: str, images: Files, masks: Files, root: Path) -> Sample:
    """Either file may be missing; the check of all pairs tells."""
    return Sample(
        name,
        images.get(name, root / "images" / f"{name}.jpg"),
        masks.get(name, root / "masks" / f"{name}.png"),
    )
