"""The disk under what is written: room, and what the system refuses as one clear error."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.filesize import decimal as size_text

from plopcli.errors import DataError, MachineError

#: What the system answers where nothing more fits.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def free_bytes(folder: Path) -> int:
    """Bytes that may still be written to the file system of ``folder``, or of its nearest parent that exists."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def ensure_room(folder: Path, needed: int, purpose: str) -> None:
    """Raises where ``needed`` bytes do not fit.

    Raises:
        MachineError: There is less room; says how much is needed, where, and what for.
    """
    free = free_bytes(folder)
    if needed > free:
        raise MachineError(
            f"Not enough room in {folder}: {size_text(needed)} are needed ({purpose}), {size_text(free)} are free.",
            f"Free {size_text(needed - free)} there, or choose a folder on another disk with --data-root.",
        )


@contextmanager
def writing(place: Path, needed: int = 0) -> Iterator[None]:
    """Turns what the system refuses while ``place`` is written into one clear error.

    Args:
        place: The file or folder.
        needed: About how many bytes are written, for the message that the disk is full; 0 where nobody knows.

    Raises:
        MachineError: The disk is full, the folder cannot be written, and the like.
    """
    try:
        yield
    except OSError as error:
        intact = " What it held before is intact." if place.is_file() else ""
        if error.errno in FULL:
            size = f"needs {size_text(needed)}" if needed else "could not be written"
            raise MachineError(
                f"The disk is full: {place} {size}, and {size_text(free_bytes(place.parent))} are free.{intact}",
                "Free some room and start the same command again (a run with --resume); it goes on where it stopped.",
            ) from error
        raise MachineError(
            f"{error.filename or place} cannot be written: {error.strerror or error}.{intact}",
            "Give access to it, or choose another folder (of data sets: --data-root).",
        ) from error


def move_folder(source: Path, target: Path) -> None:
    """Moves a finished folder into its place on the same file system, in one step.

    Raises:
        DataError: ``target`` exists.
        MachineError: The system refuses.
    """
    if target.is_symlink() or target.exists():
        raise DataError(
            f"{target} is there already, but is not complete.",
            "Move it away (or remove it) and start the same command again.",
        )
    with writing(target):
        os.sync()  # thousands of small files: after a power cut they must not be empty under a name that says "done"
        target.parent.mkdir(parents=True, exist_ok=True)
        source.rename(target)
