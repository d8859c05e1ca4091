"""What is written stands for old or new content, whole, and goes where its name says."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from plopcli.errors import UsageError
from plopcli.files.atomic import append, refuse_links, remove_temporary, rename_durably, write_atomic


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_bytes_text_and_functions_are_written(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for content in (b"\xc3\xa4\n", "ä\n", lambda file: file.write("ä\n".encode())):
        write_atomic(path, content)
        assert path.read_bytes() == b"\xc3\xa4\n"
        path.unlink()
    assert _names(tmp_path) == []


def test_an_error_in_the_middle_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_atomic(path, "old")
    for error in (KeyboardInterrupt, ValueError):

        def fail(file: object, error: type[BaseException] = error) -> None:
            file.write(b"half")  # type: ignore[attr-defined]
            raise error

        with pytest.raises(error):
            write_atomic(path, fail)
        assert path.read_text() == "old"
        assert _names(tmp_path) == ["a"]


def test_refusals_name_the_file_and_not_the_temporary_one(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "none" / "a", tmp_path / "folder"):
        with pytest.raises(OSError, match=str(path)) as refused:
            write_atomic(path, "x")
        assert refused.value.filename == str(path)

    def torch_does(file: object) -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            raise RuntimeError("unexpected pos 64 vs 0")  # noqa: B904

    with pytest.raises(OSError, match="No space left") as refused:
        write_atomic(tmp_path / "a", torch_does)
    assert (refused.value.errno, refused.value.filename) == (errno.ENOSPC, str(tmp_path / "a"))
    with pytest.raises(RuntimeError, match="a bug"):
        write_atomic(tmp_path / "a", lambda file: (_ for _ in ()).throw(RuntimeError("a bug")))
    assert _names(tmp_path) == ["folder"]


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("mine")
    run = tmp_path / "run"
    run.mkdir()
    for name in ("a", "a.part", "log"):
        (run / name).symlink_to(outside)
    write_atomic(run / "a", "new")
    assert (run / "a").read_text() == "new"
    assert not (run / "a").is_symlink()
    with pytest.raises(OSError, match="log"), append(run / "log") as file:
        file.write("line")
    assert outside.read_text() == "mine"
    with pytest.raises(UsageError, match=r"run/log is a link"):
        refuse_links([run / "a", run / "missing", run / "log"])


def test_a_new_file_has_the_rights_that_the_user_gives_to_files(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "a", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_what_a_killed_process_has_left_goes_in_time(tmp_path: Path) -> None:
    for name in (".plop-1.part", ".plop-2.part", "mine.part"):
        (tmp_path / name).touch()
    past = time.time() - 7200
    for name in (".plop-1.part", "mine.part"):
        os.utime(tmp_path / name, (past, past))
    write_atomic(tmp_path / "a", "x", durable=False)
    assert len(_names(tmp_path)) == 4
    write_atomic(tmp_path / "a", "x")
    assert _names(tmp_path) == [".plop-2.part", "a", "mine.part"], "another process may be writing the second one"
    remove_temporary(tmp_path)
    assert _names(tmp_path) == ["a", "mine.part"]
    remove_temporary(tmp_path / "missing")


def test_file_and_folder_are_flushed_around_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    flush, rename = os.fsync, Path.replace

    def fsync(handle: int) -> None:
        done.append("folder" if os.path.samestat(os.fstat(handle), tmp_path.stat()) else "file")
        flush(handle)

    def replace(self: Path, target: Path) -> Path:
        done.append("name")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    write_atomic(tmp_path / "a", "x")
    (tmp_path / "b.part").touch()
    rename_durably(tmp_path / "b.part", tmp_path / "b")
    write_atomic(tmp_path / "c", "x", durable=False)
    assert done == ["file", "name", "folder"] * 2 + ["name"]
