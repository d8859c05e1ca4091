"""Files that hosts offer: what they are called, where they are, what they hash to."""

from __future__ import annotations

import hashlib
import os
import urllib.parse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

from plopcli.errors import UsageError

#: Address of a folder that holds all files under their names; where it is set, nothing else is asked.
MIRROR = "PLOP_MIRROR"


@dataclass(frozen=True)
class Checksum:
    """A known digest of a file: all of its hex digits, or the first of them."""

    algorithm: Literal["md5", "sha1", "sha256"]
    digest: str

    def of(self, path: Path) -> str:
        """The digest of a file, as many hex digits as are known."""
        with path.open("rb") as file:
            return hashlib.file_digest(file, self.algorithm).hexdigest()[: len(self.digest)]

    def complaint(self, path: Path) -> str | None:
        """What is wrong with a file; None if it is the right one."""
        found = self.of(path)
        return None if found == self.digest else f"{self.algorithm} {found} instead of {self.digest}"


@dataclass(frozen=True)
class RemoteFile:
    """A file that hosts offer.

    Args:
        name: Its name, in messages and on a mirror.
        urls: Where it is, the best host first; empty if it has to be got by hand.
        checksum: What it must hash to, None where nobody has published that.
        size: Its bytes, to see in advance whether there is room; the host has the last word.
    """

    name: str
    urls: tuple[str, ...]
    checksum: Checksum | None = None
    size: int = 0


FileT = TypeVar("FileT", bound=RemoteFile)


def mirrored(file: FileT) -> FileT:
    """The same file, on the mirror that the environment names, if it names one.

    Raises:
        UsageError: That is no address.
    """
    mirror = os.environ.get(MIRROR, "").strip()
    if not mirror:
        return file
    try:
        parts = urllib.parse.urlsplit(mirror)
        sound = parts.scheme in ("http", "https") and bool(parts.netloc)
    except ValueError:
        sound = False
    if not sound:
        raise UsageError(
            f"{MIRROR} = {mirror} is no address of a host.", f"For example: {MIRROR}=https://files.example.org/plop"
        )
    return replace(file, urls=(f"{mirror.rstrip('/')}/{urllib.parse.quote(file.name)}",))
