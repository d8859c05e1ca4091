"""Colours of classes: those that data sets come with, and masks that hold them in place of ids."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from plopcli.data.checking import Problem, Progress
from plopcli.data.datasets import DATASETS
from plopcli.data.palettes import VOID, Palette, class_colours, voc_palette
from plopcli.data.reading import UnusableFileError, read_mask
from plopcli.data.samples import IGNORED, IMAGE_SUFFIXES, UNKNOWN, SegmentationData, class_facts, read_lines
from plopcli.errors import DataError, UsageError, did_you_mean
from plopcli.files.atomic import write_atomic

Colour = tuple[int, int, int]

NAMED_PALETTES = ("voc", "ade", "cityscapes")
IGNORED_NAME = "ignored"
#: What is wrong with a data set, beside its index.
PROBLEMS_FILE = "plop-problems.json"
_SHOWN = 5


def named_palette(name: str) -> dict[Colour, str]:
    """The colours that masks of a known data set are shown in, and the class that each stands for.

    Args:
        name: One of `NAMED_PALETTES`.
    """
    facts = class_facts()
    if name == "cityscapes":
        colours = {tuple(entry["color"]): entry["name"] for entry in facts["cityscapes"]}
        return {**colours, (0, 0, 0): IGNORED_NAME}
    if name == "ade":
        # Road and skyscraper have one colour between them; it is read as road.
        pairs = reversed(list(zip(facts["ade_palette"], facts["ade"], strict=True)))
        return {tuple(colour): label for colour, label in pairs}
    table = voc_palette()
    colours = {tuple(table[label].tolist()): text for label, text in enumerate(facts["voc"])}
    return {**colours, tuple(table[VOID].tolist()): IGNORED_NAME}


def class_palette(name: str | None) -> Palette | None:
    """The colours (classes, 3) of a known data set by label; None where it has none of its own.

    Args:
        name: The palette of a `DatasetSpec`, background first where the data set has one.
    """
    if name is None:
        return None
    if name == "voc":
        return voc_palette(len(class_facts()["voc"]))
    if name == "ade":
        return np.array(class_facts()["ade_palette"], dtype=np.uint8)
    return np.array([entry["color"] for entry in class_facts()["cityscapes"]], dtype=np.uint8)


def colours_in_order(dataset: str, order: Sequence[int], classes: int) -> Palette:
    """Colours (n, 3) in learned order: a class keeps the colour of its label, whatever the task.

    Data sets that come with colours are drawn in these.

    Args:
        dataset: Name of the data set.
        order: Label ids in the order in which the task brings them; of no use where it brings domains.
        classes: How many there are, where steps bring domains.
    """
    spec = DATASETS.get(dataset)
    base = None if spec is None else class_palette(spec.palette)
    if spec is not None and spec.domains:
        return class_colours(classes, base)
    if base is not None and spec is not None and spec.classes == len(base) + 1:
        base = np.concatenate([np.zeros((1, 3), dtype=np.uint8), base])  # a background that was put before the classes
    colours: Palette = class_colours(max(order) + 1, base)[list(order)]
    return colours


def read_palette(source: str) -> dict[Colour, str]:
    """A palette by name, or from a file.

    A line of the file is ``RED GREEN BLUE CLASS`` or ``#RRGGBB CLASS``; several colours may stand for one class, and
    the class `ignored` is what neither losses nor figures count.

    Raises:
        DataError: The file is missing, or a line is none.
    """
    if source in NAMED_PALETTES:
        return named_palette(source)
    path = Path(source)
    if not path.is_file():
        raise DataError(f"There is no palette {source}.", f"Give a file, or one of {', '.join(NAMED_PALETTES)}.")
    colours: dict[Colour, str] = {}
    for line in read_lines(path):
        colour, name = _colour_and_class(line, path)
        if colour in colours:
            raise DataError(f"{path} names the colour {colour} twice.", "A colour stands for one class.")
        colours[colour] = name
    return colours


@dataclass(frozen=True)
class Conversion:
    """What `convert_masks` has done.

    Args:
        converted: Masks that held colours, and hold ids now.
        kept: Masks that held ids already.
        problems: What is wrong with the others, by mask.
    """

    converted: int
    kept: int
    problems: Mapping[Path, Problem]


def convert_masks(
    data: SegmentationData, palette: Mapping[Colour, str], target: Path, progress: Progress | None = None
) -> Conversion:
    """Makes a copy of a data set whose masks hold ids where they held colours.

    Of masks with a palette the colours count where the palette given names one of them, black and white apart: their
    indices may be in any order. So they do of grey masks all of whose values it names, 255 for white among them.

    All other images are linked, or copied where they cannot be, and all other files copied, so that nothing in ``data``
    changes with the copy. Masks with a colour that the palette does not name are left out.

    Raises:
        UsageError: The target is there already, or lies in the data set.
        DataError: The palette names classes that the data set does not have.
    """
    if target.exists() and any(target.iterdir()):
        raise UsageError(f"{target} is not empty.", "Give a folder that is not there yet: --convert-to DIR")
    if target.resolve().is_relative_to(data.root.resolve()):
        raise UsageError(f"{target} lies in the data set itself.", "Give a folder elsewhere: --convert-to DIR")
    table = _colour_table(palette, data)
    masks = {sample.mask: target / sample.mask.relative_to(data.root) for s in data.splits.values() for sample in s}
    _link_others(data.root, target, set(masks))
    problems: dict[Path, Problem] = {}
    converted = kept = 0
    # Decoding, looking up and encoding all leave the interpreter alone.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(lambda pair: _convert(pair[0], pair[1], table), masks.items())
        for done, (mask, result) in enumerate(zip(masks, results, strict=True), start=1):
            if isinstance(result, Problem):
                problems[mask] = result
            elif result:
                converted += 1
            else:
                kept += 1
            if progress:
                progress(done, len(masks))
    return Conversion(converted, kept, problems)


def _colour_and_class(line: str, path: Path) -> tuple[Colour, str]:
    if match := re.fullmatch(r"#([0-9a-fA-F]{6})[\s,]+(.+)", line):
        red, green, blue = bytes.fromhex(match[1])
        return (red, green, blue), match[2].strip()
    match = re.fullmatch(r"(\d+)[\s,]+(\d+)[\s,]+(\d+)[\s,]+(.+)", line)
    if match is None or any(int(match[part]) > 255 for part in (1, 2, 3)):
        raise DataError(
            f"{path}: cannot read the line '{line}'.", "A line is a colour and a class: 255 0 0 cat, or #ff0000 cat"
        )
    return (int(match[1]), int(match[2]), int(match[3])), match[4].strip()


def _colour_table(palette: Mapping[Colour, str], data: SegmentationData) -> npt.NDArray[np.uint8]:
    """Look-up table (2^24,) from a colour as one number to the id that the data set's masks have for its class."""
    by_lower = {name.lower(): label for label, name in enumerate(data.classes)}
    if not any(name.lower() in by_lower for name in palette.values()):
        raise DataError(
            f"The palette names no class of {data.root}: it has {', '.join(list(palette.values())[:_SHOWN])}.",
            f"The data set's classes are {', '.join(data.classes[:_SHOWN])}, ...",
        )
    table = np.full(1 << 24, UNKNOWN, dtype=np.uint8)
    known = {tuple(colour) for name in NAMED_PALETTES for colour in named_palette(name).items()}
    for (red, green, blue), name in palette.items():
        number = red << 16 | green << 8 | blue
        if name.lower() == IGNORED_NAME:
            table[number] = IGNORED
        elif name.lower() in by_lower:
            table[number] = int(np.flatnonzero(data.label_table == by_lower[name.lower()])[0])
        elif ((red, green, blue), name) not in known:
            # A palette of a known data set may have more classes than the user's own.
            raise DataError(
                f"The palette names class '{name}', which {data.root} does not have.",
                did_you_mean(name, data.classes) or f"It has {', '.join(data.classes)}; and there is {IGNORED_NAME}.",
            )
    return table


def _convert(mask: Path, target: Path, table: npt.NDArray[np.uint8]) -> Problem | bool:
    """Writes one mask; whether it held colours, or what is wrong with it."""
    try:
        held = read_mask(mask)
    except UnusableFileError as error:
        if error.kind != "mask in colour":
            return Problem(error.kind, error.message)
        with Image.open(mask) as picture:
            held = ImageOps.exif_transpose(picture).convert("RGB")
    else:
        if not _means_colours(held, table):
            _link(mask, target)
            return False
        held = held.convert("RGB")
    pixels = np.asarray(held).astype(np.uint32)
    numbers = pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2]
    ids = table[numbers]
    if (ids == UNKNOWN).any():
        return Problem(
            "unknown colours", f"{mask} holds colours that the palette does not name: {_unknown(numbers, ids)}"
        )
    indexed = Image.fromarray(ids, "P")
    indexed.putpalette(voc_palette().tobytes())
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(target.with_suffix(".png"), lambda file: indexed.save(file, "PNG"), durable=False)
    return True


def _means_colours(mask: Image.Image, table: npt.NDArray[np.uint8]) -> bool:
    """Whether the colours of a mask that could be one of ids are those of the palette."""
    values = Image.fromarray(np.flatnonzero(mask.histogram()).astype(np.uint8)[None])
    if mask.mode == "P":
        values.putpalette(mask.getpalette() or [])
    red, green, blue = np.asarray(values.convert("RGB"), dtype=np.int64)[0].T
    used = set((red << 16 | green << 8 | blue).tolist())
    named = {number for number in used if table[number] != UNKNOWN}
    return bool(named - {0, 0xFFFFFF}) if mask.mode == "P" else 0xFFFFFF in used and named == used


def _unknown(numbers: npt.NDArray[np.integer[Any]], ids: npt.NDArray[np.uint8]) -> str:
    """The most frequent unknown colours of a mask, with their pixels."""
    colours, pixels = np.unique(numbers[ids == UNKNOWN], return_counts=True)
    often = np.argsort(-pixels, kind="stable")[:_SHOWN]
    named = [f"{_parts(int(colours[at]))} in {pixels[at]} pixels" for at in often]
    more = f" and {len(colours) - _SHOWN} more colours" if len(colours) > _SHOWN else ""
    return ", ".join(named) + more


def _parts(number: int) -> Colour:
    return number >> 16, number >> 8 & 255, number & 255


def _link_others(root: Path, target: Path, masks: set[Path]) -> None:
    for path in list(_files(root)):
        if path not in masks and not path.name.startswith((".plop-", PROBLEMS_FILE)):
            _link(path, target / path.relative_to(root))


def _files(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """All files below a folder, also behind links to folders, unless these lead back to one ``above``."""
    place = folder.resolve()
    for path in [] if place in above else sorted(folder.iterdir()):
        if path.is_dir():
            yield from _files(path, above | {place})
        elif path.is_file():  # no pipe, no device, no link to nothing
            yield path


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix.lower() in IMAGE_SUFFIXES:  # of a list, people edit one and mean one
        with suppress(OSError):  # another disk, or one without links
            os.link(source.resolve(), target)
            return
    shutil.copy2(source, target)
