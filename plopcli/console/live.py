"""What a person sees while something goes on: one block of a few lines on a terminal, a plain line now and then
elsewhere.

A terminal gets a bar that is drawn anew in place, with what the run says about itself around it. Where standard error
goes to a file or a pipe, and in the log of a run, a line appears when nothing else has for a while: after a minute in
the beginning, after ten in a run of hours.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

#: Seconds without a line, at first and at most, after which a plain one tells how far things are.
_FIRST, _MOST = 60.0, 600.0
#: Share of the time so far that may pass without a line in between.
_SHARE = 0.05
_BAR = 24


@dataclass(frozen=True)
class Around:
    """What a run says about itself around a bar.

    Args:
        heading: Line above it: what and where.
        details: Lines below it.
        brief: What of all that a plain line tells.
    """

    heading: str = ""
    details: tuple[str, ...] = ()
    brief: str = ""


def clock(seconds: float) -> str:
    """A time for people, in its two largest units.

    >>> clock(273_600), clock(59), clock(3_700)
    ('3 d 4 h', '59 s', '1 h 2 min')
    """
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    units = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))
    first = next(position for position, (_, size) in enumerate(units) if whole >= size)
    (name, size), (other, part) = units[first : first + 2]
    rest = whole % size // part
    return f"{whole // size} {name}" + (f" {rest} {other}" if rest else "")


class ProgressLine:
    """A piece of work that goes on.

    Args:
        description: What it is.
        unit: What is counted.
        around: What else there is to say.
        now: The clock.
        say: Called with a plain line after every update.
    """

    def __init__(
        self,
        description: str,
        unit: str,
        around: Callable[[], Around],
        now: Callable[[], float] = time.monotonic,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self._say = say
        self._description, self._unit, self._around, self._now = description, unit, around, now
        self._done, self._total, self._note = 0, 0, ""
        self._began: tuple[int, float] | None = None
        self._updated = 0.0

    def update(self, done: int, total: int, note: str = "") -> None:
        """Shows ``done`` of ``total``."""
        if self._began is None or done < self._began[0]:
            # What is gone on with was partly done before; a next part begins anew.
            self._began = (done, self._now())
        self._done, self._total, self._note, self._updated = done, total, note, self._now()
        if self._say is not None:
            self._say(self.line)

    @property
    def left(self) -> str:
        """The time left, as far as it can be told."""
        if self._began is None or self._done <= self._began[0]:
            return ""
        first, began = self._began
        expected = (self._updated - began) / (self._done - first) * (self._total - self._done)
        return f"{clock(max(0.0, expected - (self._now() - self._updated)))} left"

    @property
    def line(self) -> str:
        """All in one line."""
        parts = (f"{self._done}/{self._total} {self._unit}", self._note, self._around().brief, self.left)
        return f"  {self._description}: {', '.join(part for part in parts if part)}"

    def __rich__(self) -> RenderableType:
        around, bar = self._around(), Table.grid(padding=(0, 1))
        for _ in range(4):
            bar.add_column(no_wrap=True)
        if self._total:
            shown: RenderableType = ProgressBar(self._total, min(self._done, self._total), width=_BAR)
            counted = ", ".join(part for part in (self._note, self.left) if part)
            bar.add_row(self._description, shown, f"{self._done}/{self._total} {self._unit}", counted)
        else:
            bar.add_row(self._description, ProgressBar(None, width=_BAR, pulse=True))
        lines = [Text(line, no_wrap=True, overflow="ellipsis") for line in around.details if line]
        heading = [Text(around.heading, "bold", no_wrap=True, overflow="ellipsis")] if around.heading else []
        return Group(*heading, bar, *lines)


class Silence:
    """Since when nothing was said, and how long that may last."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._began = self._last = now()

    def broken(self) -> None:
        """Something was said."""
        self._last = self._now()

    @property
    def is_long(self) -> bool:
        """Whether it is time to say something."""
        now = self._now()
        return now - self._last >= min(_MOST, max(_FIRST, _SHARE * (now - self._began)))


def is_live(console: Console) -> bool:
    """Whether lines can be drawn anew in place there."""
    return console.is_terminal and not console.is_dumb_terminal


@contextmanager
def shown(
    console: Console, description: str, unit: str, around: Callable[[], Around], say: Callable[[str], None]
) -> Iterator[ProgressLine]:
    """A piece of work, shown on ``console`` while it goes on.

    Args:
        console: Where.
        description: What it is.
        unit: What is counted.
        around: What else there is to say.
        say: Called with a plain line after every update; it decides whether it is time for one.
    """
    line = ProgressLine(description, unit, around, say=say)
    if not is_live(console):
        yield line
        return
    # Twice a second: enough for people, little for a slow connection.
    with Live(get_renderable=line.__rich__, console=console, transient=True, refresh_per_second=2):
        yield line
