"""Checksums and mirrors."""

from __future__ import annotations

import hashlib

import pytest

from plopcli.data.remote import Checksum, RemoteFile, mirrored
from plopcli.errors import UsageError

MD5 = Checksum("md5", hashlib.md5(b"right").hexdigest())


@pytest.mark.parametrize("algorithm", ["md5", "sha1", "sha256"])
@pytest.mark.parametrize("digits", [8, None])
def test_checksums_may_be_known_in_part(algorithm, digits, tmp_path):
    known = Checksum(algorithm, hashlib.new(algorithm, b"right").hexdigest()[:digits])
    (tmp_path / "a").write_bytes(b"right")
    assert known.complaint(tmp_path / "a") is None
    (tmp_path / "a").write_bytes(b"wrong")
    found = hashlib.new(algorithm, b"wrong").hexdigest()[:digits]
    assert known.complaint(tmp_path / "a") == f"{algorithm} {found} instead of {known.digest}"


def test_a_mirror_takes_the_place_of_all_hosts(monkeypatch):
    file = RemoteFile("a b.zip", ("https://example.org/x",), MD5)
    assert mirrored(file) is file
    monkeypatch.setenv("PLOP_MIRROR", "http://mirror:8000/plop/")
    assert mirrored(file) == RemoteFile("a b.zip", ("http://mirror:8000/plop/a%20b.zip",), MD5)
    for wrong in ("/data/mirror", "file:///data", "ftp://x/y", "http://[x"):
        monkeypatch.setenv("PLOP_MIRROR", wrong)
        with pytest.raises(UsageError, match="PLOP_MIRROR"):
            mirrored(file)
