"""Hosts on this machine, and downloads from them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import pytest
from local_host import Host, local_host
from shell import Shell

from plopcli.data import http
from plopcli.data.remote import Checksum, RemoteFile


@pytest.fixture
def host(monkeypatch) -> Iterator[Host]:
    """A host that serves nothing yet."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with local_host() as host:
        yield host


@pytest.fixture
def mirror(host, monkeypatch) -> Host:
    """A mirror of everything; nothing else is asked."""
    quick = http.Patience(timeout=0.5, tries=3, pause=0.01, longest=1.0)
    monkeypatch.setattr(http, "Patience", lambda: quick)
    monkeypatch.setenv("PLOP_MIRROR", host.address)
    return host


@pytest.fixture
def offer(mirror) -> Iterator[Callable[[RemoteFile, bytes], None]]:
    """Puts a file on the mirror and makes its checksum the published one."""
    before: list[tuple[RemoteFile, Checksum | None]] = []

    def offer(file: RemoteFile, content: bytes) -> None:
        mirror.files[file.name] = content
        before.append((file, file.checksum))
        if file.checksum is not None:
            digest = hashlib.new(file.checksum.algorithm, content).hexdigest()[: len(file.checksum.digest)]
            object.__setattr__(file, "checksum", Checksum(file.checksum.algorithm, digest))

    yield offer
    # Backwards: a file may have been offered twice.
    for file, checksum in reversed(before):
        object.__setattr__(file, "checksum", checksum)


@pytest.fixture
def shell(tmp_path) -> Shell:
    return Shell(tmp_path / "data")
