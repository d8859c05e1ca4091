"""From archives to a finished data set: takes the user's copies or fetches, unpacks aside, moves into place."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rich.filesize import decimal as size_text

from plopcli.console.log import RunLog
from plopcli.data.archives import check_archive, top_names, unpack
from plopcli.data.download.sources import Archive
from plopcli.data.http import fetch
from plopcli.data.remote import RemoteFile, mirrored
from plopcli.errors import DataError
from plopcli.files.disk import ensure_room, move_folder, writing


@dataclass(frozen=True)
class DownloadChoices:
    """What the user says about a download.

    Args:
        own: Archives, or a weights file, that are there already.
        accept_checksum: Take files whose checksum is not the expected one.
        keep_archives: Leave archives beside the data when they have been unpacked.
    """

    own: tuple[Path, ...] = ()
    accept_checksum: bool = False
    keep_archives: bool = False


class Delivery:
    """The archives of one data set, on their way into its folder.

    Args:
        name: Name of the data set.
        root: Its folder; held for this process.
        archives: All that it may be made of.
        choices: What the user says.
        log: Tells about everything.

    Raises:
        DataError: A file of the user's is none of these archives.
    """

    def __init__(
        self, name: str, root: Path, archives: Sequence[Archive], choices: DownloadChoices, log: RunLog
    ) -> None:
        self.name, self.root, self.choices, self.log = name, root, choices, log
        self.shelf = root / "archives"
        self._workshop = root / ".unpacking"
        self._own = _recognise(choices.own, archives, name)
        shutil.rmtree(self._workshop, ignore_errors=True)  # what a killed run has left

    def has(self, archive: Archive) -> bool:
        """Whether the user has brought it."""
        return archive in self._own

    def can_fetch(self, archive: Archive) -> bool:
        """Whether there is an address to fetch it from."""
        return bool(mirrored(archive).urls)

    def ensure_room(self, archives: Iterable[Archive]) -> None:
        """Raises a `MachineError` unless there is room for all that has to be fetched and unpacked."""
        fetched = sum(max(0, archive.size - self._there(archive)) for archive in archives if not self.has(archive))
        unpacked = sum(archive.unpacked for archive in archives)
        purpose = f"{size_text(fetched)} of archives and {size_text(unpacked)} unpacked"
        ensure_room(self.root, fetched + unpacked, purpose)

    def unpacked(self, archive: Archive, select: Callable[[str], bool] | None = None) -> Path:
        """Gets an archive and unpacks what ``select`` accepts, by default all that belongs to the data set.

        Returns:
            A folder on the file system of the data set. Files are to be moved out of it before the next call.
        """
        path = self._own.get(archive) or self._fetched(archive)
        shutil.rmtree(self._workshop, ignore_errors=True)
        select = select or (lambda member: member.startswith(archive.holds))
        files = unpack(path, self._workshop, self.log, select)
        self.log.say(f"{archive.name}: {files:,} files unpacked")
        return self._workshop

    def place(self, source: Path, target: Path) -> None:
        """Moves a finished folder to where it belongs, in one step.

        Raises:
            DataError: It is not there, or something is in its place.
        """
        if not source.is_dir():
            raise DataError(
                f"The archive holds no {source.relative_to(self._workshop)}.",
                f"Check where it came from; `plop download {self.name}` fetches the right one.",
            )
        move_folder(source, target)

    def finish(self, archive: Archive) -> None:
        """What an archive has brought is in place: cleans up, and drops the archive unless the user wants it kept."""
        shutil.rmtree(self._workshop, ignore_errors=True)
        if not self.choices.keep_archives:
            with suppress(OSError):  # not there, or others are still in there
                (self.shelf / archive.name).unlink()
                self.shelf.rmdir()

    def check_pairs(self, folder: Path, split: str, images: set[str], masks: set[str], published: int) -> None:
        """Says how many pairs a split has, and how many the published one.

        Raises:
            DataError: A file lacks its partner.
        """
        if unpaired := sorted(images ^ masks):
            raise DataError(
                f"{folder}: {len(unpaired)} of the {split} files have no partner, such as {unpaired[0]}.",
                f"Move away (or remove) what is in {folder}, and start the same command again.",
            )
        note = "" if len(images) == published else f" (the published set has {published:,})"
        self.log.say(f"{split}: {len(images):,} images with labels{note}")

    def _there(self, archive: Archive) -> int:
        """Bytes of an archive that have been fetched before."""
        places = (self.shelf / archive.name, self.shelf / f"{archive.name}.part")
        return max((path.stat().st_size for path in places if path.is_file()), default=0)

    def _fetched(self, archive: Archive) -> Path:
        with writing(self.shelf):
            self.shelf.mkdir(exist_ok=True)
        try:
            return fetch(
                mirrored(archive),
                self.shelf / archive.name,
                self.log,
                accept_checksum=self.choices.accept_checksum,
                check=check_archive,
                room=archive.unpacked,
            )
        finally:
            with suppress(OSError):
                self.shelf.rmdir()  # nothing has come

    def verify_own(self) -> None:
        """Compares the checksums of the user's archives, where they are known."""
        for archive, path in self._own.items():
            verify(path, archive, self.choices.accept_checksum, self.log)


def verify(path: Path, file: RemoteFile, accept: bool, log: RunLog) -> None:
    """Compares the checksum of a user's file, where it is known.

    Raises:
        DataError: It is another one, and not accepted.
    """
    complaint = file.checksum and file.checksum.complaint(path)
    if complaint and not accept:
        raise DataError(
            f"{path} is not the {file.name} that is expected: {complaint}.",
            "It may be damaged or another version. If you know better, take it with --accept-checksum.",
        )
    if complaint:
        log.say(f"{path} has {complaint}; accepted", style="yellow")


def _recognise(own: Sequence[Path], archives: Sequence[Archive], name: str) -> dict[Archive, Path]:
    """Which of the user's files is which archive, going by what it holds."""
    found: dict[Archive, Path] = {}
    for path in own:
        members = top_names(path)
        archive = next(
            (archive for archive in archives if any(member.startswith(archive.holds) for member in members)), None
        )
        if archive is None:
            tops = sorted({member.removeprefix("./").split("/")[0] for member in members})[:4]
            wanted = ", ".join(f"{archive.name} (holds {archive.holds})" for archive in archives)
            raise DataError(
                f"{path} is no archive of data set {name}: it holds {', '.join(tops) or 'nothing'}.",
                f"Known are {wanted}.",
            )
        if archive in found:
            raise DataError(f"{found[archive]} and {path} are both {archive.name}.", "Pass one of them.")
        found[archive] = path
    return found
