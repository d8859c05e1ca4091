"""Official split files: which images each step trains on, as positions in the sorted train list.

MiB publishes its choice of ADE20K images in this form, `train-0.npy` for step 0 and so on; it follows from no protocol.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from plopcli.data.samples import Sample
from plopcli.errors import DataError
from plopcli.scenarios.protocols import Indices


@dataclass(frozen=True)
class OfficialSplits:
    """The training images of every step.

    Args:
        folder: Where the files are.
        rows: For each step, positions in the train list as the data set has it, in the order of the file.
        digest: Digest of the files' content.
    """

    folder: Path
    rows: tuple[Indices, ...]
    digest: str


def read_splits(folder: Path, steps: int, samples: tuple[Sample, ...]) -> OfficialSplits:
    """Reads `train-0.npy` to the last step's.

    Args:
        folder: Where they are.
        steps: Number of steps of the task.
        samples: The train list; positions in the files count in it once it is sorted by name.

    Raises:
        DataError: A file is missing, or no list of positions in the train list.
    """
    by_name = np.array(sorted(range(len(samples)), key=lambda row: samples[row].name), dtype=np.int64)
    digest = hashlib.sha256()
    rows = []
    for step in range(steps):
        path = folder / f"train-{step}.npy"
        positions = _read(path, steps)
        if len(positions) == 0:
            raise DataError(f"{path} is empty: step {step} would have no image.", "Each file lists the step's images.")
        beyond = positions[(positions < 0) | (positions >= len(samples))]
        if len(beyond):
            raise DataError(
                f"{path} names image {beyond[0]}, but the train list has images 0 to {len(samples) - 1}.",
                "The files belong to another data set, or the training images are not complete.",
            )
        if len(np.unique(positions)) < len(positions):
            raise DataError(f"{path} names an image twice.", "Each image of a step is listed once.")
        digest.update(positions.astype("<i8").tobytes())
        rows.append(by_name[positions])
    return OfficialSplits(folder, tuple(rows), digest.hexdigest())


def _read(path: Path, steps: int) -> Indices:
    if not path.is_file():
        found = ", ".join(sorted(file.name for file in path.parent.glob("*.npy"))) or "no .npy file"
        raise DataError(
            f"{path} does not exist. The folder holds {found}.",
            f"A task of {steps} steps needs train-0.npy to train-{steps - 1}.npy.",
        )
    try:
        positions = np.load(path, allow_pickle=False)
    except Exception as error:  # a damaged header makes NumPy fail in any way it likes
        raise DataError(f"{path} cannot be read: {error}.", "It should be a NumPy array of integers.") from error
    if not isinstance(positions, np.ndarray) or positions.ndim != 1 or positions.dtype.kind not in "iu":
        raise DataError(f"{path} is no list of positions.", "It should be a one-dimensional NumPy array of integers.")
    return positions.astype(np.int64)
