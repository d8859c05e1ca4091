"""Standard streams that outlive whoever reads them, and text that means nothing to a terminal but its letters.

A terminal is closed, a pipe is left, a disk behind a redirection fills up, or a stream was never there (``>&-``): what
is said then goes nowhere, and the work goes on. What comes from a file (names of classes, paths, messages of decoders)
is shown letter by letter, so that none of it moves the cursor, hides a line or colours the rest.
"""

from __future__ import annotations

import errno
import io
import os
import re
import select
import stat
import sys
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

#: Seconds that a stream which is not to be waited for may stay full.
_PATIENCE = 30.0
#: The reader has gone, and wants no more.
_GONE = (errno.EPIPE, errno.EBADF, errno.EIO, errno.ENXIO, errno.ENODEV, errno.ECONNRESET, errno.ENOTCONN)
#: Control characters but tab and line feed, the direction of letters, and halves of characters.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """``text`` with a ``?`` for each character that a terminal would obey instead of showing it."""
    return _UNPRINTABLE.sub("?", text)


class _Raw(io.FileIO):
    """A standard stream at the system's level: once a write fails, all that follows is dropped."""

    lost: OSError | None = None

    def write(self, data: Any, /) -> int:
        """Writes ``data``, or drops it; as many bytes are taken as a stream that works would take."""
        try:
            written = super().write(data)
            if written is None:  # it is full, and set not to wait
                if not select.select([], [self], [], _PATIENCE)[1]:
                    raise BlockingIOError(errno.EAGAIN, "nobody reads it")
                written = super().write(data)
            return written or 0
        except OSError as error:
            self._lose(error)
            return memoryview(data).nbytes

    def _lose(self, error: OSError) -> None:
        try:
            is_file = stat.S_ISREG(os.fstat(self.fileno()).st_mode)
        except OSError:
            is_file = False
        if is_file or error.errno not in _GONE:
            self.lost = error
        # For what torch, its libraries and processes of ours write there as well.
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, self.fileno())
        os.close(sink)


def secure_streams() -> None:
    """Makes standard output and error of this process what this module promises; may be called again.

    Streams that somebody else has put in their place (a notebook, a test) are left alone.
    """
    while True:  # files that are opened later must not get the number of a stream that is closed
        handle = os.open(os.devnull, os.O_RDWR)
        if handle > 2:
            os.close(handle)
            break
        os.set_inheritable(handle, True)
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream: TextIO | None = getattr(sys, name)
        if stream is None:
            setattr(sys, name, _stream(number, "utf-8", "replace", buffered=False))
        elif stream is getattr(sys, f"__{name}__") and isinstance(stream, io.TextIOWrapper):
            stream.flush()
            errors = "backslashreplace" if stream.errors == "backslashreplace" else "replace"
            setattr(sys, name, _stream(number, stream.encoding, errors, buffered=not stream.line_buffering))


def _stream(number: int, encoding: str, errors: str, *, buffered: bool) -> TextIO:
    raw = io.BufferedWriter(_Raw(number, "w", closefd=False))
    return io.TextIOWrapper(raw, encoding, errors, line_buffering=not buffered)


def lost_output() -> OSError | None:
    """Why standard output could not be written, where that was a failure and not a reader who had seen enough."""
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return raw.lost if isinstance(raw, _Raw) else None


def echo(text: str, *, err: bool = False) -> None:
    """Prints lines of plain text, on standard output, or else on standard error."""
    print(printable(text), file=sys.stderr if err else sys.stdout, flush=True)


def open_console(*, err: bool = True, **options: Any) -> Console:
    """A console of rich on standard error, or else on standard output, that shows text as `printable` does.

    Args:
        err: Whether it is standard error.
        options: Of rich's `Console`.
    """
    from rich.console import Console

    class Plain(Console):
        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
            for segment in super().render(renderable, options):
                yield segment if segment.control else segment._replace(text=printable(segment.text))

    return Plain(stderr=err, **options)
