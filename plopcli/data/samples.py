"""What a data set is once it has been found: pairs of files, class names, and what the ids in its masks mean."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from plopcli.errors import DataError
from plopcli.files.plain import LIST, read_text

Split = Literal["train", "val", "test"]
IGNORED = 255
#: What a table gives for an id that means nothing; one more than the last label possible.
UNKNOWN = 254
MAX_CLASSES = 254
_NAMES_SHOWN = 5
TIFF_SUFFIXES = (".tif", ".tiff")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", *TIFF_SUFFIXES)
#: Ids in the masks are label ids.
SAME_IDS = bytes(range(256))


@dataclass(frozen=True)
class Sample:
    """One image and its mask (8-bit ids, 255 ignored).

    Args:
        name: Its name in the data set.
        image: The file of the image.
        mask: That of the mask.
        domain: The domain it is from, where its data set has domains.
        drawn_as_stored: Where the image says that it is to be shown turned, the mask lies on its pixels as they are
            stored, as in the published data sets; else a pair whose sizes leave that open is refused.
    """

    name: str
    image: Path
    mask: Path
    domain: str = ""
    drawn_as_stored: bool = False


@dataclass(frozen=True)
class StepSplit:
    """Images of one step and the table (256,) that turns the ids of their masks into learned ids."""

    samples: tuple[Sample, ...]
    table: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.samples)

    def by_domain(self) -> dict[str, StepSplit]:
        """The images of each domain, in order of appearance; all under one empty name where there are none."""
        names = dict.fromkeys(sample.domain for sample in self.samples)
        return {name: replace(self, samples=tuple(s for s in self.samples if s.domain == name)) for name in names}


class Candidate(NamedTuple):
    """A training image of the step.

    Attributes:
        name: Its name in the data set.
        classes: Classes of the step that its labels hold, in learned order, background left out.
    """

    name: str
    classes: tuple[int, ...]


class Exemplar(NamedTuple):
    """An image kept from an earlier step.

    Attributes:
        name: Its name in the data set.
        step: The step that it was an image of.
    """

    name: str
    step: int


@dataclass(frozen=True)
class SegmentationData:
    """A data set on disk.

    Args:
        name: Its name in `DATASETS`.
        root: Its folder.
        classes: Class names by label id, background first; without a background where there are domains.
        splits: Samples of `train`, `test` and, where the data set has one, `val`; all of them under `all` where the
            task deals them out, which it does where there are domains.
        ids: Look-up table (256 bytes) from the id in a mask to the label id, 255 where it is ignored.
        domains: Names of the domains by their id; empty where classes are what a task partitions.
        notes: What is worth knowing about what was found: half of a layout, for example.
    """

    name: str
    root: Path
    classes: tuple[str, ...]
    splits: Mapping[str, tuple[Sample, ...]]
    ids: bytes = SAME_IDS
    domains: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def label_table(self) -> npt.NDArray[np.uint8]:
        """The table of ids as an array (256,)."""
        return np.frombuffer(self.ids, dtype=np.uint8)


@cache
def class_facts() -> dict[str, Any]:
    """Class names, palettes and id maps of the known data sets."""
    facts: dict[str, Any] = json.loads(resources.files(__package__).joinpath("classes.json").read_text("utf-8"))
    return facts


def id_table(label_of: Mapping[int, int], known: Sequence[int]) -> bytes:
    """The table of a data set whose masks hold other ids than its labels.

    Args:
        label_of: Id in a mask -> label id.
        known: Further ids that may occur; they are ignored. Any other id means nothing, and is an error.
    """
    table = [UNKNOWN] * 256
    for number in (*known, IGNORED):
        table[number] = IGNORED
    for number, label in label_of.items():
        table[number] = label
    return bytes(table)


def find_base(root: Path, candidates: Sequence[str], needed: str, get: str) -> Path:
    """The first of several places below ``root`` that holds the folder ``needed``.

    Raises:
        DataError: None does; says where it was looked for.
    """
    for candidate in candidates:
        if (root / candidate / needed).is_dir():
            return root / candidate
    places = ", ".join(str(root / candidate / needed) for candidate in candidates)
    raise DataError(f"{root} holds no {needed}/. Looked for {places}.", f"Get the data set with: {get}")


def files_by_stem(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """The files of a folder by the name before the dot, in order of name.

    Names are compared as people read them: an accented letter may be one character or two. A TIFF beside a file of
    another kind is what that was made from, and left out.

    Raises:
        DataError: The folder is missing, or two files differ in their suffix alone.
    """
    found: dict[str, Path] = {}
    try:
        files = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"Cannot list {folder}: {error.strerror}.") from error
    for path in files:
        if path.suffix.lower() in suffixes and not path.name.startswith("."):
            stem = as_read(path.stem)
            if stem in found and is_tiff(path) != is_tiff(found[stem]):
                found[stem] = found[stem] if is_tiff(path) else path
                continue
            if stem in found:
                raise DataError(
                    f"{folder} holds both {found[stem].name} and {path.name}.",
                    "Names must differ before the dot: rename or remove one of them.",
                )
            found[stem] = path
    return found


def is_tiff(path: Path) -> bool:
    """Whether a file is a TIFF by its name."""
    return path.suffix.lower() in TIFF_SUFFIXES


def as_read(name: str) -> str:
    """``name`` in the one of its Unicode forms that all are compared in."""
    return unicodedata.normalize("NFC", name)


def read_lines(path: Path) -> list[str]:
    """The lines of a list that hold anything, stripped.

    Raises:
        DataError: It cannot be read, or is empty.
    """
    try:
        lines = [line.strip() for line in read_text(path, LIST).splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read {path}: {error}.", "Lists are text files in UTF-8.") from error
    lines = [line for line in lines if line]
    if not lines:
        raise DataError(f"{path} is empty.", "It should hold one line per image (or class).")
    return lines


def dealt_apart(names: Sequence[str], share: float, purpose: str) -> list[bool]:
    """Which of ``names`` belong to a share of about ``share`` of them: a matter of each name alone, while others come
    and go. If none of few names does, one is taken all the same, so that a share is never empty.

    Args:
        names: Of images.
        share: From 0 (none) to 1.
        purpose: Shares of different purposes are independent of each other.
    """
    numbers = [_number(name, purpose) for name in names]
    limit = max(share, min(numbers, default=0.0)) if share else -1.0
    return [number <= limit for number in numbers]


def _number(name: str, purpose: str) -> float:
    """From 0 to 1, evenly spread over names."""
    digest = hashlib.sha256(f"{purpose}\0{name}".encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:8]) / 2**64


def some(names: Sequence[str]) -> str:
    """The first of many names, and how many more there are."""
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def refuse_doubles(names: Sequence[str], where: str, hint: str) -> None:
    """Refuses a list that names something twice.

    Raises:
        DataError: Names the first.
    """
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise DataError(f"{where} '{name}' twice.", hint)
        seen.add(name)
