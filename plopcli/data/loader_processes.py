"""The processes that load images: how they begin, and how their deaths are told."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch

_IGNORED = tuple(getattr(signal, name) for name in ("SIGINT", "SIGUSR1", "SIGHUP") if hasattr(signal, name))


def begin(_worker: int) -> None:
    """What a loader process does first.

    Signals to a whole job or terminal ask the main process to finish its iteration, for which it needs the images that
    it has asked for. It ends its loaders itself; they also end when they find it gone.
    """
    torch.set_num_threads(1)
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _let_one_pass)


def _let_one_pass(number: int, _frame: FrameType | None) -> None:
    # A loader that hangs is ended by its main process with another SIGTERM.
    signal.signal(number, signal.SIG_DFL)


class _Deaths:
    """Notes what torch raises when a loader process dies, for whoever waits for images next.

    Torch raises it out of a signal handler: anywhere, in the middle of an optimizer step too.
    """

    def __init__(self, report: Callable[[int, FrameType | None], Any]) -> None:
        self._report = report
        self.error: RuntimeError | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        try:
            self._report(number, frame)
        except RuntimeError as error:
            self.error = error


def note_deaths() -> None:
    """Has deaths of loader processes noted, instead of raised anywhere; to be called once loaders have started."""
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        return
    handler = signal.getsignal(signal.SIGCHLD)
    if callable(handler) and not isinstance(handler, _Deaths):
        signal.signal(signal.SIGCHLD, _Deaths(handler))


def noted_death() -> RuntimeError | None:
    """How a loader process died, in torch's words, if one has since the last call."""
    if not hasattr(signal, "SIGCHLD"):
        return None
    handler = signal.getsignal(signal.SIGCHLD)
    if not isinstance(handler, _Deaths):
        return None
    error, handler.error = handler.error, None
    return error
