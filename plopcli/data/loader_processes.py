"""Processes that load images: started, watched and ended here.

Each loader sends its results through a socket of its own, in order. It shares no lock, queue or shared memory with
others (as the processes of `torch.utils.data.DataLoader` do), so that whatever becomes of one, a stop or its death in
the middle of a result included, leaves the main process waiting for a second at most before it looks again.
"""

from __future__ import annotations

import io
import itertools
import mmap
import os
import queue
import signal
import socket
import struct
import sys
import threading
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from multiprocessing import get_context, process, util
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, TypeVar

from plopcli.errors import MachineError

T = TypeVar("T")
P = TypeVar("P")
R = TypeVar("R")

#: Results that a loader has ready in advance.
AHEAD = 4
#: Seconds between two looks at a loader that sends nothing.
_TICK = 1.0
#: Signals to a whole job or terminal ask the main process to finish its iteration, for which it needs the images that
#: it has asked for. It ends its loaders itself.
_IGNORED = {getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name)}
#: Seconds that a killed process gets to end.
_LAST = 5.0
_COUNT = struct.Struct("Q")


class LoaderError(MachineError):
    """A process that loads images has died, or is stuck."""


def in_processes(
    load: Callable[[T], P],
    combine: Callable[[list[P]], R],
    batches: Iterable[Sequence[T]],
    count: int,
    timeout: float,
    advice: tuple[str, str] = ("", ""),
) -> Generator[R]:
    """``combine([load(item) for item in batch])`` for every batch, in order, computed by ``count`` processes.

    The processes end with the iteration: at its end, with an error, when the generator is closed or collected, and when
    the program exits.

    Args:
        load: Loads an item.
        combine: Makes one picklable result of a batch; arrays in it travel without further copies. No tensors.
        batches: Items; every process iterates over all of it.
        count: Number of processes.
        timeout: Seconds without one loaded item after which the process that is waited for counts as stuck.
        advice: What errors suggest where a process has died, and where one is stuck.

    Raises:
        LoaderError: A process died or is stuck.
        OSError: The system refuses processes or files.
        Exception: What ``load`` or ``combine`` raised.
    """
    loaders: list[_Loader] = []
    try:
        for number in range(count):
            share = itertools.islice(batches, number, None, count)
            loaders.append(_Loader(load, combine, share, timeout, advice))
        for loader in itertools.cycle(loaders):
            if (answer := loader.receive()) is None:
                return
            (result,) = answer
            if isinstance(result, Exception):
                raise result
            yield result
    finally:
        _end(loaders)


def _end(loaders: Sequence[_Loader]) -> None:
    # Killed, for a process that is stopped or waits for a disk heeds nothing else, and none holds what others need.
    for loader in loaders:
        loader.process.kill()
    for loader in loaders:
        loader.process.join(_LAST)
        # One that not even this ends (its disk does not answer) is left alone: at exit, it would be waited for.
        process._children.discard(loader.process)  # type: ignore[attr-defined]
        loader.socket.close()
        _running.discard(loader)


def end_all() -> None:
    """Ends all loaders of this process."""
    _end(tuple(_running))


#: Loaders that have not been ended: at exit, multiprocessing would send them SIGTERM, which they ignore, and wait.
_running: set[_Loader] = set()
util.Finalize(None, end_all, exitpriority=100)


class _Loader:
    """A loader process, as the main process sees it."""

    def __init__(
        self,
        load: Callable[[Any], Any],
        combine: Callable[[list[Any]], Any],
        share: Iterator[Sequence[Any]],
        timeout: float,
        advice: tuple[str, str],
    ) -> None:
        self._timeout, self._advice = timeout, advice
        self.socket, theirs = socket.socketpair()
        with theirs:
            self.socket.settimeout(_TICK)
            #: How many items it has loaded; anonymous memory, which needs no room in /dev/shm.
            self._loaded = mmap.mmap(-1, _COUNT.size)
            foreign = [self.socket, *(other.socket for other in _running)]
            arguments = (theirs, foreign, self._loaded, load, combine, share)
            self.process = get_context("fork").Process(target=_serve, args=arguments, daemon=True)
            before = signal.pthread_sigmask(signal.SIG_BLOCK, _IGNORED)
            try:
                self.process.start()
                _running.add(self)
            except OSError:
                self.socket.close()
                raise
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def receive(self) -> tuple[Any] | None:
        """The next result, in a tuple; None behind the last one.

        Raises:
            LoaderError: The process is dead or stuck.
        """
        (number,) = _COUNT.unpack(self._read(_COUNT.size))
        if number == 0:
            return None
        sizes = struct.unpack(f"{number}Q", self._read(number * _COUNT.size))
        pickled, *buffers = [self._read(size) for size in sizes]
        return (ForkingPickler.loads(pickled, buffers=buffers),)

    def _read(self, size: int) -> bytearray:
        content = bytearray(size)
        left = memoryview(content)
        waited, loaded = 0.0, self._loaded[:]
        while left:
            try:
                got = self.socket.recv_into(left)
            except TimeoutError:
                # Seconds of waiting, not of a clock: this process may have been stopped together with its loaders.
                waited = waited + _TICK if loaded == self._loaded[:] else 0.0
                loaded = self._loaded[:]
                if waited >= self._timeout:
                    raise self._stuck() from None
                continue
            except ConnectionError:
                got = 0
            if got == 0:
                raise self._died()
            left, waited = left[got:], 0.0
        return content

    def _died(self) -> LoaderError:
        self.process.join()
        code = self.process.exitcode or 0
        how = f"was killed: {signal.strsignal(-code)}" if code < 0 else "ended by itself"
        memory = "Mostly that means that the machine's memory ran out. " if code in (0, -signal.SIGKILL) else ""
        return LoaderError(
            f"An image loader process (pid {self.process.pid}) {how}.",
            f"{memory}{self._advice[0]}",
        )

    def _stuck(self) -> LoaderError:
        pid = self.process.pid
        stopped = ""
        with suppress(OSError):
            stopped = ", for it is stopped" * (Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] in "Tt")
        return LoaderError(
            f"An image loader process (pid {pid}) has loaded no image for {self._timeout:g} seconds{stopped}.",
            f"See to the disk or network that the data set is on, and to what stops processes here. {self._advice[1]}",
        )


def _serve(
    pipe: socket.socket,
    foreign: list[socket.socket],
    loaded: mmap.mmap,
    load: Callable[[Any], Any],
    combine: Callable[[list[Any]], Any],
    share: Iterator[Sequence[Any]],
) -> None:
    """What a loader process does."""
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _IGNORED)
    for other in foreign:  # else nobody would notice that the main process is gone
        other.close()
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)  # threads of the main process do not exist here
    ready: queue.Queue[list[Any] | None] = queue.Queue(AHEAD - 1)
    sender = threading.Thread(target=_send_all, args=(pipe, ready))
    try:
        sender.start()
    except RuntimeError as error:
        _send(pipe, _packed(error))
        return
    count = itertools.count(1)

    def load_and_count(item: Any) -> Any:
        part = load(item)
        loaded[:] = _COUNT.pack(next(count))
        return part

    try:
        for batch in share:
            ready.put(_packed(combine([load_and_count(item) for item in batch])))
    except Exception as error:
        error.add_note(traceback.format_exc())
        ready.put(_packed(_portable(error)))
    ready.put(None)


def _send_all(pipe: socket.socket, ready: queue.Queue[list[Any] | None]) -> None:
    try:
        while (frames := ready.get()) is not None:
            _send(pipe, frames)
        _send(pipe, [])
    except OSError:  # the main process is gone
        os._exit(1)


def _send(pipe: socket.socket, frames: list[Any]) -> None:
    pipe.sendall(struct.pack(f"{1 + len(frames)}Q", len(frames), *map(len, frames)))
    for frame in frames:
        pipe.sendall(frame)


def _packed(result: Any) -> list[Any]:
    """The pickled ``result``, and the buffers of its arrays."""
    buffers: list[Any] = []
    pickled = io.BytesIO()
    ForkingPickler(pickled, 5, True, buffers.append).dump(result)
    return [pickled.getvalue(), *(buffer.raw() for buffer in buffers)]


def _portable(error: Exception) -> Exception:
    """``error``, or its words where it cannot be pickled."""
    try:
        ForkingPickler.loads(ForkingPickler.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
