"""Unpacking zip and tar archives from strangers: nothing lands outside the folder, and nothing is overwritten.

Archives of images hold folders and plain files, so whatever else one holds is refused: links, devices, absolute
names, ``..``, and a name that occurs twice. Links are refused wherever they lead, since a later member could be
written through them.
"""

from __future__ import annotations

import lzma
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Literal, NamedTuple

from rich.filesize import decimal as size_text

from plopcli.console.log import RunLog
from plopcli.data.byte_progress import byte_progress
from plopcli.errors import DataError, MachineError
from plopcli.files.disk import ensure_room, free_bytes, writing

_BLOCK = 1 << 20
#: Members of a tar that are looked at to see what it is; to list them all it must be read to its end.
_FIRST = 50
_BROKEN = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError)


class _Member(NamedTuple):
    """A member of an archive; ``read`` is how far into the archive it is, in bytes."""

    name: str
    size: int
    kind: Literal["file", "folder", "link", "device"]
    open: Callable[[], IO[bytes]]
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
            with zipfile.ZipFile(archive) as file:
                return file.namelist()
        with tarfile.open(archive) as tar:
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
            budget = free_bytes(target)
            files = 0
            for member in _members(archive, target, select):
                bar.update(member.read)
                parts = _safe_parts(member.name, archive)
                if member.kind == "folder" or not parts or not select("/".join(parts)):
                    continue
                if member.kind != "file":
                    raise _refused(archive, member.name, f"is a {member.kind}")
                budget -= member.size
                if budget < 0:
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
    return parts


def _members(archive: Path, target: Path, select: Callable[[str], bool]) -> Iterator[_Member]:
    if _is_zip(archive):
        with zipfile.ZipFile(archive) as file:
            infos = file.infolist()
            if not all(info.filename for info in infos):
                raise _refused(archive, "a member", "has no name")
            total = sum(info.file_size for info in infos if select(info.filename))
            ensure_room(target.parent, total, f"{archive.name} unpacked")
            for info in infos:
                mode = info.external_attr >> 16
                kind: Literal["file", "folder", "link", "device"] = "folder" if info.is_dir() else "file"
                if stat.S_ISLNK(mode):
                    kind = "link"
                elif stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                    kind = "device"
                yield _Member(info.filename, info.file_size, kind, _opener(file, info), info.header_offset)
        return
    with archive.open("rb") as raw, tarfile.open(fileobj=raw) as tar:
        for entry in tar:
            if entry.isdir():
                kind = "folder"
            elif entry.isreg():
                kind = "file"
            else:
                kind = "link" if entry.issym() or entry.islnk() else "device"
            yield _Member(entry.name, entry.size, kind, _tar_opener(tar, entry), raw.tell())
        # tarfile takes a header that is cut off or damaged for the end. (Of a compressed tar, the compression tells.)
        if tar.fileobj is raw:
            raw.seek(tar.offset)
            if (end := raw.read(tarfile.BLOCKSIZE)) not in (b"", bytes(tarfile.BLOCKSIZE)):
                raise tarfile.ReadError(f"no member begins with {end[:16]!r}")


def _opener(file: zipfile.ZipFile, info: zipfile.ZipInfo) -> Callable[[], IO[bytes]]:
    return lambda: file.open(info)


def _tar_opener(tar: tarfile.TarFile, entry: tarfile.TarInfo) -> Callable[[], IO[bytes]]:
    def open_entry() -> IO[bytes]:
        stream = tar.extractfile(entry)
        assert stream is not None, "only files are opened"
        return stream

    return open_entry


def _is_zip(archive: Path) -> bool:
    with archive.open("rb") as file:
        return file.read(2) == b"PK"


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
