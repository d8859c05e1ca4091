"""What a program says: to the terminal, and to the log file of a run."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console

from plopcli.console.live import Around, ProgressLine, Silence, is_live, shown
from plopcli.console.streams import printable
from plopcli.errors import MachineError, PeerFailedError, StoppedError, accounted, as_plop_error, first_line
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
        """One line; the file, which outlives the terminal, comes first, and has a time stamp."""
        self._silence.broken()
        try:
            self._write(message)
        finally:
            self.console.print(message, style=style, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def progress(self, description: str, unit: str = "iterations") -> Iterator[ProgressLine]:
        """A bar with the time left on a terminal; elsewhere, and in the file, a line when nothing else was said."""
        with shown(self.console, description, unit, lambda: self.around, self._say_at_times) as line:
            yield line

    @contextmanager
    def pictures(self, what: str) -> Iterator[None]:
        """Within it pictures are drawn; whatever fails there is said, and the work goes on without them."""
        try:
            yield
        except (PeerFailedError, StoppedError, MachineError, OSError):  # which are told as such, and resumed from
            raise
        except Exception as error:  # of libraries that draw, on names and numbers of any kind
            account = as_plop_error(error)
            reason = account.message if account else f"{type(error).__name__}: {first_line(error)}"
            self.say(f"  {what} could not be drawn: {reason:.500}", "yellow")

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
            write_log(self.file, message)


def write_log(path: Path, message: str) -> None:
    """Adds a message to a log, with a time stamp; its further lines are indented, so that none looks like another."""
    with append(path) as file:
        lines = printable(message).rstrip().replace("\n", "\n    ")
        file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {lines}\n")


@contextmanager
def end_in_log(path: Path) -> Iterator[None]:
    """Writes the error that ends a run into its log, where the run has begun to write there.

    Args:
        path: The log, which an earlier run may have left.
    """
    before = _state(path)
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        account = accounted(error)
        if not isinstance(account, PeerFailedError) and _state(path) != before:
            lines = [account.message, *([f"Hint: {account.hint}"] if account.hint else [])]
            if account.is_bug:
                lines += traceback.format_exception(error)
            with suppress(OSError):
                write_log(path, "\n".join(lines))
        raise


def _state(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_ino, found.st_size
