"""Consoles that go away, or cannot hold what is said: real programs, whose exit code and log stay what they were."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from io import StringIO
from pathlib import Path

import pytest

from plopcli.cli.output import print_json
from plopcli.console.log import end_in_log, write_log
from plopcli.console.streams import open_console, printable
from plopcli.errors import DataError, PeerFailedError
from plopcli.resolution.layers import Resolved, settings_to_toml
from plopcli.runs.folder import RunFolder

PLOP = f"{sys.executable} -m plopcli"
ENDLESS = 600


def shell(line: str, timeout: int = 120, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["bash", "-c", line], capture_output=True, timeout=timeout, env={**os.environ, **environment}, check=False
    )


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_command_without_streams_works(closed: str) -> None:
    done = shell(f"{PLOP} tasks {closed}")
    assert done.returncode == 0
    assert (b"15-1" in done.stdout) == (">&-" not in closed.replace("2>&-", ""))
    assert shell(f"{PLOP} tasks nonsense {closed}").returncode == 2


def test_readers_who_have_seen_enough_are_no_failure() -> None:
    done = shell(f"set -o pipefail; {PLOP} tasks --json 2>&1 | head -c 1")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"[", b"")


def test_results_that_cannot_be_written_are_told() -> None:
    done = shell(f"{PLOP} tasks >/dev/full")
    assert done.returncode == 4
    assert b"Error: Standard output could not be written: No space left on device.\n" in done.stderr
    assert shell(f"{PLOP} tasks 2>/dev/full").returncode == 0


@pytest.mark.parametrize(
    "environment",
    [
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1:strict"},
        {"TERM": "dumb", "NO_COLOR": ""},
        {"NO_COLOR": "1", "COLUMNS": "nonsense"},
    ],
)
def test_streams_that_cannot_hold_a_character(environment: dict[str, str]) -> None:
    table = shell(f"{PLOP} tasks --dataset voc", **environment)
    assert table.returncode == 0
    assert b"15-1" in table.stdout
    wrong = shell(f"{PLOP} evaluate 'no-\u2013-such-\u00e9'", **environment)
    assert wrong.returncode == 3
    assert wrong.stderr.count(b"Error: ") == 1
    assert b"bug in plop" not in wrong.stderr
    json.loads(shell(f"{PLOP} tasks --json", **environment).stdout)


def config_of(settings: Resolved) -> str:
    path = settings.settings.run_folder.parent / "run.toml"
    path.write_text(settings_to_toml(settings.settings))
    return f"run-scenario --config {path} --preset none"


@pytest.fixture
def training(tiny: Callable[..., Resolved]) -> tuple[str, Path]:
    """A command that trains for some seconds, and its run folder."""
    settings = tiny(
        **{"method__name": "ft", "compute__gpus": 0, "scenario__task": "offline", "data__workers": 0},
        output__print_every=1,
        train__first__epochs=3,
    )
    return config_of(settings), settings.settings.run_folder


def is_complete(folder: Path) -> bool:
    log = (folder / "log.txt").read_text()
    return "Done: " in log and (folder / "results.json").exists()


@pytest.mark.parametrize("end", [">&- 2>&-", "2>/dev/full", "2> >(exec head -c 1 >/dev/null)", "2>&1 | head -c 1"])
def test_a_training_goes_on_without_its_console(training: tuple[str, Path], end: str) -> None:
    words, folder = training
    assert shell(f"set -o pipefail; {PLOP} {words} {end}", ENDLESS).returncode == 0
    assert is_complete(folder)


@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_a_training_goes_on_when_its_terminal_is_closed(training: tuple[str, Path], term: str) -> None:
    words, folder = training
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*PLOP.split(), *words.split()],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        env={**os.environ, "TERM": term},
    )
    os.close(theirs)
    said = b""
    while b"seed" not in said:
        said += os.read(ours, 1024)
    os.close(ours)
    assert process.wait(ENDLESS) == 0
    assert is_complete(folder)


def test_what_ends_a_run_is_in_its_log(tiny: Callable[..., Resolved], toy_root: Path) -> None:
    settings = tiny(
        **{"method__name": "ft", "compute__gpus": 0, "scenario__task": "offline", "data__workers": 0},
        train__first__lr=1e30,
    )
    words, log = config_of(settings), RunFolder(settings.settings.run_folder).log
    assert shell(f"{PLOP} {words} >&- 2>&-", ENDLESS).returncode == 1
    lines = log.read_text().splitlines()
    assert "not finite" in lines[-2]
    assert lines[-1].startswith("    Hint: ")
    # What is refused before anything is written is none of the run's history.
    assert shell(f"{PLOP} {words}").returncode == 2
    assert log.read_text().splitlines() == lines


def test_a_training_under_nohup_outlives_a_hangup(training: tuple[str, Path]) -> None:
    words, folder = training
    process = subprocess.Popen(
        ["bash", "-c", f"trap '' HUP; exec {PLOP} {words}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stderr is not None
    process.stderr.readline()
    with suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGHUP)
    process.stderr.close()
    assert process.wait(ENDLESS) == 0
    assert is_complete(folder)


def test_a_log_is_written_where_the_console_fails(tmp_path: Path) -> None:
    from rich.console import Console

    from plopcli.console.log import RunLog

    class Gone(StringIO):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        RunLog(Console(file=Gone()), tmp_path / "log.txt").say("an epoch is over")
    assert "an epoch is over" in (tmp_path / "log.txt").read_text()


def begin_and_fail(log: Path, error: Exception) -> None:
    with end_in_log(log):
        write_log(log, "begins")
        raise error


@pytest.mark.parametrize(
    ("error", "line"), [(DataError("x.png is broken.", "Mend it."), "Hint: Mend it."), (KeyError("a"), "KeyError: 'a'")]
)
def test_only_a_run_that_has_begun_gets_its_end_into_the_log(tmp_path: Path, error: Exception, line: str) -> None:
    log = tmp_path / "log.txt"
    log.write_text("earlier\n")
    with pytest.raises(type(error)), end_in_log(log):
        raise error
    assert log.read_text() == "earlier\n"
    with pytest.raises(PeerFailedError):
        begin_and_fail(log, PeerFailedError("another"))
    assert "another" not in log.read_text()
    with pytest.raises(type(error)):
        begin_and_fail(log, error)
    assert log.read_text().splitlines()[-1] == f"    {line}"


HOSTILE = "a\x1b]0;title\x07\x1b[2Jb\rc\x9b31m\u202egnp\udcff"


def test_text_is_shown_and_never_obeyed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from rich.table import Table

    assert printable("tab\tline\nä–") == "tab\tline\nä–"
    shown = StringIO()
    console = open_console(file=shown, force_terminal=True, width=200)
    console.print(HOSTILE, markup=False)
    table = Table(title=HOSTILE)
    table.add_column(HOSTILE)
    table.add_row(HOSTILE)
    console.print(table)
    for forbidden in ("\x1b]", "\x1b[2J", "\x07", "\r", "\x9b", "\u202e", "\udcff"):
        assert forbidden not in shown.getvalue()
    write_log(tmp_path / "log.txt", f"{HOSTILE}\n2026-01-01 00:00:00 a line that nobody has written")
    first, second = (tmp_path / "log.txt").read_text().splitlines()
    assert "\x1b" not in first
    assert second.startswith("    2026")
    print_json({HOSTILE: 1})
    printed = capsys.readouterr().out
    assert json.loads(printed) == {HOSTILE: 1}
    assert printed == printable(printed)
