"""One process at a time.

The honest test on one machine is the system's own lock on a file, which ends with the process however that ends:
`filelock` takes it, and gives it up in forked children. The file says as JSON who holds it, for people and for other
machines. Another machine's process cannot be asked whether it lives: its lock is respected until the file is removed by
hand. SLURM alone vouches for the end of a job that it starts again under the same number.
"""

from __future__ import annotations

import errno
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, ValidationError

#: What file systems without locks answer.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
#: Seconds that two who start at once need, at most, to see each other's file where there are no locks.
_SETTLED = 0.3
#: Seconds that whoever has just taken the lock may need to write who it is.
_SIGNED = 1.0
#: Times that the last holder may remove the folder, which it had made, while we make it.
_TRIES = 100
_LARGEST = 1 << 16


class Holder(BaseModel):
    """Who holds a lock.

    Attributes:
        host: Name of the machine.
        boot: Which start of the machine; tells containers of one machine from other machines.
        pid: The process.
        started: When it started, in ticks since the machine did: a later process of the same number differs.
        command: Its command line.
        since: When it took the lock, for people.
        job: Number of its SLURM job, if in one.
        restart: How often SLURM has started the job again.
    """

    model_config = ConfigDict(strict=True, frozen=True)

    host: str
    boot: str
    pid: int = Field(ge=0)
    started: int
    command: str
    since: str
    job: str = ""
    restart: int = 0

    @classmethod
    def this(cls) -> Holder:
        """This process."""
        restart = os.environ.get("SLURM_RESTART_COUNT", "0")
        return cls(
            host=socket.gethostname(),
            boot=_boot(),
            pid=os.getpid(),
            started=_started(os.getpid()) or 0,
            command=shlex.join(sys.argv),
            since=time.strftime("%Y-%m-%d %H:%M:%S"),
            job=os.environ.get("SLURM_JOB_ID", ""),
            restart=int(restart) if restart.isdigit() else 0,
        )

    @property
    def is_here(self) -> bool:
        """Whether it runs, or ran, on this machine."""
        boot = _boot()
        return self.boot == boot if self.boot and boot else self.host == socket.gethostname()

    @property
    def is_this(self) -> bool:
        """Whether it is this very process."""
        return self.is_here and self.pid == os.getpid() and self.started in (0, _started(self.pid))

    def has_ended(self, free: bool | None) -> bool:
        """Whether it is known to have ended.

        Args:
            free: Whether we have the system's lock on the file; None where the file system has none.
        """
        same_name = self.host == socket.gethostname()
        if self.is_here:
            # Another container of this machine counts its processes on its own.
            return bool(free) or (same_name and _process_has_ended(self.pid, self.started))
        if free and same_name and self.boot and _boot():
            return True  # before this machine was started anew
        this = Holder.this()
        return bool(self.job) and self.job == this.job and self.restart < this.restart

    def describe(self) -> str:
        """For people."""
        job = f", SLURM job {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host}{job}, since {self.since}: {self.command}"


class HeldError(Exception):
    """Another process holds the lock."""

    def __init__(self, holder: Holder) -> None:
        super().__init__(holder.describe())
        self.holder = holder


def holder_of(path: Path) -> Holder | None:
    """Who holds a lock at the moment, this process and those that have ended aside; changes nothing."""
    holder = _read(path)
    if not path.is_file() or (holder is not None and holder.is_this):
        return None
    lock = _lock(path)
    try:
        free = _acquire(lock)
    except OSError:
        return None
    lock.release()
    if free is False:
        return holder or _nameless()
    return None if holder is None or holder.has_ended(free) else holder


@contextmanager
def holding(path: Path) -> Iterator[Holder | None]:
    """Holds a lock for this process; gives who left it behind. A folder that is made for it and stays empty is removed.

    Args:
        path: The lock file, which is there as long as the lock is held.

    Raises:
        HeldError: Another process holds it.
        OSError: It cannot be written.
    """
    made = [place for place in (path.parent, *path.parent.parents) if not place.exists()]
    lock = None
    try:
        lock, left = _take(path)
        yield left
    finally:
        if lock is not None:
            with suppress(OSError):
                path.unlink()
            lock.release()
        for place in made:
            with suppress(OSError):  # not empty any more
                place.rmdir()


def _take(path: Path) -> tuple[FileLock, Holder | None]:
    """The lock, held and signed by this process, and who has left it behind."""
    lock = _lock(path)
    for left in reversed(range(_TRIES)):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            free = _acquire(lock)
            break
        except FileNotFoundError:  # the last holder has just removed the folder, which it had made
            if not left:
                raise
    if free is False:
        raise HeldError(_signed(path))
    try:
        before = _read(path)
        if before is not None and not before.has_ended(free):
            raise HeldError(before)
        _sign(path)
        if free is None:
            # Without locks, the last of two who sign at once has it.
            time.sleep(_SETTLED)
            holder = _read(path)
            if holder is not None and not holder.is_this:
                raise HeldError(holder)
    except BaseException:
        lock.release()
        raise
    return lock, before


def _lock(path: Path) -> FileLock:
    # A lock whose last holder has just removed the file is tried again, for a moment.
    return FileLock(path, timeout=0.1, poll_interval=0.01, mode=0o644, fallback_to_soft=False, thread_local=False)


def _acquire(lock: FileLock) -> bool | None:
    """Whether the system's lock is now ours; None where there is none to be had."""
    try:
        lock.acquire()
    except Timeout:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True


def _sign(path: Path) -> None:
    # In place: another file of this name would not be the one that is locked.
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0), 0o644)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(Holder.this().model_dump_json(indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path) -> Holder | None:
    """What a lock file says; None where it says nothing that makes sense."""
    try:
        with path.open("rb") as file:
            return Holder.model_validate_json(file.read(_LARGEST))
    except (OSError, ValidationError):
        return None


def _signed(path: Path) -> Holder:
    """The holder of a lock that may not be signed yet, given a moment."""
    deadline = time.monotonic() + _SIGNED
    while (holder := _read(path)) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return holder or _nameless()


def _nameless() -> Holder:
    return Holder(
        host=socket.gethostname(),
        boot=_boot(),
        pid=0,
        started=0,
        command="a process that has just started",
        since="now",
    )


def _process_has_ended(pid: int, started: int) -> bool:
    """Whether a process of this machine has ended, its number given to nobody or to another process since."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:  # another user's
        return False
    now = _started(pid)
    return now is not None and started not in (0, now)


def _boot() -> str:
    """Which start of this machine it is; empty where the system does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""


def _started(pid: int) -> int | None:
    """When a process started, in ticks since the machine did; None where the system does not tell."""
    try:
        # The name of the program, in parentheses, may hold anything.
        return int(Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None
