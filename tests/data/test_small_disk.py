"""Downloads onto a real file system that is too small."""

from __future__ import annotations

import hashlib
import io
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_archives import tarred
from local_host import without_length
from rich.console import Console
from small_disk import small_file_system

from plopcli.console.log import RunLog
from plopcli.data.archives import unpack
from plopcli.data.http import fetch
from plopcli.data.remote import Checksum, RemoteFile
from plopcli.errors import MachineError

CONTENT = bytes(range(256)) * 4000
LOG = RunLog(Console(file=io.StringIO()))


@pytest.fixture
def small_disk(tmp_path_factory) -> Iterator[Path]:
    """A real file system of half a megabyte."""
    folder = tmp_path_factory.mktemp("disk")
    with small_file_system(folder):
        yield folder


def test_a_disk_that_fills_up_leaves_a_piece_that_can_be_resumed(host, small_disk):
    host.files["a.bin"] = CONTENT
    file = RemoteFile("a.bin", (host.url("a.bin"),), Checksum("md5", hashlib.md5(CONTENT).hexdigest()))
    host.answers = [without_length]
    with pytest.raises(MachineError, match="The disk is full"):
        fetch(file, small_disk / "a.bin", LOG)
    have = (small_disk / "a.bin.part").stat().st_size
    assert 0 < have < len(CONTENT)
    with pytest.raises(MachineError, match="Not enough room"):
        fetch(file, small_disk / "a.bin", LOG)
    assert not (small_disk / "a.bin").exists()
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    fetch(file, small_disk / "a.bin", LOG)
    assert host.ranges[-1] == f"bytes={have}-"
    assert (small_disk / "a.bin").read_bytes() == CONTENT


def test_a_full_disk_leaves_nothing(small_disk, monkeypatch, tmp_path):
    archive = tmp_path / "a.tar"
    archive.write_bytes(tarred({f"set/{i}": bytes(100_000) for i in range(8)}))
    with pytest.raises(MachineError, match="no longer fits"):
        unpack(archive, small_disk / "out", LOG)
    monkeypatch.setattr("plopcli.data.archives.free_bytes", lambda _: 1 << 40)  # others fill the disk meanwhile
    with pytest.raises(MachineError, match="The disk is full"):
        unpack(archive, small_disk / "out", LOG)
    assert list(small_disk.iterdir()) == []


def test_a_disk_that_cannot_be_written(small_disk, shell):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    shell.root = small_disk / "data"
    message = shell.fails(MachineError, "ade")
    assert f"{shell.root} cannot be written: Read-only file system." in message
    assert "--data-root" in message
