"""What a person sees while something goes on."""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from plopcli.console import live
from plopcli.console.live import Around, ProgressLine, Silence
from plopcli.console.log import RunLog

HEADING = "plop on toy 15-1: step 3 (4 of 6), epoch 12 of 30: bus, owl"
DETAILS = ("loss 1.234 = classification 0.912 + pod 0.322   lr 0.001", "", "12 min left in the run")


class Clock:
    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


def terminal(width: int = 80) -> tuple[Console, StringIO]:
    shown = StringIO()
    return Console(file=shown, force_terminal=True, width=width, height=24, color_system=None), shown


@pytest.fixture
def talkative(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_FIRST", 0.0)
    monkeypatch.setattr(live, "_SHARE", 0.0)


def test_the_block_fits_into_its_terminal() -> None:
    line = ProgressLine("step 3: train", "iterations", lambda: Around(HEADING, DETAILS, "epoch 12 of 30"))
    line.update(412, 1200, "37 images/s")
    for width in (40, 80, 120):
        console, shown = terminal(width)
        console.print(line)
        rows = shown.getvalue().rstrip("\n").split("\n")
        assert len(rows) == 4
        assert max(len(row) for row in rows) <= width
    assert rows[0].startswith(HEADING)
    assert "412/1200 iterations 37 images/s" in rows[1]
    assert [row.rstrip() for row in rows[2:]] == [DETAILS[0], DETAILS[2]]


def test_the_time_left_counts_from_where_the_work_was_taken_up() -> None:
    now = Clock()
    line = ProgressLine("train", "iterations", Around, now)
    line.update(500, 1000)
    assert line.left == ""
    now.time += 30
    line.update(600, 1000)
    assert line.left == "2 min left"
    now.time += 45
    assert line.left == "1 min 15 s left"
    now.time += 100
    assert line.left == "0 s left"
    line.update(1, 50)  # a next domain
    assert line.left == ""


def test_a_terminal_is_drawn_in_place_and_left_clean(tmp_path: Path) -> None:
    console, shown = terminal()
    log = RunLog(console, tmp_path / "log.txt")
    log.around = Around(HEADING, DETAILS)
    with log.progress("step 3: train") as bar:
        bar.update(1, 10)
        log.say("a line of its own")
    text = shown.getvalue()
    assert HEADING in text
    assert "a line of its own" in text
    assert "\x1b[1A\x1b[2K" in text.rpartition("a line of its own")[2], "what was drawn is taken away"
    assert re.fullmatch(r"\S+ \S+ a line of its own\n", (tmp_path / "log.txt").read_text())


def test_elsewhere_plain_lines_come_at_intervals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = Clock()
    monkeypatch.setattr("plopcli.console.log.Silence", lambda: Silence(now))
    shown = StringIO()
    log = RunLog(Console(file=shown, width=80), tmp_path / "log.txt")
    log.around = Around(HEADING, DETAILS, "epoch 12 of 30, 12 min left in the run")
    with log.progress("step 3: train") as bar:
        for second in range(1, 181):
            now.time += 1
            bar.update(second, 600, "37 images/s")
    lines = shown.getvalue().splitlines()
    assert len(lines) == 3  # one a minute
    assert lines[0].startswith(
        "  step 3: train: 60/600 iterations, 37 images/s, epoch 12 of 30, 12 min left in the run"
    )
    written = (tmp_path / "log.txt").read_text()
    assert len(written.splitlines()) == 3
    assert "\x1b" not in shown.getvalue() + written
    assert "\r" not in written


def test_lines_that_come_anyway_are_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = Clock()
    monkeypatch.setattr("plopcli.console.log.Silence", lambda: Silence(now))
    shown = StringIO()
    log = RunLog(Console(file=shown, width=80))
    with log.progress("train") as bar:
        for second in range(1, 181):
            now.time += 1
            bar.update(second, 600)
            if second % 50 == 0:
                log.say("an epoch is over")
    assert shown.getvalue().splitlines() == ["an epoch is over"] * 3


def test_the_log_of_a_run_on_a_terminal_tells_as_well(tmp_path: Path, talkative: None) -> None:
    console, shown = terminal()
    log = RunLog(console, tmp_path / "log.txt")
    with log.progress("train") as bar:
        bar.update(3, 10)
    assert "train: 3/10 iterations" in (tmp_path / "log.txt").read_text()
    assert "train: 3/10" not in shown.getvalue()


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch, talkative: None) -> None:
    monkeypatch.setenv("TERM", "dumb")
    console, shown = terminal()
    with RunLog(console).progress("train") as bar:
        bar.update(3, 10)
    assert shown.getvalue() == "  train: 3/10 iterations\n"
