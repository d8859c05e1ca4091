"""A few of the crashes that `make crashes` tries all of, and the model of a disk that it has them from."""

from __future__ import annotations

from pathlib import Path

import pytest
from crashes import Change, Disk, Prepared, Recorder, _gone, _half, _whole, _zero, crashes, failure, prepare

from plopcli.files.atomic import append, flush, flush_folder, make_folder, write_atomic


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(tmp_path_factory.mktemp("crashes"))


@pytest.mark.parametrize("share", range(8))
def test_a_run_goes_on_by_itself_after_a_crash(made: Prepared, share: int) -> None:
    assert len(made.crashes) > 300
    chosen = made.crashes[share * len(made.crashes) // 8]
    assert failure(chosen, made.data, made.undisturbed) is None


def test_what_is_written_in_one_go_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    recorder = Recorder(tmp_path)
    with recorder.watching():
        write_atomic(tmp_path / "file", b"new content")
    found = list(crashes(recorder.changes))
    assert {crash.state["file"] for crash in found} == {b"old", b"new content"}
    assert any(b"new c" in crash.state.values() for crash in found), "torn while it had no name"


def test_what_is_not_flushed_is_lost(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    with recorder.watching():
        make_folder(tmp_path / "folder")
        with append(tmp_path / "folder" / "log") as file:
            file.write("flushed.")
        flush(tmp_path / "folder" / "log")
        flush_folder(tmp_path / "folder")
        with append(tmp_path / "folder" / "log") as file:
            file.write("lost")
        (tmp_path / "folder" / "other").write_text("x")
    disk = Disk()
    for change in recorder.changes:
        disk.apply(change)
    assert disk.killed() == {"folder": None, "folder/log": b"flushed.lost", "folder/other": b"x"}
    left = {
        kind.__name__: disk.without_power(kind, names=False)["folder/log"] for kind in (_whole, _gone, _zero, _half)
    }
    assert left == {
        "_whole": b"flushed.lost",
        "_gone": b"flushed.",
        "_zero": b"flushed.\0\0\0\0",
        "_half": b"flushed.lo",
    }
    assert disk.without_power(_gone, names=True) == {"folder": None, "folder/log": b"flushed."}


def test_a_folder_that_was_not_flushed_takes_its_files_along(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    with recorder.watching():
        (tmp_path / "folder").mkdir()
        write_atomic(tmp_path / "folder" / "file", b"x")
    disk = Disk()
    for change in recorder.changes:
        disk.apply(change)
    assert disk.killed() == {"folder": None, "folder/file": b"x"}
    assert disk.without_power(_whole, names=True) == {}


def test_a_number_that_is_given_again_is_another_file(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    with recorder.watching():
        for content in ("first", "second"):
            (tmp_path / "file").write_text(content)
            (tmp_path / "file").unlink()
    kinds = [(change.kind, change.content) for change in recorder.changes if isinstance(change, Change)]
    assert kinds == [
        ("begin", None),
        ("name", b""),
        ("write", b"first"),
        ("gone", None),
        ("name", b""),
        ("write", b"second"),
        ("gone", None),
    ]
