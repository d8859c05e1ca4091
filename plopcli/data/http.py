"""Fetching a file over HTTP: from the first host that has it, in as many pieces as it takes, and never by halves.

A file grows as ``NAME.part``. ``NAME.part.json`` beside it says of which version of the file, on which host, it is a
piece; after a cut, or in a second run of the program, the rest is asked for and appended only if the host still has
that very version. A finished file is checked before it gets its name. One that fails the check is kept as
``NAME.bad``, so that nobody has to fetch it again who knows better.

urllib3 connects, follows redirects, and counts and spaces the tries. It repeats requests, not bodies, so that going on
inside a file is done here.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import urllib3
from pydantic import TypeAdapter
from rich.filesize import decimal as size_text
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    MaxRetryError,
    NewConnectionError,
    ProtocolError,
    ProxyError,
    ReadTimeoutError,
    SSLError,
)

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
#: Bytes that a connection must bring within `Patience.timeout`, or it counts as dead.
_SLOWEST = 1000
#: A file whose size nobody has said may have so many bytes; any other twice its size and this.
_UNSAID, _SLACK = 1 << 30, 1 << 26
#: One request, whatever comes of it; redirects alone are followed.
_ONCE = urllib3.Retry(total=None, connect=0, read=0, status=0, other=0, redirect=10)


@dataclass(frozen=True)
class Patience:
    """How long a host is put up with.

    Args:
        timeout: Seconds without a thousand bytes until a connection counts as dead.
        tries: Tries in a row that bring nothing new before a host is given up.
        tries_unheard: The same for silence and refused connections of a host that has given nothing yet.
        pause: Half the seconds before the third try; doubled for each further one, and up to ``pause`` more at random.
        longest: No pause is longer; a host that asks for more is given up.
        connections: Connections to one host in all.
    """

    timeout: float = 30.0
    tries: int = 6
    tries_unheard: int = 2
    pause: float = 1.0
    longest: float = 120.0
    connections: int = 2000

    def retries(self, *, heard: bool) -> urllib3.Retry:
        """What counts the tries from now on."""
        return urllib3.Retry(
            self.tries - 1,
            connect=None if heard else self.tries_unheard - 1,
            backoff_factor=self.pause,
            backoff_jitter=self.pause,
            backoff_max=self.longest,
        )


class _HostError(Exception):
    """What a host does in place of giving the file, without what would steer a terminal."""

    def __init__(self, reason: str) -> None:
        super().__init__("".join(letter if letter.isprintable() else "?" for letter in reason))


class _GivenUpError(_HostError):
    """This host does not give the file."""


class _CutError(_HostError):
    """A try failed, another one may succeed; after ``wait`` seconds, if the host, once ``heard``, said so."""

    def __init__(self, reason: str, wait: float | None = None, *, heard: bool = True) -> None:
        super().__init__(reason)
        self.wait, self.heard = wait, heard


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
        tag = self.etag if self.etag and not self.etag.startswith("W/") else self.modified
        return tag if tag and tag.isascii() and tag.isprintable() else None

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


@dataclass
class _Download:
    """One file on its way."""

    file: RemoteFile
    target: Path
    log: RunLog
    accept_checksum: bool
    check: Callable[[Path], None] | None
    room: int
    patience: Patience
    refused: bool = False

    def __post_init__(self) -> None:
        self.part, self.record, self.aside = (
            self.target.with_name(f"{self.target.name}{end}") for end in (".part", ".part.json", ".bad")
        )
        for path in (self.part, self.record):  # in a folder from elsewhere: nothing is written through links
            if path.is_symlink() or (path.exists() and not path.is_file()):
                with writing(path):
                    path.unlink()

    def hosts(self) -> Sequence[str]:
        """The addresses to try; the one that has given the first piece comes first."""
        version = self._version()
        return sorted(self.file.urls, key=lambda url: version is None or url != version.url)

    def have(self) -> int:
        """Bytes that are there."""
        return self.part.stat().st_size if self.part.is_file() else 0

    def from_host(self, url: str, bar: ByteProgress) -> None:
        """Fills ``part`` from one host, over as many connections as that takes, or raises `_GivenUpError`."""
        retries, furthest = self.patience.retries(heard=False), self.have()
        if furthest:
            self.log.say(f"{self.file.name}: {size_text(furthest)} are there already")
        for _ in range(self.patience.connections):
            try:
                return self._connect(url, bar)
            except _CutError as cut:
                if self.have() >= furthest + _SLOWEST:
                    retries, furthest = self.patience.retries(heard=True), self.have()
                try:
                    retries = retries.increment("GET", url, error=cut if cut.heard else ConnectTimeoutError())
                except MaxRetryError as error:
                    raise _GivenUpError(f"{cut} ({len(retries.history) + 1} tries)") from error
                pause = retries.get_backoff_time() if cut.wait is None else cut.wait
                if pause > self.patience.longest:
                    raise _GivenUpError(f"{cut}; it asks to wait {pause:.0f} s") from cut
                self.log.say(f"{self.file.name}: {_host(url)}: {cut}; next try in {pause:.0f} s")
                time.sleep(pause)
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
        once: dict[str, Any] = {
            "retries": _ONCE,
            "preload_content": False,
            "decode_content": False,
            "enforce_content_length": False,
        }
        try:
            with _client(url) as client:
                response = client.request("GET", url, headers=headers, timeout=self.patience.timeout, **once)
                with closing(response):
                    if not self._is_complete(response, start):
                        self._receive(response, url, start, version, bar)
        except HTTPError as error:
            raise _meaning(error, self.patience.timeout) from error

    def _resumable(self, url: str) -> tuple[int, _Version | None]:
        """How many bytes can be kept, and of which version they are; (0, None) for a fresh start."""
        version, have = self._version(), self.have()
        if version is None or version.url != url or not have or have > (version.total or have):
            return 0, None
        # Without anything to tell versions apart, only a checksum would notice two that are glued together.
        certain = version.condition or (version.total and self.file.checksum)
        return (have, version) if certain else (0, None)

    def _is_complete(self, response: urllib3.BaseHTTPResponse, start: int) -> bool:
        """Whether the host says that there is no more than the ``start`` bytes; raises where it gives nothing."""
        if response.status in (200, 206):
            return False
        if response.status == 416:
            total = re.fullmatch(r"bytes \*/(\d{1,18})", response.headers.get("Content-Range", ""))
            if total and int(total[1]) == start:
                return True
            self._forget()
            raise _CutError("the file there is shorter now; starting over", wait=0.0)
        reason = f"{response.status} {response.reason or ''}".rstrip()
        if response.status in _PASSING:
            raise _CutError(reason, wait=_retry_after(response))
        raise _GivenUpError(reason)

    def _receive(
        self, response: urllib3.BaseHTTPResponse, url: str, start: int, version: _Version | None, bar: ByteProgress
    ) -> None:
        """Reads the body behind the ``start`` bytes that are there, if the answer is the rest of that version."""
        if response.headers.get("Content-Type", "").partition(";")[0].strip().lower() == "text/html":
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
            self._refuse_beyond(total)
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
        self, response: urllib3.BaseHTTPResponse, stream: FileIO, start: int, total: int | None, bar: ByteProgress
    ) -> int:
        """Appends the body behind byte ``start``; returns the length of the file then."""
        done, lately, since = start, start, time.monotonic()
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
            self._refuse_beyond(done)
            if done >= lately + _SLOWEST:
                lately, since = done, time.monotonic()
            elif time.monotonic() - since > self.patience.timeout:
                raise _CutError(f"less than {size_text(_SLOWEST)} in {self.patience.timeout:g} s")
        return done

    def _refuse_beyond(self, size: int) -> None:
        """Gives the host up where the file has, or would have, far more bytes than it should."""
        limit = 2 * self.file.size + _SLACK if self.file.size else _UNSAID
        if size > limit:
            self._forget()
            raise _GivenUpError(f"sends more than {size_text(limit)}, which {self.file.name} cannot have")

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
            with self.record.open("rb") as file:
                return TypeAdapter(_Version).validate_json(file.read(1 << 16), strict=True)
        except (OSError, ValueError):
            return None


class _Connection(HTTPConnection):
    """A connection whose host has twice the timeout for its headers, not as long again for every byte of them."""

    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]  # as urllib3 itself
        """As of any connection."""
        assert self.sock is not None, "a request has been sent"
        late = threading.Timer(2 * (self.timeout or 30.0), self.sock.shutdown, [socket.SHUT_RDWR])
        late.start()
        try:
            return super().getresponse()
        finally:
            late.cancel()


class _SecureConnection(_Connection, HTTPSConnection):
    """The same over TLS."""


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


def _client(url: str) -> urllib3.PoolManager:
    """What connects to a host: by the proxy that the environment names, if it names one for this host."""
    parts = urllib.parse.urlsplit(url)
    proxies = urllib.request.getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or urllib.request.proxy_bypass(parts.netloc):
        client = urllib3.PoolManager()
    else:
        user = urllib3.util.parse_url(proxy).auth
        headers = urllib3.make_headers(proxy_basic_auth=user) if user else None
        client = urllib3.ProxyManager(proxy, proxy_headers=headers)
    client.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}
    return client


def _extent(response: urllib3.BaseHTTPResponse) -> tuple[int, int | None]:
    """Offset of the body in the file, and the length of the file where the host says it."""
    if response.status == 206:
        found = re.fullmatch(r"bytes (\d{1,18})-\d+/(\d{1,18}|\*)", response.headers.get("Content-Range", ""))
        if found is None:
            raise _GivenUpError("sent a piece of the file without saying which")
        return int(found[1]), None if found[2] == "*" else int(found[2])
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if re.fullmatch("[0-9]{1,18}", length) else None


def _retry_after(response: urllib3.BaseHTTPResponse) -> float | None:
    """Seconds that the host asks to wait, given as such or as a date."""
    try:
        return urllib3.Retry(retry_after_max=sys.maxsize).get_retry_after(response)
    except (HTTPError, ValueError, OverflowError):
        return None


def _meaning(error: Exception | None, timeout: float) -> _HostError:
    """What an error of urllib3 says about the host."""
    error = error.reason if isinstance(error, MaxRetryError) else error
    error = error.original_error if isinstance(error, ProxyError) else error
    causes = (getattr(error, "__cause__", None), *reversed(getattr(error, "args", ())), error)
    cause = next(cause for cause in causes if isinstance(cause, Exception))
    if isinstance(cause, ssl.SSLCertVerificationError):
        return _GivenUpError(f"its certificate is not valid ({cause.verify_message})")
    reason = str(getattr(cause, "strerror", None) or cause or type(cause).__name__)
    match error:
        case ReadTimeoutError():
            return _CutError(f"silent for {timeout:g} s", heard=False)
        case NewConnectionError() | SSLError():
            return _CutError(f"no connection ({reason})", heard=False)
        case ConnectTimeoutError():
            return _CutError("no answer", heard=False)
        case ProtocolError():
            return _CutError(f"the connection broke ({reason})")
    return _GivenUpError(reason)


def _host(url: str) -> str:
    return urllib.parse.urlsplit(url).netloc
