"""Archives that are sound, damaged or malicious."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import stat
import struct
import tarfile
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from plopcli.console.log import RunLog
from plopcli.data.archives import check_archive, top_names, unpack
from plopcli.errors import DataError, MachineError

FILES = {"set/a.txt": b"one", "set/deep/b.txt": b"two" * 10_000, "other/c.txt": b"", "./set/d d.txt": b"\xff"}
LOG = RunLog(Console(file=io.StringIO()))


def make_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("set/", b"")
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def make_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        archive.addfile(member("set", tarfile.DIRTYPE))
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def member(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, link
    return entry


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(params=["zip", "tar", "tgz", "tar.xz"])
def archive(request, tmp_path) -> Path:
    if request.param == "zip":
        return make_zip(tmp_path / "sound.zip", FILES)
    mode = {"tar": "w", "tgz": "w:gz", "tar.xz": "w:xz"}[request.param]
    return make_tar(tmp_path / f"sound.{request.param}", FILES, mode)


def test_sound_archives_are_unpacked_as_they_are(archive, tmp_path):
    assert unpack(archive, tmp_path / "out", LOG) == 4
    assert tree(tmp_path / "out") == {name.removeprefix("./"): content for name, content in FILES.items()}


def test_only_what_is_selected_is_unpacked(archive, tmp_path):
    assert unpack(archive, tmp_path / "out", LOG, lambda name: name.startswith("set/")) == 3
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["set"]


def test_first_names(archive):
    assert "set/a.txt" in top_names(archive)
    check_archive(archive)


def escapes_of_names() -> list[str]:
    return ["../evil", "set/../../evil", "/evil", "C:/evil", "c:evil", "..\\evil", "set\\evil", "set/.."]


def refused(archive: Path, tmp_path: Path, part: str) -> None:
    """Unpacking fails with ``part`` in the message, and leaves nothing anywhere."""
    before = {path: path.stat().st_mtime_ns for path in tmp_path.parent.rglob("*") if path.is_file()}
    with pytest.raises(DataError) as caught:
        unpack(archive, tmp_path / "in" / "out", LOG)
    assert part in caught.value.message
    assert not (tmp_path / "in" / "out").exists()
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.parent.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", escapes_of_names())
@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_no_name_leads_out(make: Callable[..., Path], name, tmp_path):
    archive = make(tmp_path / "evil", {"set/a.txt": b"one", name: b"evil"})
    refused(archive, tmp_path, f"{name!r} would be written outside the folder")


def test_a_name_that_is_not_selected_may_not_lead_out_either(tmp_path):
    archive = make_tar(tmp_path / "evil.tar", {"../evil": b"evil"})
    with pytest.raises(DataError, match="outside"):
        unpack(archive, tmp_path / "out", LOG, lambda name: name.startswith("set/"))


@pytest.mark.parametrize(
    ("kind", "link", "what"),
    [
        (tarfile.SYMTYPE, "/etc/passwd", "link"),
        (tarfile.SYMTYPE, "../../outside", "link"),
        (tarfile.SYMTYPE, "a.txt", "link"),
        (tarfile.LNKTYPE, "/etc/passwd", "link"),
        (tarfile.LNKTYPE, "../outside", "link"),
        (tarfile.LNKTYPE, "set/a.txt", "link"),
        (tarfile.FIFOTYPE, "", "device"),
        (tarfile.CHRTYPE, "", "device"),
        (tarfile.BLKTYPE, "", "device"),
    ],
)
def test_tars_hold_nothing_but_files_and_folders(kind, link, what, tmp_path):
    path = make_tar(tmp_path / "evil.tar", {"set/a.txt": b"one"})
    with tarfile.open(path, "a") as archive:
        archive.addfile(member("set/evil", kind, link))
    refused(path, tmp_path, f"'set/evil' is a {what}")


@pytest.mark.parametrize(("kind", "what"), [(stat.S_IFLNK, "link"), (stat.S_IFIFO, "device"), (stat.S_IFCHR, "device")])
def test_zips_hold_nothing_but_files_and_folders(kind, what, tmp_path):
    path = make_zip(tmp_path / "evil.zip", {"set/a.txt": b"one"})
    with zipfile.ZipFile(path, "a") as archive:
        info = zipfile.ZipInfo("set/evil")
        info.create_system, info.external_attr = 3, (kind | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    refused(path, tmp_path, f"'set/evil' is a {what}")


def test_nothing_is_written_through_a_link_of_the_archive(tmp_path):
    """A link to a folder outside, and then a file in it."""
    outside = tmp_path / "outside"
    outside.mkdir()
    path = tmp_path / "evil.tar"
    with tarfile.open(path, "w") as archive:
        archive.addfile(member("set", tarfile.SYMTYPE, str(outside)))
        entry = tarfile.TarInfo("set/evil")
        entry.size = 4
        archive.addfile(entry, io.BytesIO(b"evil"))
    refused(path, tmp_path, "'set' is a link")
    assert list(outside.iterdir()) == []


def test_nothing_is_written_into_a_folder_that_was_there(tmp_path):
    (tmp_path / "out").symlink_to(tmp_path)
    with pytest.raises(MachineError, match="File exists"):
        unpack(make_zip(tmp_path / "a.zip", FILES), tmp_path / "out", LOG)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "out"]


@pytest.mark.parametrize(
    "names", [["set/a", "set/a"], ["set/a", "set/a/b"], ["set/a/b", "set/a"], ["set/a", "./set/a"]]
)
def test_no_name_occurs_twice(names, tmp_path):
    path = tmp_path / "evil.tar"
    with tarfile.open(path, "w") as archive:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size = 3
            archive.addfile(entry, io.BytesIO(b"one"))
    refused(path, tmp_path, f"{names[1]!r} is there twice")


def test_members_that_steer_terminals_are_shown_harmless(tmp_path):
    archive = make_tar(tmp_path / "evil.tar", {"../\x1b[2Jevil": b""})
    refused(archive, tmp_path, "'../\\x1b[2Jevil'")


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_there_must_be_room_for_what_is_declared(make: Callable[..., Path], monkeypatch, tmp_path):
    archive = make(tmp_path / "big", {"set/a": b"x" * 1000, "set/b": b"x" * 9000, "set/c": b"x"})
    for module in ("plopcli.files.disk", "plopcli.data.archives"):
        monkeypatch.setattr(f"{module}.free_bytes", lambda _: 9_500)
    with pytest.raises(MachineError, match="Not enough room"):
        unpack(archive, tmp_path / "out", LOG)
    assert not (tmp_path / "out").exists()
    assert unpack(archive, tmp_path / "out", LOG, lambda name: name != "set/b") == 2


def test_a_tar_that_declares_more_than_any_disk_has(tmp_path):
    path = tmp_path / "bomb.tar"
    entry = tarfile.TarInfo("set/huge")
    entry.size = 1 << 60
    path.write_bytes(entry.tobuf() + bytes(10_240))
    with pytest.raises(MachineError, match="set/huge no longer fits"):
        unpack(path, tmp_path / "out", LOG)


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.1, 0.3, 0.5, 0.8])
def test_what_is_cut_off_is_refused(archive, keep, tmp_path):
    content = archive.read_bytes()
    if archive.suffix == ".tar":  # without the zeros at its end, which need not be there
        content = content[: content.index(bytes([255])) + 1]
    archive.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(DataError):
        unpack(archive, tmp_path / "out", LOG)
    assert not (tmp_path / "out").exists()


def test_a_header_that_is_cut_off_or_damaged_is_not_the_end(tmp_path):
    content = make_tar(tmp_path / "a.tar", {"set/a": b"one", "set/b": b"two"}).read_bytes()
    second = content.index(b"set/b")
    for broken in (content[: second + 200], content[: second + 20] + b"?" + content[second + 21 :]):
        (tmp_path / "a.tar").write_bytes(broken)
        with pytest.raises(DataError, match="no member begins with"):
            unpack(tmp_path / "a.tar", tmp_path / "out", LOG)
    (tmp_path / "a.tar").write_bytes(content[: second + 1024])  # no zeros at the end
    assert unpack(tmp_path / "a.tar", tmp_path / "out", LOG) == 2


def test_a_flipped_byte_is_noticed(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"set/a": os.urandom(5000)})
    content = bytearray(path.read_bytes())
    content[2000] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        unpack(path, tmp_path / "out", LOG)
    assert not (tmp_path / "out").exists()


def test_no_archive(tmp_path):
    (tmp_path / "a.zip").write_text("Please log in")
    with pytest.raises(DataError, match=r"is no zip or tar archive, or it is damaged \(truncated header"):
        check_archive(tmp_path / "a.zip")
    with pytest.raises(DataError, match="There is no file"):
        check_archive(tmp_path / "b.zip")


def test_locked_zips_are_refused(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"set/a": b"one"})
    content = path.read_bytes()
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = content.rindex(signature) + offset
        content = content[:at] + b"\x01\x00" + content[at + 2 :]
    path.write_bytes(content)
    with pytest.raises(DataError, match="locked with a password"):
        unpack(path, tmp_path / "out", LOG)


def bomb_of_one_member() -> bytes:
    """256 MB of zeros in 256 kB."""
    packed = zlib.compressobj(1, zlib.DEFLATED, -15)
    crc, chunks = 0, []
    for _ in range(16):
        chunks.append(packed.compress(bytes(1 << 24)))
        crc = zlib.crc32(bytes(1 << 24), crc)
    return zip_by_hand([("set/a", b"".join(chunks) + packed.flush(), 1 << 28, crc)])


def zip_by_hand(members: list[tuple[str, bytes, int, int]], *, method: int = 8, repeat: int = 1) -> bytes:
    """A zip whose directory says whatever it is told to: names, packed bytes, sizes and checksums of members.

    Args:
        members: What the zip holds.
        method: How they are said to be packed.
        repeat: How often the directory names each, at the same place.
    """
    body, directory = b"", []
    for name, packed, size, crc in members:
        start = struct.pack("<HHHHHIIIH", 20, 0, method, 0, 33, crc, len(packed), size, len(name))
        for number in range(repeat):
            named = f"{name}{number or ''}".encode()
            central = struct.pack("<HHHHHHIIIH", 20, 20, 0, method, 0, 33, crc, len(packed), size, len(named))
            directory.append(b"PK\x01\x02" + central + bytes(12) + struct.pack("<I", len(body)) + named)
        body += b"PK\x03\x04" + start + bytes(2) + name.encode() + packed
    listed, count = b"".join(directory), min(len(directory), 0xFFFF)
    return body + listed + struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, count, count, len(listed), len(body), 0)


def zip_of_many_names() -> bytes:
    return zip_by_hand([("a", b"", 0, 0)], method=0, repeat=300_000)


def tar_of_many_names() -> bytes:
    return gzip.compress(member("other/a", tarfile.REGTYPE).tobuf() * 10_100, 1)


def long_header(kind: bytes) -> bytes:
    """A header that says that the next header, a name or a table, has 2 GB."""
    entry = member("././@LongLink", kind)
    entry.size = 2 << 30
    return gzip.compress(entry.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 24))


def chained_headers() -> bytes:
    """Headers that describe headers, without end."""
    entry = member("x", tarfile.XHDTYPE)
    text = b"60000 comment=" + b"x" * 59_985 + b"\n"
    entry.size = len(text)
    return gzip.compress((entry.tobuf() + text + bytes(-len(text) % 512)) * 400, 1)


def sparse_tar() -> bytes:
    """The old GNU form: 3 GB that are one hole."""
    header = bytearray(member("set/a", tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT))
    header[386:398], header[398:410] = b"00000000000\0", b"00000000000\0"
    header[483:495] = b"%011o\0" % (3 << 30)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(1024)


def tar_of_one_member(pack: Callable[[bytes], bytes], packer: Callable[[bytes], bytes]) -> bytes:
    entry = tarfile.TarInfo("other/a")
    entry.size = 4 << 30
    return packer(entry.tobuf()) + pack(bytes(1 << 24)) * 256


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (bomb_of_one_member, "more than 100 times as large as it is packed"),
        (lambda: zip_by_hand([("set/a", bytes(5 << 20), 5 << 20, 0)], method=0, repeat=400), "overlaps with"),
        (lambda: zip_by_hand([("set/a", bz2.compress(bytes(1 << 26)), 1000, 0)], method=12), "another method"),
        (lambda: zip_by_hand([("set/a", b"x", 1, 0)], method=14), "another method"),
        (lambda: zip_by_hand([("set/a", zlib.compress(bytes(1 << 20))[2:-4], 10, 0)]), "damaged"),
        (lambda: zip_by_hand([("set/a", zlib.compress(b"x")[2:-4], 1000, zlib.crc32(b"x"))]), "not as long"),
        (zip_of_many_names, "a header of"),
        (tar_of_many_names, "is one of more than 10,000"),
        (lambda: long_header(tarfile.GNUTYPE_LONGNAME), "a header of 2.1 GB"),
        (lambda: long_header(tarfile.XHDTYPE), "a header of 2.1 GB"),
        (lambda: long_header(tarfile.XGLTYPE), "a header of 2.1 GB"),
        (chained_headers, "damaged"),
        (sparse_tar, "is sparse"),
        (lambda: tar_of_one_member(gzip.compress, gzip.compress), "more than 100 times"),
        (lambda: tar_of_one_member(bz2.compress, bz2.compress), "more than 100 times"),
        (lambda: tar_of_one_member(lzma.compress, lzma.compress), "more than 100 times"),
        (lambda: gzip.compress(gzip.compress(bytes(1 << 26))), "damaged"),
    ],
)
def test_bombs_are_refused_in_little_memory_and_time(make, part, monkeypatch, tmp_path):
    """Also where what grows is not selected."""
    monkeypatch.setattr("plopcli.data.archives._MEMBERS", 10_000)
    path = tmp_path / "bomb"
    path.write_bytes(make())
    tracemalloc.start()
    started = time.process_time()
    try:
        with pytest.raises(DataError) as caught:
            unpack(path, tmp_path / "out", LOG, lambda name: not name.startswith("other/"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert part in caught.value.message
    assert time.process_time() - started < 10
    assert peak < 128 << 20
    assert not (tmp_path / "out").exists()


def test_an_archive_in_an_archive_stays_packed(tmp_path):
    inner = make_zip(tmp_path / "inner.zip", {"a": bytes(1000)}).read_bytes()
    assert unpack(make_zip(tmp_path / "a.zip", {"set/inner.zip": inner}), tmp_path / "out", LOG) == 1
    assert tree(tmp_path / "out") == {"set/inner.zip": inner}


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_names_that_no_file_can_have(make, tmp_path):
    refused(make(tmp_path / "a", {f"set/{'n' * 300}": b"x"}), tmp_path, "too long for a file")
    refused(make(tmp_path / "b", {f"set/{'n/' * 2000}x": b"x"}), tmp_path, "too long for a file")


def test_a_named_pipe_is_no_archive(tmp_path):
    os.mkfifo(tmp_path / "a.zip")
    with pytest.raises(DataError, match="There is no file"):
        check_archive(tmp_path / "a.zip")
