"""Reading files that may be something else: named pipes, devices, or far larger than what they are said to hold."""

from __future__ import annotations

import errno
import json
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any

#: Bytes of a text that a person has written, of a list of images, and of figures in JSON.
TEXT, LIST, FIGURES = 1 << 17, 1 << 26, 1 << 26
#: Values that a JSON text may hold: each takes up to 100 bytes, however few letters it has.
_VALUES = 1_500_000
#: What a shell names its own pipes by, as in ``--config <(...)``.
_OF_SHELLS = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")


def open_plain(path: Path) -> BufferedReader:
    """Opens a file to be read; waits for nobody to write it.

    Raises:
        OSError: The system refuses, or it is a pipe, a device or a folder.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(number, "Is a folder" if stat.S_ISDIR(mode) else "It is a pipe or device, not a file", str(path))
    return os.fdopen(handle, "rb")


def check_plain(path: Path) -> None:
    """Refuses what `open_plain` refuses.

    Raises:
        OSError: As there.
    """
    open_plain(path).close()


def read_plain(path: Path, limit: int) -> bytes:
    """The content of a file.

    Args:
        path: The file.
        limit: Bytes that it may have.

    Raises:
        OSError: The system refuses, it is no file, or larger.
    """
    with path.open("rb") if str(path).startswith(_OF_SHELLS) else open_plain(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"It is larger than any such file ({limit >> 10} KiB)", str(path))
    return content


def read_text(path: Path, limit: int = TEXT) -> str:
    """The content of a text file in UTF-8, with a byte order mark or without.

    Raises:
        OSError: As `read_plain`.
        UnicodeDecodeError: It is no UTF-8.
    """
    return read_plain(path, limit).decode("utf-8-sig").replace("\r\n", "\n")


def parse_json(text: bytes, *, nan: bool = True) -> Any:
    """The value that a JSON text holds.

    Args:
        text: The text.
        nan: Whether Python's NaN and Infinity, which are not JSON, are taken.

    Raises:
        ValueError: It is no JSON, or holds more values, or deeper ones, than figures ever do.
    """
    if sum(map(text.count, (b",", b"[", b"{"))) > _VALUES:
        raise ValueError("it holds too many values")
    try:
        return json.loads(text.decode("utf-8"), parse_constant=float if nan else _not_json)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _not_json(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")
