"""Signals that ask a run to stop, and how they are handled.

SIGINT is Ctrl-C, SIGTERM what `kill`, SLURM and most other schedulers send, SIGUSR1 what SLURM can send some time
before a job's end (``#SBATCH --signal=USR1@120``), SIGHUP what a closed terminal sends.

While a run trains they are *deferred*: recorded only, so that the iteration can be finished and its state saved, unless
it waits for images, which may never come; everywhere else they end the work at once, by an exception. A second Ctrl-C
ends it at once anywhere. Python runs handlers between its own instructions, so "at once" means: when the running
operation of torch is done.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

from plopcli.errors import StoppedError

STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name))
#: Signals that arrive within so many seconds are one request: launchers pass on what their processes got as well.
_SAME = 1.0

Handler = Callable[[int, FrameType | None], None]


@dataclass
class _Request:
    """The request to stop that this process has received, if any."""

    signal: int = 0
    time: float = 0.0
    deferred: bool = False
    #: Seconds that a wait may go on after the request; None outside of waits.
    grace: float | None = None
    reminder: threading.Timer | None = None


_request = _Request()


def stop_asked() -> int:
    """The signal that this process was asked to stop by; 0 for none."""
    return _request.signal


@contextmanager
def signals_caught() -> Iterator[None]:
    """Makes stop signals end the work in this process in an orderly way; restores their former handling at the end.

    Signals that are ignored, as under nohup and in the background of some shells, stay ignored. Does nothing outside
    the main thread, where Python cannot handle signals.

    Raises:
        StoppedError: A signal came that was not deferred.
        KeyboardInterrupt: It was Ctrl-C.
    """
    with _handled_by(_take):
        yield


@contextmanager
def signals_deferred() -> Iterator[None]:
    """Only records signals, for `stop_asked`; one that is still pending at the end ends the work then.

    Raises:
        StoppedError: A signal came, and is pending.
        KeyboardInterrupt: It was Ctrl-C, or Ctrl-C came for a second time.
    """
    outermost, _request.deferred = not _request.deferred, True
    try:
        yield
    finally:
        _request.deferred = not outermost
    if outermost and _request.signal:
        raise stopped_by(_request.signal)


@contextmanager
def deferred_for(grace: float) -> Iterator[None]:
    """Within `signals_deferred`, for a wait: ends it ``grace`` seconds after a signal.

    Raises:
        StoppedError: They have passed, or a signal came again. (Ctrl-C for a second time: KeyboardInterrupt.)
    """
    _request.grace = grace
    try:
        if _request.signal:
            _give_up_later()
        yield
    finally:
        _request.grace = None
        if _request.reminder is not None:
            _request.reminder.cancel()
            _request.reminder = None


@contextmanager
def signals_forwarded() -> Iterator[None]:
    """Passes stop signals on to the processes that this one has started, which decide what to do.

    Raises:
        StoppedError: A signal came before there was any process.
        KeyboardInterrupt: It was Ctrl-C, or Ctrl-C came for a second time; the processes are killed then.
    """
    with _handled_by(_forward):
        yield


@contextmanager
def _handled_by(handler: Handler) -> Iterator[None]:
    _request.signal, _request.deferred = 0, False
    before = {}
    if threading.current_thread() is threading.main_thread():
        # None is a handler that was not set from Python, and that Python cannot put back.
        before = {
            number: signal.signal(number, handler)
            for number in STOPPING
            if signal.getsignal(number) not in (signal.SIG_IGN, None)
        }
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)
        _request.signal = 0


def _is_new(number: int) -> bool:
    """Records a signal; False for an echo of the one before."""
    now = time.monotonic()
    if _request.signal and now - _request.time < _SAME:
        return False
    _request.signal, _request.time = _request.signal or number, now
    return True


def _take(number: int, _frame: FrameType | None) -> None:
    again = _request.signal != 0
    if not _is_new(number):
        return
    if not _request.deferred or (again and number == signal.SIGINT):
        raise stopped_by(number)
    if again and _request.grace is not None:
        raise _stopped(_request.signal)
    if _request.grace is not None:
        _give_up_later()


def _give_up_later() -> None:
    assert _request.grace is not None, "it waits"
    if _request.grace == 0:
        raise _stopped(_request.signal)
    # Whatever is waited for, a signal interrupts it.
    _request.reminder = threading.Timer(_request.grace, os.kill, (os.getpid(), _request.signal))
    _request.reminder.daemon = True
    _request.reminder.start()


def _forward(number: int, _frame: FrameType | None) -> None:
    again = _request.signal != 0
    if not _is_new(number):
        return
    processes = multiprocessing.active_children()
    if not processes:
        raise stopped_by(number)
    if again and number == signal.SIGINT:
        for process in processes:
            process.kill()
        raise KeyboardInterrupt
    for process in processes:
        with suppress(ProcessLookupError):
            assert process.pid is not None, "it runs"
            os.kill(process.pid, number)


def stopped_by(number: int) -> BaseException:
    """The exception by which a signal ends the work."""
    if number == signal.SIGINT:
        return KeyboardInterrupt()
    return _stopped(number)


def _stopped(number: int) -> StoppedError:
    return StoppedError(number, f"Stopped by {signal.Signals(number).name}.")
