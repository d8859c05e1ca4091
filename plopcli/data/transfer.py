"""Fetching a file over HTTP: from the first host that has it, in as many pieces as it takes, and never by halves.

A file grows as ``NAME.part``. ``NAME.part.json`` beside it says of which version of the file, on which host, it is a
piece; after a cut, or in a second run of the program, the rest is asked for and appended only if the host still has
that very version. A finished file is checked before it gets its name. One that fails the check is kept as
``NAME.bad``, so that nobody has to fetch it again who knows better.
"""

from __future__ import annotations

import email.utils
import http.client
import json
import random
import re
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from email.message import Message
from io import FileIO
from pathlib import Path

from rich.filesize import decimal as size_text

from plopcli import __version__
from plopcli.console.log import RunLog
from plopcli.data.byte_progress import ByteProgress, byte_progress
from plopcli.data.remote import RemoteFile
from plopcli.errors import DataError
from plopcli.files.atomic import rename_durably
from plopcli.files.disk import ensure_room, writing

_CHUNK = 1 << 18
#: Answers after which the same request may well succeed.
_PASSING = (408, 425, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class Patience:
    """How long a host is put up with.

    Args:
        timeout: Seconds without a byte until a connection counts as dead.
        tries: Tries in a row that bring nothing new before a host that has answered is given up.
        tries_unheard: The same for a host that has never answered.
        pause: Seconds before the second try; doubled for each further one, and shortened at random by up to half.
        longest: No pause is longer; a host that asks for more is given up.
        connections: Connections to one host in all.
    """

    timeout: float = 30.0
    tries: int = 6
    tries_unheard: int = 2
    pause: float = 1.0
    longest: float = 120.0
    connections: int = 2000

    def wait(self, tries: int) -> float:
        """Seconds to pause after ``tries`` failures in a row."""
        return min(self.longest, self.pause * 2.0 ** (tries - 1)) * random.uniform(0.5, 1.0)


class _CutError(Exception):
    """A try failed, another one may succeed, after ``wait`` seconds if the host said so."""

    def __init__(self, reason: str, wait: float | None = None, heard: bool = True) -> None:
        super().__init__(reason)
        self.wait, self.heard = wait, heard


class _GivenUpError(Exception):
    """This host does not give the file; the reason is the message."""


@dataclass(frozen=True)
class _Version:
    """Which version of a file a piece belongs to; as JSON the content of ``NAME.part.json``."""

    url: str
    total: int | None
    etag: str | None
    modified: str | None

    @property
    def condition(self) -> str | None:
        """The value of If-Range: a weak tag does not promise the same bytes."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.modified

    def same_as(self, other: _Version) -> bool:
        """Whether nothing that both know differs."""
        pairs = ((self.total, other.total), (self.etag, other.etag), (self.modified, other.modified))
        return all(mine == theirs for mine, theirs in pairs if mine is not None and theirs is not None)


def fetch(
    file: RemoteFile,
    target: Path,
    log: RunLog,
    *,
    accept_checksum: bool = False,
    check: Callable[[Path], None] | None = None,
    room: int = 0,
    patience: Patience | None = None,
) -> Path:
    """Gets ``file`` as ``target``, unless it is there and has the right checksum.

    Args:
        file: What to get, and where.
        target: The path that the complete file gets; its folder exists.
        log: Tells about progress and retries.
        accept_checksum: Take the file even if its checksum is another one than expected.
        check: Looks at a complete file, and raises a `DataError` unless it is sound.
        room: Bytes that must stay free beside the file.
        patience: How long a host is put up with.

    Returns:
        ``target``.

    Raises:
        DataError: No host gave the file.
        MachineError: There is no room, or ``target`` cannot be written.
    """
    download = _Download(file, target, log, accept_checksum, check, room, patience or Patience())
    if target.is_file() and (accept_checksum or (file.checksum and not file.checksum.complaint(target))):
        return target
    if accept_checksum and download.take_refused():
        return target
    failures: list[str] = []
    for url in download.hosts():
        if failures:
            log.say(f"{file.name}: {failures[-1]}; trying {_host(url)}")
        try:
            with byte_progress(log, file.name) as bar:
                download.from_host(url, bar)
                download.finish()
        except _GivenUpError as failure:
            failures.append(f"{_host(url)}: {failure}")
        except KeyboardInterrupt:
            log.say(f"Stopped; {size_text(download.have())} of {file.name} are kept. The same command goes on there.")
            raise
        else:
            log.say(f"{file.name}: {size_text(target.stat().st_size)} from {_host(url)}")
            return target
    raise download.error(failures)


class _Download:
    """One file on its way."""

    def __init__(
        self,
        file: RemoteFile,
        target: Path,
        log: RunLog,
        accept_checksum: bool,
        check: Callable[[Path], None] | None,
        room: int,
        patience: Patience,
    ) -> None:
        self.file, self.target, self.log, self.patience = file, target, log, patience
        self.accept_checksum, self.check, self.room = accept_checksum, check, room
        self.part = target.with_name(f"{target.name}.part")
        self.record = target.with_name(f"{target.name}.part.json")
        self.aside = target.with_name(f"{target.name}.bad")
        self.refused = False

    def hosts(self) -> Sequence[str]:
        """The addresses to try; the one that has given the first piece comes first."""
        version = self._version()
        return sorted(self.file.urls, key=lambda url: version is None or url != version.url)

    def have(self) -> int:
        """Bytes that are there."""
        return self.part.stat().st_size if self.part.is_file() else 0

    def from_host(self, url: str, bar: ByteProgress) -> None:
        """Fills ``part`` from one host, over as many connections as that takes, or raises `_GivenUpError`."""
        tries, heard, furthest = 0, False, self.have()
        if furthest:
            self.log.say(f"{self.file.name}: {size_text(furthest)} are there already")
        for _ in range(self.patience.connections):
            try:
                self._connect(url, bar)
            except _CutError as cut:
                heard |= cut.heard
                if self.have() > furthest:
                    tries, heard, furthest = 0, True, self.have()
                tries += 1
                if tries >= (self.patience.tries if heard else self.patience.tries_unheard):
                    raise _GivenUpError(f"{cut} ({tries} tries)") from cut
                pause = self.patience.wait(tries) if cut.wait is None else cut.wait
                if pause > self.patience.longest:
                    raise _GivenUpError(f"{cut}; it asks to wait {pause:.0f} s") from cut
                self.log.say(f"{self.file.name}: {_host(url)}: {cut}; next try in {pause:.0f} s")
                time.sleep(pause)
            else:
                return
        raise _GivenUpError(f"still incomplete after {self.patience.connections} connections")

    def _connect(self, url: str, bar: ByteProgress) -> None:
        """One connection: returns when ``part`` is complete, else raises `_CutError` or `_GivenUpError`."""
        start, version = self._resumable(url)
        if version is not None and start == version.total:
            return
        headers = {"User-Agent": f"plop/{__version__}", "Accept-Encoding": "identity"}
        if version is not None:
            headers["Range"] = f"bytes={start}-"
            if version.condition:
                headers["If-Range"] = version.condition
        try:
            request = urllib.request.Request(url, headers=headers)
            with urllib.request.urlopen(request, timeout=self.patience.timeout) as response:
                self._receive(response, url, start, version, bar)
        except urllib.error.HTTPError as error:
            with error:
                self._refused(error, start)
        except urllib.error.URLError as error:
            raise _no_answer(error.reason) from error
        except TimeoutError as error:
            raise _CutError(f"silent for {self.patience.timeout:g} s", heard=False) from error
        except (OSError, http.client.HTTPException) as error:
            raise _CutError(f"the connection broke ({_reason(error)})") from error

    def _resumable(self, url: str) -> tuple[int, _Version | None]:
        """How many bytes can be kept, and of which version they are; (0, None) for a fresh start."""
        version, have = self._version(), self.have()
        if version is None or version.url != url or not have or have > (version.total or have):
            return 0, None
        # Without anything to tell versions apart, only a checksum would notice two that are glued together.
        certain = version.condition or (version.total and self.file.checksum)
        return (have, version) if certain else (0, None)

    def _receive(
        self, response: http.client.HTTPResponse, url: str, start: int, version: _Version | None, bar: ByteProgress
    ) -> None:
        """Reads the body behind the ``start`` bytes that are there, if the answer is the rest of that version."""
        if response.headers.get_content_type() == "text/html":
            raise _GivenUpError("answered with a web page instead of the file")
        first, total = _extent(response)
        offered = _Version(url, total, response.headers.get("ETag"), response.headers.get("Last-Modified"))
        if first != start or (version and start and not version.same_as(offered)):
            if first == 0:
                self.log.say(f"{self.file.name}: {_host(url)} gives the whole file only, or a newer one; starting over")
                start = 0
            else:
                self._forget()
                raise _CutError("sent another piece than was asked for; starting over")
        if total is not None:
            ensure_room(self.target.parent, max(total - start, 0) + self.room, f"for {self.file.name}")
        with writing(self.part):
            self.record.write_text(json.dumps(asdict(offered)), "utf-8")
            # Unbuffered, so that no byte is left for close() to fail on.
            stream = self.part.open("ab" if start else "wb", buffering=0)
        with stream:
            bar.begin(start, total)
            done = self._copy(response, stream, start, total, bar)
        if total is not None and done < total:
            raise _CutError(f"the connection ended after {size_text(done)} of {size_text(total)}")

    def _copy(
        self, response: http.client.HTTPResponse, stream: FileIO, start: int, total: int | None, bar: ByteProgress
    ) -> int:
        """Appends the body behind byte ``start``; returns the length of the file then."""
        done = start
        while total is None or done < total:
            chunk = response.read1(_CHUNK if total is None else min(_CHUNK, total - done))
            if not chunk:
                break
            rest = memoryview(chunk)
            while rest:
                with writing(self.part):
                    rest = rest[stream.write(rest) :]
            done += len(chunk)
            bar.update(done)
        return done

    def _refused(self, error: urllib.error.HTTPError, start: int) -> None:
        """Makes of an error status what it means; returns if it means that the file is complete."""
        if error.code == 416:
            total = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
            if total and int(total[1]) == start:
                return
            self._forget()
            raise _CutError("the file there is shorter now; starting over", wait=0.0) from error
        reason = f"{error.code} {error.reason}".rstrip()
        if error.code in _PASSING:
            raise _CutError(reason, wait=_retry_after(error.headers)) from error
        raise _GivenUpError(reason) from error

    def finish(self) -> None:
        """Checks the complete ``part`` and gives it its name, or puts it aside and raises `_GivenUpError`."""
        complaint = self.file.checksum and self.file.checksum.complaint(self.part)
        if complaint and not self.accept_checksum:
            self.refused = True
            raise self._set_aside(f"the file has {complaint}.")
        if complaint:
            self.log.say(f"{self.file.name} has {complaint}; accepted", style="yellow")
        if self.check is not None:
            try:
                self.check(self.part)
            except DataError as error:
                raise self._set_aside(error.message) from error
        with writing(self.target):
            rename_durably(self.part, self.target)
        self.record.unlink(missing_ok=True)

    def take_refused(self) -> bool:
        """Gives the file that was put aside its name, if there is one."""
        if not self.aside.is_file():
            return False
        if self.check is not None:
            self.check(self.aside)
        with writing(self.target):
            rename_durably(self.aside, self.target)
        self.log.say(f"{self.file.name}: took {self.aside.name}, whose checksum had been refused", style="yellow")
        return True

    def error(self, failures: Sequence[str]) -> DataError:
        """What the user is told when all hosts have failed."""
        if not failures:
            return DataError(f"{self.file.name} can be fetched from nowhere.", "Get it by hand, and pass --from FILE.")
        lines = "".join(f"\n  {failure}" for failure in failures)
        hint = "Check the connection and start the same command again; it goes on where it stopped."
        if self.refused:
            hint = f"Start again to fetch it anew; --accept-checksum takes {self.aside.name} as it is, if you trust it."
        return DataError(
            f"{self.file.name} could not be fetched.{lines}",
            f"{hint}\nA copy that you have, or get elsewhere, is taken with --from FILE.",
        )

    def _set_aside(self, complaint: str) -> _GivenUpError:
        with writing(self.aside):
            self.part.replace(self.aside)
            self.record.unlink(missing_ok=True)
        return _GivenUpError(f"{complaint} Kept as {self.aside}")

    def _forget(self) -> None:
        with writing(self.part):
            self.record.unlink(missing_ok=True)
            self.part.unlink(missing_ok=True)

    def _version(self) -> _Version | None:
        try:
            return _Version(**json.loads(self.record.read_text("utf-8")))
        except (OSError, ValueError, TypeError):
            return None


def _extent(response: http.client.HTTPResponse) -> tuple[int, int | None]:
    """Offset of the body in the file, and the length of the file where the host says it."""
    if response.status == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if found is None:
            raise _GivenUpError("sent a piece of the file without saying which")
        return int(found[1]), None if found[2] == "*" else int(found[2])
    if response.status != 200:
        raise _GivenUpError(f"answered {response.status} {response.reason}")
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _retry_after(headers: Message) -> float | None:
    """Seconds that the host asks to wait, given as such or as a date."""
    text = headers.get("Retry-After", "").strip()
    if text.isdigit():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None


def _no_answer(reason: object) -> _CutError | _GivenUpError:
    if isinstance(reason, ssl.SSLCertVerificationError):
        return _GivenUpError(f"its certificate is not valid ({reason.verify_message})")
    if isinstance(reason, TimeoutError):
        return _CutError("no answer", heard=False)
    return _CutError(f"no connection ({_reason(reason)})", heard=False)


def _reason(error: object) -> str:
    strerror = getattr(error, "strerror", None)
    return str(strerror or error or type(error).__name__)


def _host(url: str) -> str:
    return urllib.parse.urlsplit(url).netloc
