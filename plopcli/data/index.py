"""Class index: how many pixels of each class every image has, counted once per data set and cached beside it.

Every split of every task follows from it without opening an image again. Counting also checks each pair; `plop prepare`
has the images decoded as well. The cache remembers size, times and inode of every file, so that whatever was added or
changed since is counted, and nothing else (programs that copy and unpack set the time of a file, but not that of its
inode); it remembers, too, which unusable pairs the user has chosen to go on without.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from plopcli.data.checking import Counts, Problem, Progress, check_pairs
from plopcli.data.samples import IGNORED, Sample, SegmentationData, some
from plopcli.errors import DataError
from plopcli.files.atomic import write_atomic
from plopcli.files.numpy_archive import stored_arrays
from plopcli.files.plain import open_plain

__all__ = ["INDEX_FILE", "ClassIndex", "Inspection", "Progress", "class_index", "index_file", "inspect"]

INDEX_FILE = ".plop-index.npz"
#: What to say of masks that are `is_two_valued`.
TWO_VALUES = (
    "The masks hold one id and 255 alone, and 255 is for pixels that do not count. Is 255 your class? Then convert "
    "them: plop prepare NAME --palette FILE --convert-to DIR, the lines of FILE 0 0 0 background, 255 255 255 CLASS."
)
_VERSION = 3
#: What version 2, which knew of no marks, remembers of a file: size and time.
_FORMER, _FORMER_COLUMNS = 2, [0, 1, 4, 5]
_SHOWN = 5
_MISSING, _UNKNOWN = -1, -2

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class ClassIndex:
    """Pixels per class of every usable sample.

    Args:
        counts: Split -> (images, 256) pixel counts by label id.
        fingerprint: Digest of the names, sizes and times of all files: whether the cache still holds.
        content: Digest of class names, lists, masks and images: the same for a copy of the data set.
        former_content: That of earlier versions, which knew counts in place of marks.
        marks: Split -> (images,) what tells a changed image or mask (`checking.Checked.mark`).
        skipped: Names of the unusable samples that the user has chosen to go on without.
    """

    counts: dict[str, Counts]
    fingerprint: str
    content: str
    former_content: str
    marks: dict[str, npt.NDArray[np.int64]]
    skipped: tuple[str, ...] = ()

    def presence(self, split: str, classes: int) -> npt.NDArray[np.bool_]:
        """(images, classes): which class occurs in which image of ``split``."""
        present: npt.NDArray[np.bool_] = self.counts[split][:, :classes] > 0
        return present

    def twice(self, data: SegmentationData) -> list[str]:
        """What the splits of usable ``data`` share, for people: images of one name, or copies under another."""
        said = []
        for first, second in combinations(data.splits, 2):
            names = {sample.name for sample in data.splits[first]}
            if shared := [sample.name for sample in data.splits[second] if sample.name in names]:
                said.append(f"{len(shared)} images are both in {first} and in {second}: {some(shared)}")
            marks = {mark for mark in self.marks[first].tolist() if mark}
            copies = [
                sample.name
                for sample, mark in zip(data.splits[second], self.marks[second].tolist(), strict=True)
                if mark in marks and sample.name not in names
            ]
            if copies:
                said.append(f"{len(copies)} images in {second} are copies of images in {first}: {some(copies)}")
        return said

    def usable(self, data: SegmentationData) -> SegmentationData:
        """``data`` without the samples that are skipped: the rows of `counts`."""
        if not self.skipped:
            return data
        skipped = set(self.skipped)
        return replace(
            data,
            splits={
                split: tuple(sample for sample in samples if sample.name not in skipped)
                for split, samples in data.splits.items()
            },
        )


@dataclass(frozen=True)
class ImageChanges:
    """How many pairs differ from when they were last counted, and how many were checked.

    ``first``: none was counted before.
    """

    added: int
    changed: int
    removed: int
    checked: int
    first: bool = False

    def __str__(self) -> str:
        """For people."""
        said = [f"{self.checked} pairs checked"] if self.checked else []
        if not self.first:
            kinds = {"added": self.added, "changed": self.changed, "removed": self.removed}
            parts = [f"{number} {what}" for what, number in kinds.items() if number]
            said.append(f"{', '.join(parts) or 'nothing changed'} since the last time")
        return "; ".join(said)


@dataclass(frozen=True)
class Inspection:
    """What is known of every pair of a data set, in the order of its splits.

    Args:
        data: The data set.
        counts: (pairs, 256) pixels by label id; zeros where the mask cannot be read.
        problems: What is wrong, by position.
        skipped: (pairs,) which of those the user has chosen to go on without.
        changes: What has changed since the last time.
        fingerprint: Digest of the names, sizes and times of all files.
        marks: (pairs,) what tells a changed image or mask.
        saved: Whether the cache could be written.
    """

    data: SegmentationData
    counts: Counts
    problems: dict[int, Problem]
    skipped: Flags
    changes: ImageChanges
    fingerprint: str
    marks: npt.NDArray[np.int64]
    saved: bool

    @property
    def samples(self) -> list[tuple[str, Sample]]:
        """Split and sample of every pair."""
        return [(split, sample) for split, samples in self.data.splits.items() for sample in samples]

    def index(self) -> ClassIndex:
        """The class index of the usable pairs.

        Raises:
            DataError: There are problems that nobody has chosen to skip; lists the first.
        """
        if open_ones := [problem for row, problem in self.problems.items() if not self.skipped[row]]:
            raise self._refusal(open_ones)
        counts, marks, start = {}, {}, 0
        for split, samples in self.data.splits.items():
            rows = slice(start, start + len(samples))
            counts[split] = self.counts[rows][~self.skipped[rows]]
            marks[split] = self.marks[rows][~self.skipped[rows]]
            start += len(samples)
        names = tuple(sample.name for (_, sample), skip in zip(self.samples, self.skipped, strict=True) if skip)
        index = ClassIndex(counts, self.fingerprint, "", "", marks, names)
        former = _content(index.usable(self.data), counts)
        content = hashlib.sha256(former.encode())
        for _, found in sorted(marks.items()):
            content.update(np.ascontiguousarray(found, dtype="<i8").tobytes())
        return replace(index, content=content.hexdigest(), former_content=former)

    def _refusal(self, problems: list[Problem]) -> DataError:
        listed = "\n".join(f"  {problem.message}" for problem in problems[:_SHOWN])
        more = f"\n  ... and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        return DataError(
            f"{self.data.root}: {len(problems)} of {len(self.skipped)} image and mask pairs are unusable.\n"
            f"{listed}{more}",
            f"`plop prepare {self.data.name}` lists all of them and what to do; with --skip-bad, training goes on "
            "without them.",
        )


def class_index(data: SegmentationData, progress: Progress | None = None) -> ClassIndex:
    """The index of ``data``, counting only what is new or has changed since it was last cached.

    Raises:
        DataError: Pairs are unusable; lists the first.
    """
    return inspect(data, progress).index()


def is_two_valued(counts: Counts) -> bool:
    """Whether masks hold one class and ignored pixels alone, as programs write those of one class: 0 and 255."""
    held = np.flatnonzero(counts.any(axis=0))
    return len(held) == 2 and held[1] == IGNORED


def index_file(data: SegmentationData) -> Path:
    """Where the index of ``data`` is cached: two data sets can share a folder."""
    return data.root / (INDEX_FILE if not data.domains else ".plop-index-domains.npz")


def inspect(
    data: SegmentationData, progress: Progress | None = None, *, whole: bool = False, skip_bad: bool = False
) -> Inspection:
    """Checks and counts every pair that the cache does not know, or knows in another state.

    Args:
        data: The data set.
        progress: Called with (pairs done, pairs to check).
        whole: Decode the images of all pairs, where that has not been done before.
        skip_bad: From now on, go on without the pairs that are unusable.
    """
    samples = [sample for members in data.splits.values() for sample in members]
    names = [_key(sample, data.root) for sample in samples]
    states = _states(samples)
    known = _read(index_file(data), data)
    before = known.rows(names)
    alike = known.states[before] == states
    same = (before >= 0) & alike.all(axis=1)
    # What a former version did not remember is no sign of a change; but it has to be looked at again.
    kept = (before >= 0) & (alike | (known.states[before] == _UNKNOWN)).all(axis=1)
    counts, decoded, skipped = known.counts[before], known.decoded[before], known.skipped[before] & kept
    marks = known.marks[before]
    problems = {
        row: known.problems[old] for row, old in enumerate(before.tolist()) if same[row] and old in known.problems
    }
    todo = np.flatnonzero(~same | (whole & ~decoded)).tolist()
    checked = check_pairs(
        [samples[row] for row in todo], len(data.classes), data.label_table, whole=whole, progress=progress
    )
    for row, (found, problem, mark) in zip(todo, checked, strict=True):
        counts[row], decoded[row], marks[row] = found, whole, mark
        problems.pop(row, None)
        if problem is not None:
            problems[row] = problem
    bad = np.zeros(len(samples), dtype=np.bool_)
    bad[list(problems)] = True
    skipped = bad if skip_bad else skipped & bad
    added, changed = int((before < 0).sum()), int(((before >= 0) & ~kept).sum())
    changes = ImageChanges(added, changed, known.beyond(before), len(todo), first=not known.names)
    fresh = _Known(names, states, counts, decoded, skipped, marks, dict(sorted(problems.items())))
    unchanged = fresh.same_as(known) and not todo
    saved = unchanged or _write(index_file(data), _meaning(data), fresh)
    listed = "\n".join((_meaning(data), *names)).encode(errors="surrogateescape")  # names may hold any bytes
    fingerprint = hashlib.sha256(listed + states.tobytes()).hexdigest()
    return Inspection(data, counts, fresh.problems, skipped, changes, fingerprint, marks, saved)


@dataclass(frozen=True)
class _Known:
    """What the cache knows of each pair; one row more at the end stands for pairs that it does not know."""

    names: list[str]
    states: npt.NDArray[np.int64]
    counts: Counts
    decoded: Flags
    skipped: Flags
    marks: npt.NDArray[np.int64]
    problems: dict[int, Problem]

    def rows(self, names: list[str]) -> npt.NDArray[np.int64]:
        """Row of each pair, -1 where it is unknown."""
        if names == self.names:
            return np.arange(len(names))
        position = {name: row for row, name in enumerate(self.names)}
        return np.array([position.get(name, -1) for name in names], dtype=np.int64)

    def beyond(self, rows: npt.NDArray[np.int64]) -> int:
        """How many pairs are known that are not among ``rows``."""
        return len(self.names) - len(np.unique(rows[rows >= 0]))

    def same_as(self, other: _Known) -> bool:
        """Whether nothing would be gained by writing this in place of ``other``."""
        return self.names == other.names and bool((self.skipped == other.skipped[:-1]).all())


def _nothing_known() -> _Known:
    nothing = np.zeros(1, bool)
    return _Known(
        [], np.zeros((1, 8), np.int64), np.zeros((1, 256), np.int64), nothing, nothing, np.zeros(1, np.int64), {}
    )


def _key(sample: Sample, root: Path) -> str:
    """Both paths below the root, so that a data set can be moved."""
    top = f"{root}{os.sep}"
    return f"{sample.name}\t{str(sample.image).removeprefix(top)}\t{str(sample.mask).removeprefix(top)}"


def _states(samples: list[Sample]) -> npt.NDArray[np.int64]:
    """(pairs, 8): size, time, time of its inode and inode of each image and mask; -1 where there is no file."""
    states = np.full((len(samples), 8), _MISSING, dtype=np.int64)
    for row, sample in enumerate(samples):
        for column, path in ((0, sample.image), (4, sample.mask)):
            try:
                status = os.stat(path)  # noqa: PTH116, 24,000 files in a breath
            except OSError:
                continue
            inode = status.st_ino & 0x7FFFFFFFFFFFFFFF
            states[row, column : column + 4] = status.st_size, status.st_mtime_ns, status.st_ctime_ns, inode
    return states


def _meaning(data: SegmentationData, version: int = _VERSION) -> str:
    """What counts depend on besides the files: a cache made with another one is of no use."""
    return hashlib.sha256(repr((version, data.classes, data.ids)).encode()).hexdigest()


def _content(data: SegmentationData, counts: dict[str, Counts]) -> str:
    digest = hashlib.sha256(repr(data.classes).encode())
    for split, samples in sorted(data.splits.items()):
        digest.update(repr((split, [sample.name for sample in samples])).encode())
        digest.update(np.ascontiguousarray(counts[split], dtype="<i8").tobytes())
    return digest.hexdigest()


def _read(path: Path, data: SegmentationData) -> _Known:
    try:
        with open_plain(path) as opened, stored_arrays(opened) as file:
            former = str(file["meaning"]) == _meaning(data, _FORMER)
            if not former and str(file["meaning"]) != _meaning(data):
                return _nothing_known()
            listed: dict[str, Any] = json.loads(file["listed"].tobytes())
            pairs = len(listed["names"])
            states = np.full((pairs, 8), _UNKNOWN, dtype=np.int64)
            states[:, _FORMER_COLUMNS if former else slice(None)] = file["states"]
            marks = np.zeros(pairs, dtype=np.int64) if former else file["marks"]
            states, decoded, skipped, marks = (
                np.concatenate([held, np.zeros_like(held, shape=(1, *held.shape[1:]))])
                for held in (states, file["decoded"], file["skipped"], marks)
            )
            problems = {int(row): Problem(**problem) for row, problem in listed["problems"].items()}
            counts = np.zeros((pairs + 1, 256), dtype=np.int64)
            counts[:-1, file["columns"]] = file["counts"]
            return _Known(listed["names"], states, counts, decoded, skipped, marks, problems)
    except Exception:  # missing, or damaged in any way that zip and NumPy can fail at: counted anew
        return _nothing_known()


def _write(path: Path, meaning: str, known: _Known) -> bool:
    listed = {"names": known.names, "problems": {row: vars(problem) for row, problem in known.problems.items()}}
    columns = np.flatnonzero(known.counts.any(axis=0))
    arrays = {
        "meaning": np.array(meaning),
        "listed": np.frombuffer(json.dumps(listed).encode(), dtype=np.uint8),
        "states": known.states,
        "counts": known.counts[:, columns].astype(np.int32),
        "columns": columns,
        "decoded": known.decoded,
        "skipped": known.skipped,
        "marks": known.marks,
    }
    try:
        write_atomic(path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]
    except OSError:  # a read-only data folder costs a recount at the next start, no more
        return False
    return True
