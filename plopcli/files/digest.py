"""SHA-256 of files, and the files ``NAME.sha256`` that hold it, as ``sha256sum -c`` reads them.

A digest beside a file has to be true of it after a crash at any moment, else a whole file would look damaged. So the
order is: remove the digest, write the file, write the digest; each is on the disk before the next begins. A digest that
is found was therefore made of the file that is there; what a crash can leave is a file without one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from plopcli.errors import DamagedFileError
from plopcli.files.atomic import flush_folder, write_atomic
from plopcli.files.plain import open_plain


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, as hexadecimal digits."""
    with open_plain(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_path(path: Path) -> Path:
    """Where the digest of ``path`` stands."""
    return path.with_name(f"{path.name}.sha256")


@contextmanager
def digest_renewed(path: Path) -> Iterator[None]:
    """Within it ``path`` is written, durably; then its digest is made."""
    _remove_digest(path)
    yield
    write_atomic(digest_path(path), f"{file_digest(path)}  {path.name}\n")


def remove_with_digest(path: Path) -> None:
    """Removes a file, if it is there, and the digest of it."""
    _remove_digest(path)
    path.unlink(missing_ok=True)


def _remove_digest(path: Path) -> None:
    with suppress(FileNotFoundError):
        digest_path(path).unlink()
        flush_folder(path.parent)


def check_digest(path: Path) -> None:
    """Compares a file with the digest beside it; does nothing where there is none.

    Raises:
        DamagedFileError: They do not fit.
        OSError: One of them cannot be read.
    """
    beside = digest_path(path)
    try:
        with open_plain(beside) as file:
            said = re.match(rb"([0-9a-fA-F]{64})\s", file.read(65))
    except FileNotFoundError:
        return
    if said is None or said[1].decode().lower() != file_digest(path):
        raise DamagedFileError(
            f"{path} is damaged or was replaced: its content does not fit {beside.name}.",
            f"Take a copy. If you have put another file there yourself, remove {beside.name}.",
        )
