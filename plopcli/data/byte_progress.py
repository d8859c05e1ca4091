"""How far a long transfer is: a bar with speed and time left on a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.filesize import decimal as size_text
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from plopcli.console.live import is_live
from plopcli.console.log import RunLog

#: Seconds between two lines where there is no terminal.
LINE_EVERY = 15.0


class ByteProgress:
    """Progress of one file in bytes; made by `byte_progress`."""

    def __init__(self, bar: Progress, task: TaskID, log: RunLog, title: str) -> None:
        self._bar, self._task, self._log, self._title = bar, task, log, title
        self._total: int | None = None
        self._first, self._since, self._said = 0, time.monotonic(), 0.0

    def begin(self, done: int, total: int | None) -> None:
        """A stretch starts at byte ``done`` of ``total``; speed and time left count from here."""
        self._first, self._since, self._total = done, time.monotonic(), total
        if not is_live(self._log.console) and not self._said:
            self._log.say(f"{self._title}: {'size unknown' if total is None else size_text(total)}")
        self._said = self._since
        self._bar.reset(self._task, completed=done, total=total)

    def update(self, done: int) -> None:
        """The first ``done`` bytes are there."""
        if not is_live(self._log.console):
            now = time.monotonic()
            if now - self._said >= LINE_EVERY:
                self._said = now
                self._log.say(f"{self._title}: {self._state(done, now)}")
        else:
            self._bar.update(self._task, completed=done)

    def _state(self, done: int, now: float) -> str:
        speed = (done - self._first) / max(now - self._since, 1e-6)
        pace = f"{size_text(int(speed))}/s"
        if not self._total:
            return f"{size_text(done)}, {pace}"
        left = f", {(self._total - done) / speed:.0f} s left" if speed else ""
        return f"{100 * done // self._total} % of {size_text(self._total)}, {pace}{left}"


@contextmanager
def byte_progress(log: RunLog, title: str) -> Iterator[ByteProgress]:
    """Shows the progress of ``title`` on the console of ``log`` until the block ends."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=log.console, transient=True, disable=not is_live(log.console)) as bar:
        yield ByteProgress(bar, bar.add_task(title, total=None), log, title)
