"""What a program says: to the terminal, and to the log file of a run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from plopcli.console.live import Around, ProgressLine, Silence, is_live, shown
from plopcli.files.atomic import append


class RunLog:
    """Says what happens, to the terminal and to the run's log file.

    Args:
        console: The terminal (standard error).
        file: The log file; None while there is no folder yet.
    """

    def __init__(self, console: Console, file: Path | None = None) -> None:
        self.console = console
        self.file = file
        #: What is shown around every bar.
        self.around = Around()
        self._silence = Silence()

    def say(self, message: str, style: str | None = None) -> None:
        """One line, with a time stamp in the file."""
        self._silence.broken()
        self.console.print(message, style=style, highlight=False, markup=False, soft_wrap=True)
        self._write(message)

    @contextmanager
    def progress(self, description: str, unit: str = "iterations") -> Iterator[ProgressLine]:
        """A bar with the time left on a terminal; elsewhere, and in the file, a line when nothing else was said."""
        with shown(self.console, description, unit, lambda: self.around, self._say_at_times) as line:
            yield line

    def _say_at_times(self, line: str) -> None:
        if not self._silence.is_long:
            return
        if is_live(self.console):  # which shows it already
            self._silence.broken()
            self._write(line)
        else:
            self.say(line)

    def _write(self, message: str) -> None:
        if self.file is not None:
            with append(self.file) as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}\n")
