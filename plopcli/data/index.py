"""Class index: how many pixels of each class every image has, counted once per data set and cached beside it.

Every split of every task follows from it without opening an image again. Counting also checks each pair: the image's
header and the whole mask can be read, both have the same size, and the mask holds known ids only.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from plopcli.data.datasets import Sample, SegmentationData
from plopcli.data.reading import mask_ids, read_mask
from plopcli.errors import DataError

INDEX_FILE = ".plop-index.npz"
#: From here on several processes count faster than one, their start included.
_PARALLEL_FROM = 2000
_SHOWN = 5

Counts = npt.NDArray[np.int64]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ClassIndex:
    """Pixels per class of every sample.

    Args:
        counts: Split -> (images, 256) pixel counts by label id.
        fingerprint: Digest of the names, sizes and times of all files: whether the cache still holds.
        content: Digest of class names, lists and counts: the same for a copy of the data set.
    """

    counts: dict[str, Counts]
    fingerprint: str
    content: str

    def presence(self, split: str, classes: int) -> npt.NDArray[np.bool_]:
        """(images, classes): which class occurs in which image of ``split``."""
        present: npt.NDArray[np.bool_] = self.counts[split][:, :classes] > 0
        return present


def class_index(data: SegmentationData, progress: Progress | None = None) -> ClassIndex:
    """The index of ``data``: from the cache where its fingerprint still holds, else counted and cached.

    Raises:
        DataError: Images and masks do not fit; lists the first problems.
    """
    mark = fingerprint(data)
    cached = data.root / INDEX_FILE
    if (index := _read(cached, mark, data)) is not None:
        return index
    counts = _count_all(data, progress)
    index = ClassIndex(counts, mark, _content(data, counts))
    _write(cached, index)
    return index


def _content(data: SegmentationData, counts: dict[str, Counts]) -> str:
    digest = hashlib.sha256(repr(data.classes).encode())
    for split, samples in sorted(data.splits.items()):
        digest.update(repr((split, [sample.name for sample in samples])).encode())
        digest.update(np.ascontiguousarray(counts[split], dtype="<i8").tobytes())
    return digest.hexdigest()


def fingerprint(data: SegmentationData) -> str:
    """Digest of classes, lists and of name, size and time of every image and mask.

    Raises:
        DataError: A file of a list does not exist.
    """
    digest = hashlib.sha256(repr((data.name, data.classes, data.shift)).encode())
    for split, samples in sorted(data.splits.items()):
        digest.update(split.encode())
        for sample in samples:
            for path in (sample.image, sample.mask):
                try:
                    status = path.stat()
                except OSError as error:
                    raise DataError(
                        f"{path} does not exist, but the {split} list names it.", "Restore the file or edit the list."
                    ) from error
                digest.update(f"{sample.name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def check_pair(sample: Sample, classes: int, table: npt.NDArray[np.uint8]) -> tuple[Counts, str | None]:
    """Pixel counts (256,) of a sample by label id, and what is wrong with it, if anything."""
    try:
        with Image.open(sample.image) as image:
            size = image.size
    except (OSError, SyntaxError) as error:
        return np.zeros(256, dtype=np.int64), f"{sample.image} cannot be read: {error}"
    try:
        mask = read_mask(sample.mask)
    except DataError as error:
        return np.zeros(256, dtype=np.int64), error.message
    if mask.size != size:
        return np.zeros(256, dtype=np.int64), (
            f"{sample.image.name} is {size[0]} x {size[1]} but its mask {sample.mask} is "
            f"{mask.size[0]} x {mask.size[1]}"
        )
    counts = np.bincount(table[mask_ids(mask)].ravel(), minlength=256)
    unknown = np.flatnonzero(counts[classes:255]) + classes
    if len(unknown):
        ids = [int(np.flatnonzero(table == label)[0]) for label in unknown[:_SHOWN]]
        last = int(np.flatnonzero(table == classes - 1)[0])
        return counts, f"{sample.mask} holds id {', '.join(map(str, ids))}; the classes end at {last}"
    return counts, None


def _check_many(task: tuple[Sequence[Sample], int, npt.NDArray[np.uint8]]) -> list[tuple[Counts, str | None]]:
    samples, classes, table = task
    return [check_pair(sample, classes, table) for sample in samples]


def _count_all(data: SegmentationData, progress: Progress | None) -> dict[str, Counts]:
    samples = [sample for split in data.splits.values() for sample in split]
    classes, table = len(data.classes), data.label_table
    chunks = [(samples[start : start + 100], classes, table) for start in range(0, len(samples), 100)]
    rows: list[tuple[Counts, str | None]] = []
    if len(samples) >= _PARALLEL_FROM and (os.cpu_count() or 1) > 1:
        with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
            for done in pool.map(_check_many, chunks):
                rows += done
                if progress:
                    progress(len(rows), len(samples))
    else:
        for chunk in chunks:
            rows += _check_many(chunk)
            if progress:
                progress(len(rows), len(samples))
    problems = [problem for _, problem in rows if problem]
    if problems:
        listed = "\n".join(f"  {problem}" for problem in problems[:_SHOWN])
        more = f"\n  ... and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise DataError(
            f"{data.root}: {len(problems)} of {len(samples)} image and mask pairs are unusable.\n{listed}{more}",
            "Mend the files, or drop them from the lists.",
        )
    counts: dict[str, Counts] = {}
    start = 0
    for split, members in data.splits.items():
        counts[split] = np.stack([count for count, _ in rows[start : start + len(members)]])
        start += len(members)
    return counts


def _read(path: Path, mark: str, data: SegmentationData) -> ClassIndex | None:
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            if str(file["fingerprint"]) != mark:
                return None
            counts = {split: file[f"counts_{split}"] for split in data.splits}
            return ClassIndex(counts, mark, _content(data, counts))
    except Exception:  # missing, or damaged in any way that zip and NumPy can fail at: counted anew
        return None


def _write(path: Path, index: ClassIndex) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            np.savez_compressed(
                file,
                fingerprint=np.array(index.fingerprint),
                **{f"counts_{split}": counts for split, counts in index.counts.items()},  # type: ignore[arg-type]
            )
        temporary.replace(path)
    except OSError:
        # A read-only data folder costs a recount at the next start, no more.
        temporary.unlink(missing_ok=True)
