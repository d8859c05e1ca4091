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

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from plopcli.files.plain import open_plain

#: What file systems without locks answer. There `SoftFileLock` looks for the process by number and start.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
#: Seconds to try: the last holder may have just removed the file.
_TIMEOUT = 0.1
#: Times that the last holder may remove the folder, which it had made, while we make it.
_TRIES = 100
_LARGEST = 1 << 16


class Holder(BaseModel):
    """Who holds a lock.

    Attributes:
        host: Name of the machine.
        boot: Which start of the machine; tells containers of one machine from other machines.
        pid: The process.
        command: Its command line.
        since: When it took the lock, for people.
        job: Number of its SLURM job, if in one.
        restart: How often SLURM has started the job again.
    """

    model_config = ConfigDict(strict=True, frozen=True)

    host: str
    boot: str
    pid: int
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
            command=shlex.join(sys.argv),
            since=time.strftime("%Y-%m-%d %H:%M:%S"),
            job=os.environ.get("SLURM_JOB_ID", ""),
            restart=int(restart) if restart.isdigit() else 0,
        )

    @property
    def is_here(self) -> bool:
        """Whether it runs, or ran, on this machine: perhaps in another container, or before a restart."""
        return self.host == socket.gethostname() or (self.boot != "" and self.boot == _boot())

    @property
    def is_requeued(self) -> bool:
        """Whether it is an earlier start of this very SLURM job, which has ended therefore."""
        this = Holder.this()
        return self.job != "" and self.job == this.job and self.restart < this.restart

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
    if not path.is_file() or (holder is not None and holder.is_here and holder.pid == os.getpid()):
        return None
    try:
        lock = _acquire(path)
    except OSError:
        return None
    if lock is None:
        return holder or _NAMELESS
    lock.release()
    return holder if _is_elsewhere(holder) else None


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


def _take(path: Path) -> tuple[BaseFileLock, Holder | None]:
    """The lock, held and signed by this process, and who has left it behind."""
    for further in reversed(range(_TRIES)):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = _acquire(path)
            break
        except FileNotFoundError:  # the last holder has just removed the folder, which it had made
            if not further:
                raise
    left = _read(path)
    if lock is None:
        raise HeldError(left or _NAMELESS)
    try:
        if left is not None and _is_elsewhere(left):
            raise HeldError(left)
        _sign(path)
    except BaseException:
        lock.release()
        raise
    return lock, left


def _is_elsewhere(holder: Holder | None) -> bool:
    """Whether a lock file is signed by another machine, whose lock this one may not see."""
    return holder is not None and not holder.is_here and not holder.is_requeued


def _acquire(path: Path) -> BaseFileLock | None:
    """The system's lock on a file, which is ours now; None where another process has it."""
    lock: BaseFileLock = FileLock(path, timeout=_TIMEOUT, poll_interval=0.01, mode=0o644, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        return None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        marker = path.with_name(f"{path.name}.pid")
        holder = _read(path)
        if holder is not None and holder.is_requeued:
            marker.unlink(missing_ok=True)
        lock = SoftFileLock(marker, timeout=_TIMEOUT, poll_interval=0.01)
        try:
            lock.acquire()
        except Timeout:
            return None
    return lock


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
        with open_plain(path) as file:
            return Holder.model_validate_json(file.read(_LARGEST))
    except (OSError, ValidationError):
        return None


def _boot() -> str:
    """Which start of this machine it is; empty where the system does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""


#: The holder of a lock that is not signed yet.
_NAMELESS = Holder(
    host=socket.gethostname(), boot=_boot(), pid=0, command="a process that has just started", since="now"
)
