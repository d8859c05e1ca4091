"""Unpacking zip and tar archives from strangers: nothing lands outside the folder, is overwritten, or grows.

Archives of images hold folders and plain files, so whatever else one holds is refused: links, devices, absolute
names, ``..``, and a name that occurs twice. Links are refused wherever they lead, since a later member could be
written through them; tarfile's own filter lets those inside the folder pass, and there is none for zips.

What an archive says of its sizes is not believed: headers, members and unpacked bytes are bounded.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import IO, NamedTuple

from rich.filesize import decimal as size_text

from plopcli.console.log import RunLog
from plopcli.data.byte_progress import byte_progress
from plopcli.errors import DataError, MachineError
from plopcli.files.disk import ensure_room, free_bytes, writing

_BLOCK = 1 << 16
_ZIP_HEADER = 30
#: Members of a tar that are looked at to see what it is; to list them all it must be read to its end.
_FIRST = 50
#: ADE20K has 44,000 members, whose directory has 6 MB; a directory is many times as large in memory.
_MEMBERS, _DIRECTORY = 80_000, 12 << 20
#: Images and masks are compressed already. What is unpacked may have this and so many times the archive's bytes.
_SMALL, _RATIO = 128 << 20, 100
_UNPACKERS = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ", lzma.open))
#: `ValueError` and `RecursionError`: numbers, texts and chains of headers that the libraries do not expect.
_BROKEN = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,
    ValueError,
    RecursionError,
)


class _ShortReads(io.BufferedReader):
    """A file of which nobody reads more than ``most`` bytes at once, whatever a header says about its own size."""

    most = _BLOCK

    def read(self, size: int | None = -1, /) -> bytes:
        """As of any file."""
        if size is not None and size > self.most:
            raise EOFError(f"a header of {size_text(size)}")
        return super().read(size)


class _Member(NamedTuple):
    """A member of an archive; ``kind`` is "file", "folder" or what is refused; ``read`` is how far into it we are."""

    name: str
    size: int
    kind: str
    open: Callable[[], IO[bytes] | None]
    read: int


def top_names(archive: Path) -> list[str]:
    """The names of the members with which an archive begins, and of all if it is a zip.

    Raises:
        DataError: It is no archive, or it is damaged.
    """
    if not archive.is_file():
        raise DataError(f"There is no file {archive}.")
    with _reading(archive):
        if _is_zip(archive):
            with _zip(archive) as file:
                return file.namelist()
        with _tar(archive) as (tar, *_):
            return [member.name for member in islice(tar, _FIRST)]


def check_archive(path: Path) -> None:
    """Raises where a file is no archive, or one that was cut off so that its beginning or its directory is lost.

    Raises:
        DataError: With the reason.
    """
    top_names(path)


def unpack(archive: Path, target: Path, log: RunLog, select: Callable[[str], bool] = lambda _: True) -> int:
    """Unpacks the members whose names ``select`` accepts into the new folder ``target``.

    Args:
        archive: A zip, or a tar with or without compression.
        target: Does not exist; nothing is left of it after a failure.
        log: Shows the progress.
        select: Takes the name of a file in the archive.

    Returns:
        Number of files.

    Raises:
        DataError: The archive is damaged, or a member is none that archives of images have.
        MachineError: There is no room, or ``target`` cannot be written.
    """
    with writing(target):
        target.mkdir(parents=True)
    try:
        with _reading(archive), byte_progress(log, f"unpacking {archive.name}") as bar:
            bar.begin(0, archive.stat().st_size)
            room, files = free_bytes(target), 0
            members = _zipped(archive, target, select) if _is_zip(archive) else _tarred(archive)
            for number, member in enumerate(members):
                if number == _MEMBERS:
                    raise _refused(archive, member.name, f"is one of more than {_MEMBERS:,}")
                parts = _safe_parts(member.name, archive)
                if member.kind == "folder" or not parts or not select("/".join(parts)):
                    continue
                if member.kind != "file":
                    raise _refused(archive, member.name, f"is {member.kind}")
                bar.update(member.read)
                room -= member.size
                if room < 0:
                    raise MachineError(
                        f"Not enough room in {target.parent} to unpack {archive.name}: {member.name} no longer fits.",
                        "Free some room, or choose a folder on another disk with --data-root.",
                    )
                _write(member, target.joinpath(*parts), archive)
                files += 1
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
    return files


def _write(member: _Member, path: Path, archive: Path) -> None:
    source = member.open()
    assert source is not None, "only files are opened"
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = path.open("xb", buffering=0)
    except MachineError as error:
        if isinstance(error.__cause__, (FileExistsError, NotADirectoryError)):
            raise _refused(archive, member.name, "is there twice") from error
        raise
    with source, stream:
        left = member.size
        while block := source.read(_BLOCK):
            left -= len(block)
            rest = memoryview(block)
            while rest:
                with writing(path):
                    rest = rest[stream.write(rest) :]
    if left:
        raise _refused(archive, member.name, "is not as long as the archive says")


def _safe_parts(name: str, archive: Path) -> list[str]:
    """The folders and the file of a member's name."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or re.search(r"[\\\0]|^[A-Za-z]:", name):
        raise _refused(archive, name, "would be written outside the folder")
    if len(name) > 1000 or any(len(os.fsencode(part)) > 255 for part in parts):
        raise _refused(archive, f"{name[:40]}...", "has a name that is too long for a file")
    return parts


def _zipped(archive: Path, target: Path, select: Callable[[str], bool]) -> Iterator[_Member]:
    with _zip(archive) as file:
        infos = sorted(file.infolist(), key=lambda info: info.header_offset)
        if not all(info.filename for info in infos):
            raise _refused(archive, "a member", "has no name")
        for one, other in pairwise(infos):
            if one.header_offset + _ZIP_HEADER + one.compress_size > other.header_offset:
                raise _refused(archive, other.filename, f"overlaps with {one.filename!r}")
        total = sum(info.file_size for info in infos if select(info.filename))
        _refuse_growth(archive, infos[-1].filename if infos else "", total)
        ensure_room(target.parent, total, f"{archive.name} unpacked")
        for info in infos:
            kind = stat.S_IFMT(info.external_attr >> 16)
            if info.is_dir():
                what = "folder"
            elif kind in (0, stat.S_IFREG, stat.S_IFDIR):
                # Python unpacks what other methods have packed in one go, however much it becomes.
                usual = info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
                what = "file" if usual else "packed by another method than deflate"
            else:
                what = "a link" if kind == stat.S_IFLNK else "a device"
            yield _Member(info.filename, info.file_size, what, partial(file.open, info), info.header_offset)


def _tarred(archive: Path) -> Iterator[_Member]:
    with _tar(archive) as (tar, raw, packed):
        while entry := tar.next():
            tar.members = []  # type: ignore[attr-defined]  # tarfile keeps all that it has read
            if packed:
                _refuse_growth(archive, entry.name, tar.offset)
            if entry.isdir():
                what = "folder"
            elif entry.isreg():
                what = "sparse" if entry.issparse() else "file"
            else:
                what = "a link" if entry.issym() or entry.islnk() else "a device"
            yield _Member(entry.name, entry.size, what, partial(tar.extractfile, entry), raw.tell())
        # tarfile takes a header that is cut off or damaged for the end. (Of a compressed tar, the compression tells.)
        if not packed:
            raw.seek(tar.offset)
            if (end := raw.read(tarfile.BLOCKSIZE)) not in (b"", bytes(tarfile.BLOCKSIZE)):
                raise tarfile.ReadError(f"no member begins with {end[:16]!r}")


@contextmanager
def _zip(archive: Path) -> Iterator[zipfile.ZipFile]:
    with _ShortReads(archive.open("rb", buffering=0)) as file:
        file.most = _DIRECTORY
        with zipfile.ZipFile(file) as opened:
            yield opened


@contextmanager
def _tar(archive: Path) -> Iterator[tuple[tarfile.TarFile, IO[bytes], bool]]:
    """The tar, the file that holds it, and whether it is compressed in there."""
    with archive.open("rb", buffering=0) as raw:
        start = raw.read(6)
        raw.seek(0)
        unpacker = next((unpacker for magic, unpacker in _UNPACKERS if start.startswith(magic)), None)
        with _ShortReads(unpacker(raw) if unpacker else raw) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            yield tar, raw, unpacker is not None


def _is_zip(archive: Path) -> bool:
    with archive.open("rb") as file:
        return file.read(2) == b"PK"


def _refuse_growth(archive: Path, member: str, unpacked: int) -> None:
    if unpacked > _SMALL + _RATIO * archive.stat().st_size:
        raise _refused(archive, member, f"makes it more than {_RATIO} times as large as it is packed")


def _refused(archive: Path, member: str, reason: str) -> DataError:
    return DataError(
        f"{archive} was refused: its member {member!r} {reason}.",
        f"Get {archive.name} anew, from a host that you trust; nothing was unpacked.",
    )


@contextmanager
def _reading(archive: Path) -> Iterator[None]:
    """Turns what a damaged archive causes into one clear error."""
    hint = f"Look at its size and where it came from ({size_text(archive.stat().st_size)}), or get it anew."
    try:
        yield
    except _BROKEN as error:
        reason = str(error).splitlines()[0].rstrip(":") if str(error) else type(error).__name__
        raise DataError(f"{archive} is no zip or tar archive, or it is damaged ({reason}).", hint) from error
    except RuntimeError as error:
        if "encrypted" not in str(error):
            raise
        raise DataError(f"{archive} is locked with a password.", hint) from error
    except OSError as error:
        raise DataError(f"{archive} cannot be read: {error.strerror or error}.", hint) from error
