"""One run in a folder at a time: a run holds ``RUN/run.lock`` while it works (`plopcli.files.lock`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from plopcli.errors import UsageError
from plopcli.files.lock import HeldError, Holder, holder_of, holding
from plopcli.runs.folder import LOCK, cannot_write


def refuse_if_held(folder: Path) -> None:
    """Refuses a folder that another run holds, before anything is computed; changes nothing.

    Raises:
        UsageError: Names the other run and the ways out.
    """
    if (holder := holder_of(folder / LOCK)) is not None:
        raise _in_use(folder, holder)


@contextmanager
def locked(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Makes ``folder`` and holds it for this process. A folder that is left empty is removed again.

    Args:
        folder: The run's folder.
        say: Told when the lock of a run that has ended is taken over.

    Raises:
        UsageError: Another run holds it, or it cannot be written.
    """
    with ExitStack() as stack:
        try:
            left = stack.enter_context(holding(folder / LOCK))
        except HeldError as error:
            raise _in_use(folder, error.holder) from None
        except OSError as error:
            raise cannot_write(folder, error) from error
        if left is not None:
            say(f"The lock of a run that has ended is taken over: {left.describe()}")
        yield


def _in_use(folder: Path, holder: Holder) -> UsageError:
    if holder.is_here:
        hint = f"Wait until it has ended, or stop it (kill {holder.pid}); or choose another folder with --run."
    else:
        hint = (
            f"Whether it still runs can only be seen on {holder.host}{_last_sign(folder)}. If it does not, remove "
            f"{folder / LOCK} and start again; or choose another folder with --run."
        )
    return UsageError(f"{folder} is in use by another run: {holder.describe()}.", hint)


def _last_sign(folder: Path) -> str:
    """When a run last wrote, for people."""
    written = []
    for name in ("log.txt", "metrics.jsonl"):
        with suppress(OSError):
            written.append((folder / name).stat().st_mtime)
    if not written:
        return ""
    return f"; it last wrote to its log {max(0.0, time.time() - max(written)) / 60:.0f} minutes ago"
