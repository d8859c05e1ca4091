"""One run in a folder at a time: real processes, real kills."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from plopcli.errors import UsageError
from plopcli.files.lock import Holder, holder_of
from plopcli.runs.folder import LOCK, RunFolder
from plopcli.runs.lock import locked, refuse_if_held

HOLDS = """
import os, sys, time
from pathlib import Path
from plopcli.runs.lock import locked
with locked(Path(sys.argv[1]), print):
    if len(sys.argv) > 2 and os.fork() == 0:
        Path(sys.argv[2]).write_text(str(os.getpid()))
        time.sleep(60)
        os._exit(0)
    print("held", flush=True)
    sys.stdin.readline()
"""
#: Before that: no flock.
WITHOUT = """
import fcntl
def refuse(handle, how):
    raise OSError(%d, "no locks here")
fcntl.flock = refuse
"""
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def holding() -> Iterator[Start]:
    """Starts processes that hold a folder until they read a line."""
    started: list[subprocess.Popen[str]] = []

    def start(folder: Path, *more: str, without: int = 0) -> subprocess.Popen[str]:
        words = [sys.executable, "-c", (WITHOUT % without if without else "") + HOLDS, str(folder), *more]
        process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def _this(**changes: object) -> Holder:
    """This process, but for some facts."""
    return Holder.this().model_copy(update=changes)


def _left_by(folder: Path, holder: Holder) -> None:
    folder.mkdir(exist_ok=True)
    (folder / LOCK).write_text(holder.model_dump_json())


def _take(folder: Path) -> list[str]:
    said: list[str] = []
    with locked(folder, said.append):
        assert json.loads((folder / LOCK).read_text())["pid"] == os.getpid()
    assert not (folder / LOCK).exists()
    return said


def test_a_second_process_is_refused_and_told_who_holds_the_folder(tmp_path: Path, holding: Start) -> None:
    folder = tmp_path / "run"
    first = holding(folder)
    with pytest.raises(UsageError) as refused:
        _take(folder)
    assert str(folder) in refused.value.message
    assert f"process {first.pid} on {socket.gethostname()}" in refused.value.message
    assert f"kill {first.pid}" in str(refused.value.hint)
    with pytest.raises(UsageError, match="in use by another run"):
        refuse_if_held(folder)
    first.communicate("go\n", timeout=20)
    assert first.returncode == 0
    assert not folder.exists(), "a folder that was made for the lock alone does not stay"
    refuse_if_held(folder)
    assert _take(folder) == []


def test_the_lock_of_a_killed_process_is_taken_over_at_once(tmp_path: Path, holding: Start) -> None:
    """Its loader processes, which live on for seconds, do not hold it."""
    folder, child = tmp_path / "run", tmp_path / "child"
    first = holding(folder, str(child))
    while not child.exists() or not child.read_text():
        time.sleep(0.02)
    os.kill(first.pid, signal.SIGKILL)
    first.wait(timeout=20)
    try:
        assert (folder / LOCK).exists()
        assert holder_of(folder / LOCK) is None
        (note,) = _take(folder)
        assert "has ended is taken over" in note
        assert f"process {first.pid}" in note
    finally:
        os.kill(int(child.read_text()), signal.SIGKILL)


def test_many_who_start_at_once_are_one_run(tmp_path: Path) -> None:
    """Of processes that all take the folder for a moment, no two hold it together."""
    script = """
import sys, time
from pathlib import Path
from plopcli.errors import UsageError
from plopcli.runs.lock import locked
folder, name = Path(sys.argv[1]), sys.argv[2]
for _ in range(40):
    try:
        with locked(folder, lambda note: None):
            inside = folder / "inside"
            inside.touch(exist_ok=False)
            with folder.with_name("taken").open("a") as taken:
                taken.write("x")
            inside.unlink()
    except UsageError:
        time.sleep(0.002)
"""
    folder = tmp_path / "run"
    words = [sys.executable, "-c", script, str(folder)]
    runs = [subprocess.Popen([*words, str(n)], stderr=subprocess.PIPE, text=True) for n in range(3)]
    errors = [run.communicate(timeout=60)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0], errors
    assert len((tmp_path / "taken").read_text()) >= 3


def test_its_own_lock_is_no_other_run(tmp_path: Path) -> None:
    with locked(tmp_path, print):
        refuse_if_held(tmp_path)
        with pytest.raises(UsageError, match="in use"), locked(tmp_path, print):
            pass
        assert (tmp_path / LOCK).exists(), "a refused second one leaves the lock of the first alone"


def test_a_lock_is_released_by_errors(tmp_path: Path) -> None:
    for error in (KeyboardInterrupt, SystemExit, RuntimeError):
        with pytest.raises(error), locked(tmp_path, print):
            raise error
        assert not (tmp_path / LOCK).exists()


def test_another_machines_lock_is_respected(tmp_path: Path) -> None:
    far = _this(host="far-away", boot="another", pid=4)
    _left_by(tmp_path, far)
    (tmp_path / "log.txt").touch()
    with pytest.raises(UsageError) as refused:
        _take(tmp_path)
    assert "process 4 on far-away" in refused.value.message
    assert f"remove {tmp_path / LOCK}" in str(refused.value.hint)
    assert "last wrote to its log 0 minutes ago" in str(refused.value.hint)
    assert json.loads((tmp_path / LOCK).read_text()) == far.model_dump(), "it is left as it was"
    assert holder_of(tmp_path / LOCK) == far


@pytest.mark.parametrize(("restart", "over"), [("0", False), ("1", True)])
def test_slurm_vouches_for_the_end_of_a_requeued_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restart: str, over: bool
) -> None:
    _left_by(tmp_path, _this(host="node-7", boot="another", job="4711", restart=0))
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_RESTART_COUNT", restart)
    if over:
        assert "SLURM job 4711" in _take(tmp_path)[0]
    else:
        with pytest.raises(UsageError, match="node-7"):
            _take(tmp_path)


def test_a_machine_that_was_started_anew_has_ended_its_runs(tmp_path: Path) -> None:
    _left_by(tmp_path, _this(boot="the boot before", pid=1))
    assert len(_take(tmp_path)) == 1


@pytest.mark.parametrize("refusal", ["ENOSYS", "ENOLCK", "ENOTSUP"])
def test_without_flock_the_process_itself_is_looked_for(
    tmp_path: Path, holding: Start, monkeypatch: pytest.MonkeyPatch, refusal: str
) -> None:
    """A file system without locks, such as some network ones."""
    number = getattr(errno, refusal)

    def refuse(handle: int, how: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    folder = tmp_path / "run"
    first = holding(folder, without=number)
    with pytest.raises(UsageError, match=f"in use by another run: process {first.pid} "):
        _take(folder)
    with pytest.raises(UsageError, match=f"process {first.pid} "):
        refuse_if_held(folder)
    os.kill(first.pid, signal.SIGKILL)
    first.wait(timeout=20)
    assert f"process {first.pid}" in _take(folder)[0]
    assert list(folder.iterdir()) == []
    # Another machine's file stands even where its process cannot be looked for.
    _left_by(folder, _this(host="far-away", boot="another"))
    with pytest.raises(UsageError, match="far-away"):
        _take(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "\x00" * 40, '{"host": 3}', "9" * 5000])
def test_a_lock_file_that_says_nothing_holds_nobody(tmp_path: Path, content: str) -> None:
    (tmp_path / LOCK).write_text(content)
    assert holder_of(tmp_path / LOCK) is None
    assert _take(tmp_path) == []


def test_a_lock_is_no_run_and_goes_with_an_overwritten_one(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with locked(tmp_path, print):
        assert not folder.is_run
        folder.clear()  # nobody else's file is in it
        (tmp_path / "photos").mkdir()
        with pytest.raises(UsageError, match="not the folder of a run"):
            folder.clear()
        assert (tmp_path / LOCK).exists()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UsageError, match=r"file/run cannot be written: Not a directory"),
        locked(tmp_path / "file" / "run", print),
    ):
        pass
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / LOCK).symlink_to(tmp_path / "file")
    with pytest.raises(UsageError, match="cannot be written"), locked(tmp_path / "linked", print):
        pass
    assert (tmp_path / "file").read_text() == "", "a link does not lead the lock out of the folder"
