"""Writing a file so that its name always stands for old or new content, whole.

`write_atomic` is the one way in which the package writes files under their final names. It survives

- a kill or an error: the name is given by one rename, when all is written;
- a power cut: the content is flushed before the rename and the folder after it. What is written later, and refers to
  the file, is therefore never on the disk without it;
- links and other writers: the temporary file has a random name and is created exclusively, so that nothing which lies
  there is written through. A link at the final name is replaced, not followed.

Files that grow (logs) are opened by `append`, which follows no link either.
"""

from __future__ import annotations

import errno
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TextIO

from plopcli.errors import UsageError

#: Names of files that are not finished.
TEMPORARY = ".plop-*.part"
#: Seconds after which a temporary file that nobody writes any more was left behind by a process that was killed.
_ABANDONED = 3600.0
_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
#: A pipe that nobody reads is refused, not waited for.
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)
#: File systems that cannot flush a folder say so with one of these.
_NO_FOLDER_FLUSH = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EISDIR)


def write_atomic(path: Path, content: bytes | str | Callable[[BinaryIO], object], *, durable: bool = True) -> None:
    """Writes a file whole or not at all.

    Args:
        path: The file; its folder exists.
        content: What it holds, text as UTF-8; or a function that writes it to a file that can be read and sought.
        durable: Whether to flush file and folder. Pictures that can be drawn again need not be.

    Raises:
        OSError: The system refuses; ``filename`` is ``path``. A file that was there before is intact.
    """
    temporary = path.parent / f".plop-{secrets.token_hex(8)}.part"
    try:
        with os.fdopen(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | _NO_LINK, 0o666), "w+b") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
        if durable:
            flush_folder(path.parent)
            remove_temporary(path.parent, older=_ABANDONED)
    except (OSError, RuntimeError) as error:
        refusal = _refusal_behind(error)
        if refusal is None:
            raise
        raise OSError(refusal.errno, refusal.strerror, str(path)) from error
    finally:
        with suppress(OSError):  # what could not be written can often not be removed either
            temporary.unlink()


def rename_durably(temporary: Path, path: Path) -> None:
    """Gives a finished file its name, so that after a power cut it is whole or not there.

    Raises:
        OSError: The system refuses.
    """
    flush(temporary)
    temporary.replace(path)
    flush_folder(path.parent)


@contextmanager
def append(path: Path) -> Iterator[TextIO]:
    """Opens a text file to add to its end; it is created where it is missing.

    Raises:
        OSError: The system refuses, or ``path`` is a link; ``filename`` is ``path``.
    """
    with naming(path):
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _NO_LINK | _NO_WAIT, 0o666)
        with os.fdopen(handle, "a", encoding="utf-8") as file:
            yield file


def remove_temporary(folder: Path, older: float = 0.0) -> None:
    """Removes what killed processes have left half-written in ``folder``.

    Args:
        folder: The folder; may be missing.
        older: Seconds since the last write. 0 is for folders that have one writer.
    """
    for leftover in folder.glob(TEMPORARY):
        with suppress(OSError):
            if time.time() - leftover.lstat().st_mtime >= older:
                leftover.unlink()


def flush(path: Path) -> None:
    """Makes what a file holds survive a power cut; its name does with `flush_folder`."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Makes new names in a folder, and removed ones, survive a power cut."""
    with suppress(PermissionError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno not in _NO_FOLDER_FLUSH:
                raise
        finally:
            os.close(handle)


def refuse_links(paths: Iterable[Path]) -> None:
    """Refuses links, pipes and devices among files and folders that are written to: they lead the writing elsewhere.

    Raises:
        UsageError: Names the first one.
    """
    for path in paths:
        if path.is_symlink():
            raise UsageError(
                f"{path} is a link, and nothing is written through links.",
                "Remove it, or put what it leads to in its place.",
            )
        if path.exists() and not path.is_file() and not path.is_dir():
            raise UsageError(f"{path} is a pipe or device, and what is written there is lost.", "Remove it.")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Lets an error of the system name ``path``: that of a write or a flush does not say which file it was."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def _refusal_behind(error: BaseException | None) -> OSError | None:
    """The system's refusal; torch follows it up with an error of its own when it closes its archive."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error
        error = error.__cause__ or error.__context__
    return None
