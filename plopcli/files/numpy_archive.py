"""Reading archives of NumPy arrays (``.npz``) that are no larger in memory than on the disk, or than is said."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np


@contextmanager
def stored_arrays(file: BinaryIO, inflating_to: int | None = None) -> Iterator[Any]:
    """The arrays of an archive by name, each read when it is asked for.

    Args:
        file: The open archive.
        inflating_to: Bytes that all members together may unpack to; None: as many as the file has.

    Raises:
        ValueError: They would be larger, or it is no archive.
    """
    size = os.fstat(file.fileno()).st_size
    with zipfile.ZipFile(file) as archive:
        if sum(member.file_size for member in archive.infolist()) > (size if inflating_to is None else inflating_to):
            raise ValueError("it unpacks to more than it may hold")
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        if not isinstance(arrays, np.lib.npyio.NpzFile):
            raise ValueError("it is no archive of arrays")
        yield arrays
