"""The disk under a download: room, refusals as clear errors, one writer at a time, files whole or not there."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.filesize import decimal as size_text

from plopcli.errors import DataError, MachineError

if sys.platform != "win32":
    import fcntl

_LOCK = ".plop-download.lock"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


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
def writing(place: Path) -> Iterator[None]:
    """Turns what the system refuses while ``place`` is written into one clear error.

    Raises:
        MachineError: The disk is full, the folder cannot be written, and the like.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise MachineError(
                f"The disk is full: {place} could not be written.",
                "Free some room and start the same command again; it goes on where it stopped.",
            ) from error
        raise MachineError(
            f"{error.filename or place} cannot be written: {error.strerror or error}.",
            "Give access to it, or choose another folder with --data-root.",
        ) from error


@contextmanager
def one_writer(folder: Path) -> Iterator[None]:
    """Makes ``folder`` and holds it for this process. The system lets go of it when the process ends, however it ends.

    A folder that is as empty as before in the end is removed.

    Raises:
        MachineError: Another process holds it, or it cannot be written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _lock(handle, folder)
        try:
            yield
        finally:
            with suppress(OSError):
                if [path.name for path in folder.iterdir()] == [_LOCK]:
                    (folder / _LOCK).unlink()
                    folder.rmdir()
    finally:
        os.close(handle)


def _lock(handle: int, folder: Path) -> None:
    if sys.platform == "win32":  # no flock there: two downloads at once are the user's own affair
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        busy = os.fstat(handle).st_nlink == 0  # its last holder has just removed it
    except BlockingIOError:
        busy = True
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        busy = False
    if busy:
        raise MachineError(
            f"Another plop download is filling {folder}.", "Wait until it has ended, or stop it; then start again."
        )


def replace_whole(temporary: Path, target: Path) -> None:
    """Gives a finished file its name, so that after a power cut it is whole or not there.

    Raises:
        MachineError: The system refuses.
    """
    with writing(target):
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
        handle = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


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
