"""What can go wrong because of a user's input, data or machine.

The tree, with the exit code of each branch::

    PlopError              1   the run failed
    ├── UsageError         2   wrong command line, settings, names
    ├── DataError          3   data, weights or checkpoints are missing or bad
    │   └── DamagedFileError   a file is not as it was written
    │       └── RefusedFileError   it needs code of its own to be read, which is never run
    ├── MachineError       4   the machine cannot do what was asked for
    ├── StoppedError           a signal ended the run: 128 + its number (SIGINT 130, SIGUSR1 138, SIGTERM 143)
    └── PeerFailedError        another process of the run failed, and tells why; its exit code

Every error says what happened and where, and ``hint`` says what to do next. The command line prints both and
exits with ``exit_code``; a traceback appears only with ``--debug``. Mistakes that only we can make are asserts.
"""

from __future__ import annotations

import difflib
import errno
import signal
import traceback
from collections.abc import Iterable
from pathlib import Path


class PlopError(Exception):
    """A failure that is reported as one clear message.

    Args:
        message: What happened, and where.
        hint: What the user can do next.
    """

    exit_code = 1
    is_bug = False

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[type[PlopError], tuple[str, str | None]]:
        """Keeps the hint where an error passes between processes."""
        return type(self), (self.message, self.hint)

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n{self.hint}"


class UsageError(PlopError):
    """Wrong arguments, settings or names."""

    exit_code = 2


class DataError(PlopError):
    """Images, masks, lists, weights or checkpoints that are missing or broken."""

    exit_code = 3


class DamagedFileError(DataError):
    """A file is cut off, altered or replaced by something else."""


class RefusedFileError(DamagedFileError):
    """A file needs code to be read, and code from a file is never run; damage can make it look so, too."""


class MachineError(PlopError):
    """The machine lacks what was asked for (a GPU, a compiled package, disk space)."""

    exit_code = 4


class PeerFailedError(PlopError):
    """Another process of the run has failed. Not reported: that process, or whoever started both, says why."""

    def __init__(self, message: str, hint: str | None = None, exit_code: int = 1) -> None:
        super().__init__(message, hint)
        self.exit_code = exit_code


class StoppedError(PlopError):
    """A signal has ended the run. No failure: what is saved, and how to go on, is told.

    Args:
        signal: The signal's number; the exit code is 128 more, as shells have it.
        message: What is saved.
        hint: How to go on.
        agreed: Whether all processes of the run stop here, together.
    """

    def __init__(self, signal: int, message: str, hint: str | None = None, *, agreed: bool = False) -> None:
        super().__init__(message, hint)
        self.signal = signal
        self.exit_code = 128 + signal
        self.agreed = agreed

    def __reduce__(self) -> tuple[type[StoppedError], tuple[int, str, str | None]]:  # type: ignore[override]
        return type(self), (self.signal, self.message, self.hint)


#: What the machine may refuse to do with a file.
_MACHINE_ERRNO = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}
#: What it says of names that no file can have.
_NAME_ERRNO = {errno.ENAMETOOLONG, errno.ELOOP, errno.EILSEQ}
_SHOWN = 100
#: What torch says where it could not allocate.
_NO_MEMORY = ("DefaultCPUAllocator", "not enough memory", "std::bad_alloc", "out of memory", "_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: Exception) -> bool:
    """Whether Python, torch or the system could not allocate what was needed."""
    # torch has an error of its own for GPUs, and torch is not imported here.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if getattr(error, "errno", None) == errno.ENOMEM:
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _NO_MEMORY)


def as_refusal(error: Exception) -> MachineError | None:
    """What the machine says with ``error`` where it refuses open files, processes, threads or shared memory."""
    words = f"{error} {getattr(error, 'filename', None) or ''}"
    number = getattr(error, "errno", None)
    if number in (errno.EMFILE, errno.ENFILE) or "Too many open files" in words:
        return MachineError(
            "Too many files are open for the limit of this shell.",
            "Raise it (ulimit -n 4096), or use fewer loader processes: --set data.workers=N, 0 for none.",
        )
    if "can't start new thread" in words or "Resource temporarily unavailable" in words:
        return MachineError(
            f"The system refuses a further process or thread: {first_line(error)}.",
            "Raise the limit (ulimit -u, docker run --pids-limit), end other programs, or use fewer: --set "
            "data.workers=0 loads images without processes of their own, OMP_NUM_THREADS=1 computes in one thread.",
        )
    signs = ("/dev/shm", "shared memory segment", "shared memory(shm)")
    if any(sign in words for sign in signs) or (isinstance(error, OSError) and _is_of_a_semaphore(error)):
        return MachineError(
            f"Shared memory, through which processes work together, is full or not to be used: {first_line(error)}.",
            "Give the machine or container more of it (docker run --shm-size 1g, --ipc=host), or use one process.",
        )
    return None


def _is_of_a_semaphore(error: OSError) -> bool:
    """Whether a lock between processes could not be made: a file in /dev/shm, which the error does not name."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(
        Path(frame.f_code.co_filename).parts[-2:] == ("multiprocessing", "synchronize.py") for frame, _ in frames
    )


def first_line(error: BaseException) -> str:
    """What an error says, without what follows in further lines and without a full stop."""
    return str(error).strip().partition("\n")[0].rstrip(".")


def as_plop_error(error: Exception) -> PlopError | None:
    """``error`` as one that is reported as a message: ours, or the machine's refusal of a file or of memory.

    None for a bug. What befalls a training is told in more detail: `plopcli.engine.faults`.
    """
    if isinstance(error, PlopError):
        return error
    if is_out_of_memory(error):
        words = first_line(error)
        return MachineError(
            f"Memory ran out{f': {words}' if words else ''}.",
            "End what else takes memory (on a GPU nvidia-smi tells what), or compute where there is more of it: with a "
            "small GPU on the CPU, --gpus 0 or predict --device cpu.",
        )
    if (refused := as_refusal(error)) is not None:
        return refused
    if isinstance(error, OSError) and error.errno in _NAME_ERRNO and error.filename:
        name = str(error.filename)
        shown = name if len(name) <= _SHOWN else f"{name[:_SHOWN]}... ({len(name)} characters)"
        return UsageError(f"{shown!a} names no file: {error.strerror}.", "Give a shorter or another name.")
    if isinstance(error, ValueError) and "null byte" in str(error):
        return UsageError("A path holds a NUL character, which no name of a file can.", "Give another name.")
    if isinstance(error, OSError) and error.errno in _MACHINE_ERRNO:
        where = f"{error.filename}: " if error.filename else ""
        return MachineError(f"{where}{error.strerror}.", "Free space or give access, or choose another folder.")
    return None


def accounted(error: BaseException) -> PlopError:
    """``error`` as what is told of it: as `as_plop_error`, a stop by Ctrl-C, or else a bug of ours."""
    if isinstance(error, KeyboardInterrupt):
        return StoppedError(signal.SIGINT, "Interrupted.")
    known = as_plop_error(error) if isinstance(error, Exception) else None
    if known is None:
        known = PlopError(
            f"This is a bug in plop: {type(error).__name__}: {error}",
            "Please report it with the output of `plop env` and of the same command as `plop --debug ...`.",
        )
        known.is_bug = True
    return known


def did_you_mean(wrong: str, known: Iterable[str]) -> str | None:
    """The hint for a mistyped name, comparing without regard to case; ``None`` when nothing is near.

    >>> did_you_mean("plob", ["plop", "ft"])
    'Did you mean plop?'
    """
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(wrong.lower(), by_lower, n=3, cutoff=0.6)
    if not near:
        return None
    return f"Did you mean {' or '.join(by_lower[name] for name in near)}?"


def unknown_name(kind: str, wrong: str, known: Iterable[str]) -> UsageError:
    """The error for a name that is in no registry: suggests near names, else lists what exists."""
    known = list(known)
    hint = did_you_mean(wrong, known) or f"Known: {', '.join(known)}."
    return UsageError(f"There is no {kind} called '{wrong}'.", hint)
