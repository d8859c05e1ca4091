"""The confusion matrix of every step, as ``confusion/step-N.npz``: whatever figure is wanted later follows from it.

A file holds ``counts`` (C, C), int64 pixels, rows truth, columns prediction; ``classes`` (C,), their names in learned
order; and where steps bring domains ``domains`` (D,), their names, and ``domain_counts`` (D, C, C).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from plopcli.errors import DamagedFileError, DataError
from plopcli.files.atomic import make_folder, write_atomic
from plopcli.files.numpy_archive import stored_arrays
from plopcli.files.plain import open_plain

Counts = npt.NDArray[np.int64]

#: Bytes of what a file may unpack to: 254 classes in some hundred domains.
_LIMIT = 1 << 26
_MOST_NAMES = 1 << 16
#: What a file holds, without and with domains; a name that a flipped bit has changed must not hide an array.
_ARRAYS = ({"classes", "counts"}, {"classes", "counts", "domains", "domain_counts"})


@dataclass(frozen=True)
class Confusion:
    """What one step was measured to confuse.

    Args:
        classes: Names in learned order.
        counts: Pixels (C, C), rows truth, columns prediction.
        domains: The same of each domain, where steps bring domains.
    """

    classes: list[str]
    counts: Counts
    domains: Mapping[str, Counts] = field(default_factory=dict)


def write_confusion(path: Path, confusion: Confusion) -> None:
    """Writes a matrix, whole or not at all; the folder is made."""
    arrays: dict[str, npt.NDArray[np.int64] | npt.NDArray[np.str_]] = {
        "counts": confusion.counts,
        "classes": np.array(confusion.classes, dtype=np.str_),
    }
    if confusion.domains:
        arrays["domains"] = np.array(list(confusion.domains), dtype=np.str_)
        arrays["domain_counts"] = np.stack(list(confusion.domains.values()))
    make_folder(path.parent)
    write_atomic(path, lambda file: np.savez_compressed(file, **arrays))  # type: ignore[arg-type]


def read_confusion(path: Path) -> Confusion:
    """Reads a matrix.

    Raises:
        DataError: There is none, as in runs of earlier versions, or it cannot be read.
        DamagedFileError: It is not as it was written.
    """
    try:
        with open_plain(path) as file, stored_arrays(file, inflating_to=_LIMIT) as arrays:
            if set(arrays.files) not in _ARRAYS:
                raise ValueError("its arrays are not those of a matrix")
            counts = arrays["counts"]
            classes = _names(arrays["classes"])
            domains = _names(arrays["domains"]) if "domains" in arrays else []
            by_domain = arrays["domain_counts"] if domains else counts[:0]
    except FileNotFoundError as error:
        raise DataError(
            f"There is no confusion matrix {path}.", f"Measure it: plop evaluate RUN --confusion {path.parent}"
        ) from error
    except OSError as error:
        if error.filename is None:  # of a place in the file that is not there
            raise _damaged(path, str(error)) from error
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # damaged in any way that zip and NumPy can fail at
        raise _damaged(path, str(error)) from error
    size = (len(classes), len(classes))
    fits = counts.shape == size and (not domains or by_domain.shape == (len(domains), *size))
    if not fits or counts.dtype != np.int64 or by_domain.dtype != np.int64:
        raise _damaged(path, "its arrays do not fit each other")
    return Confusion(classes, counts, dict(zip(domains, by_domain, strict=True)))


def _names(array: npt.NDArray[Any]) -> list[str]:
    if array.ndim != 1 or array.size > _MOST_NAMES:
        raise ValueError("it names more than classes and domains")
    return [str(name) for name in array]


def _damaged(path: Path, reason: str) -> DamagedFileError:
    return DamagedFileError(
        f"{path} is damaged: {reason}.", f"Measure it anew: plop evaluate RUN --confusion {path.parent}"
    )
