"""Checking pairs of an image and a mask, and counting the mask's pixels by label on the way."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from plopcli.data.loader_processes import in_processes
from plopcli.data.reading import UnusableFileError, check_readable
from plopcli.data.samples import IGNORED, Sample

Counts = npt.NDArray[np.int64]
Table = npt.NDArray[np.uint8]
Progress = Callable[[int, int], None]

#: From here on several processes are faster than one, their start included: masks alone, and images as well.
_PARALLEL_FROM = {False: 2000, True: 500}
_CHUNK = 100
#: Seconds without one pair checked after which a process counts as stuck.
_TIMEOUT = 300.0
_SHOWN = 5
#: What of an image's file its mark depends on, beside the size: so much of the beginning and of the end.
_MARKED = 2**16


@dataclass(frozen=True)
class Problem:
    """What makes a pair unusable; ``kind`` is one of `reading.KINDS`."""

    kind: str
    message: str


class Checked(NamedTuple):
    """What was found out about a pair.

    Attributes:
        counts: (256,) pixels by label id.
        problem: What is wrong with it, if anything.
        mark: Digest of the mask's pixels and the image's file; 0 where one of them cannot be read.
    """

    counts: Counts
    problem: Problem | None
    mark: int


def check_pair(sample: Sample, classes: int, table: Table, *, whole: bool = False) -> Checked:
    """Counts and marks a sample, and says what is wrong with it, if anything.

    Args:
        sample: The pair.
        classes: Number of classes.
        table: From the id in a mask to the label id.
        whole: Decode all of the image, not its header alone.
    """
    nothing = np.zeros(256, dtype=np.int64)
    try:
        size, mask = check_readable(sample, whole=whole)
    except UnusableFileError as error:
        return Checked(nothing, Problem(error.kind, _whose(sample, error)), 0)
    if mask.size != size:
        shapes = [f"{width} x {height}" for width, height in (size, mask.size)]
        said = f"{sample.image} is {shapes[0]} but its mask {sample.mask} is {shapes[1]}"
        return Checked(nothing, Problem("sizes differ", said), 0)
    # Pillow counts bytes faster than NumPy, and only 256 numbers are left to be renumbered.
    by_id = np.array(mask.histogram(), dtype=np.int64)
    counts = np.bincount(table, weights=by_id, minlength=256).astype(np.int64)
    unknown = np.flatnonzero((by_id > 0) & (table >= classes) & (table != IGNORED))
    if len(unknown):
        return Checked(counts, Problem("unknown ids", _unknown_ids(sample, unknown.tolist(), classes, table)), 0)
    return Checked(counts, None, _mark(sample.image, mask.tobytes()))


def _mark(image: Path, ids: bytes) -> int:
    """Digest (int64) by which a pair that has changed, or that occurs twice, is known."""
    digest = hashlib.blake2b(ids, digest_size=8)
    with image.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest.update(file.read(_MARKED))
        file.seek(max(_MARKED, size - _MARKED))
        digest.update(file.read(_MARKED) + str(size).encode())
    return int.from_bytes(digest.digest(), signed=True)


def check_pairs(
    samples: Sequence[Sample], classes: int, table: Table, *, whole: bool, progress: Progress | None = None
) -> list[Checked]:
    """`check_pair` of all samples, in order, on all cores where there are many."""
    chunks = [samples[start : start + _CHUNK] for start in range(0, len(samples), _CHUNK)]
    check = partial(check_pair, classes=classes, table=table, whole=whole)
    processes = min(len(chunks), os.cpu_count() or 1) if len(samples) >= _PARALLEL_FROM[whole] else 1
    if processes > 1:
        done = in_processes(check, list, chunks, processes, _TIMEOUT)
    else:
        done = ([check(sample) for sample in chunk] for chunk in chunks)
    checked: list[Checked] = []
    with closing(done):
        for some in done:
            checked += some
            if progress:
                progress(len(checked), len(samples))
    return checked


def _whose(sample: Sample, error: UnusableFileError) -> str:
    """The message, which for a missing file names the other half of the pair."""
    if error.kind == "mask missing":
        return f"{sample.image} has no mask: {sample.mask} does not exist{_beside(sample.mask)}"
    if error.kind == "image missing" and os.path.exists(sample.mask):  # noqa: PTH110, names too long for a file
        return f"{sample.mask} has no image: {sample.image} does not exist{_beside(sample.image)}"
    return error.message


def _beside(path: Path) -> str:
    """Files that differ from a missing one in what follows the dot."""
    try:
        names = _names(path.parent, path.parent.stat().st_mtime_ns)
    except OSError:
        return ""
    others = names.get(path.stem, ())
    return f" (there is {', '.join(others)}, which is not read: save it as PNG)" if others else ""


@lru_cache(maxsize=8)
def _names(folder: Path, _changed: int) -> dict[str, tuple[str, ...]]:
    """The files of a folder by the name before the dot; ``_changed`` tells an older listing from the present one."""
    found: dict[str, tuple[str, ...]] = {}
    for name in sorted(os.listdir(folder)):  # noqa: PTH208, names alone
        stem = name.rpartition(".")[0] or name
        found[stem] = (*found.get(stem, ()), name)
    return found


def _unknown_ids(sample: Sample, unknown: list[int], classes: int, table: Table) -> str:
    listed = ", ".join(map(str, unknown[:_SHOWN])) + (", ..." if len(unknown) > _SHOWN else "")
    known = np.flatnonzero(table < classes)
    last = int(known[-1])
    message = f"{sample.mask} holds id {listed}; the classes end at {last}"
    return f"{message}: are the ids off by one?" if unknown == [last + 1] else message
