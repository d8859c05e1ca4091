"""One run in a folder at a time.

A run holds ``RUN/run.lock`` while it works. The file says who it is, for people and for other machines; on one machine
the honest test is the system's own lock on it (`flock`), which ends with the process however that ends. So a run that
was killed can be gone on with at once, and the next one only says that it took over.

Another machine's process cannot be asked whether it lives. Its lock is respected until the file is removed by hand;
SLURM alone vouches for the end of a job that it starts again under the same number.
"""

from __future__ import annotations

import errno
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from plopcli.errors import UsageError
from plopcli.runs.folder import LOCK, cannot_write

if sys.platform != "win32":
    import fcntl

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
#: Seconds that two who start at once need, at most, to see each other's file where there is no flock.
_SETTLED = 0.3
#: Seconds that whoever has just taken the lock may need to write who it is.
_SIGNED = 1.0


@dataclass(frozen=True)
class Holder:
    """Who holds a run folder.

    Args:
        host: Name of the machine.
        boot: Which start of the machine; tells containers of one machine from other machines.
        pid: The process.
        started: When it started, in ticks since the machine did: a later process of the same number differs.
        command: Its command line.
        since: When it took the folder, for people.
        job: Number of its SLURM job, if in one.
        restart: How often SLURM has started the job again.
    """

    host: str
    boot: str
    pid: int
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

    def describe(self) -> str:
        """For people."""
        job = f", SLURM job {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host}{job}, since {self.since}: {self.command}"


def holder_of(folder: Path) -> Holder | None:
    """Who holds ``folder`` at the moment, this process and those that have ended aside; changes nothing."""
    path = folder / LOCK
    try:
        handle = os.open(path, os.O_RDWR)
    except OSError:
        return None
    try:
        holder = _read(handle)
        if holder is not None and holder.is_this:
            return None
        free = _try_flock(handle)
        if free is False:
            return holder or _nameless()
        return None if holder is None or _is_over(holder, free) else holder
    finally:
        os.close(handle)


def refuse_if_held(folder: Path) -> None:
    """Refuses a folder that another run holds, before anything is computed; changes nothing.

    Raises:
        UsageError: Names the other run and the ways out.
    """
    if (holder := holder_of(folder)) is not None:
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
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    handle: int | None = None
    try:
        handle, left = _take(folder)
        _held.add(handle)
        if left is not None:
            say(f"The lock of a run that has ended is taken over: {left.describe()}")
        yield
    finally:
        if handle is not None:
            _let_go(folder / LOCK, handle)
        for place in made:
            with suppress(OSError):  # not empty any more
                place.rmdir()


def _take(folder: Path) -> tuple[int, Holder | None]:
    """The open lock file, held by this process, and who has left it behind."""
    path = folder / LOCK
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0), 0o644)
        except FileNotFoundError:  # the last holder has just removed the folder, which it had made
            continue
        except OSError as error:
            raise cannot_write(folder, error) from error
        try:
            before = _read(handle)
            free = _try_flock(handle)
            if free is False:
                raise _in_use(folder, before or _signed(handle))
            if not _same_file(path, handle):  # its last holder has just removed it
                os.close(handle)
                continue
            before = _read(handle)
            if before is not None and not _is_over(before, free):
                raise _in_use(folder, before)
            _sign(handle, path)
            if free is None:
                _settle(handle, folder)
        except BaseException:
            with suppress(OSError):
                os.close(handle)
            raise
        return handle, before


def _is_over(holder: Holder, free: bool | None) -> bool:
    """Whether whoever signed a lock file is known to have ended.

    Args:
        holder: Who signed it.
        free: Whether we have the system's lock on it; None where the file system has none.
    """
    same_name = holder.host == socket.gethostname()
    if holder.is_here:
        # Another container of this machine counts its processes on its own.
        return bool(free) or (same_name and _has_ended(holder.pid, holder.started))
    if free and same_name and holder.boot and _boot():
        return True  # before this machine was started anew
    this = Holder.this()
    return bool(holder.job) and holder.job == this.job and holder.restart < this.restart


def _has_ended(pid: int, started: int) -> bool:
    """Whether a process of this machine has ended, its number given to nobody or to another process since."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:  # another user's
        return False
    now = _started(pid)
    return now is not None and started not in (0, now)


def _sign(handle: int, path: Path) -> None:
    content = (json.dumps(asdict(Holder.this()), indent=2) + "\n").encode()
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, content, 0)
        os.fsync(handle)
    except OSError as error:
        raise cannot_write(path.parent, error) from error


def _settle(handle: int, folder: Path) -> None:
    """Where the file system has no locks, the last of two who signed at once has the folder."""
    time.sleep(_SETTLED)
    holder = _read(handle)
    if holder is not None and not holder.is_this:
        raise _in_use(folder, holder)


def _let_go(path: Path, handle: int) -> None:
    with suppress(OSError):
        if _same_file(path, handle):
            path.unlink()
    with suppress(OSError):
        os.close(handle)
    _held.discard(handle)


def _try_flock(handle: int) -> bool | None:
    """Whether the system's lock is now ours; None where there is none to be had."""
    if sys.platform == "win32":
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True


def _same_file(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False


def _read(handle: int) -> Holder | None:
    """What a lock file says; None where it says nothing that makes sense."""
    try:
        content = json.loads(os.pread(handle, 1 << 16, 0))
        given = {field.name: content[field.name] for field in fields(Holder)}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    texts = ("host", "boot", "command", "since", "job")
    whole = all(isinstance(value, str if name in texts else int) for name, value in given.items())
    return Holder(**given) if whole and given["pid"] > 0 else None


def _signed(handle: int) -> Holder:
    """The holder of a lock that is not signed yet, given a moment."""
    deadline = time.monotonic() + _SIGNED
    while time.monotonic() < deadline:
        if (holder := _read(handle)) is not None:
            return holder
        time.sleep(0.05)
    return _nameless()


def _nameless() -> Holder:
    return Holder(socket.gethostname(), _boot(), 0, 0, "a run that has just started", "now")


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


#: Open lock files of this process.
_held: set[int] = set()


def _close_in_child() -> None:
    """Keeps forked loader processes, which may outlive a killed run by seconds, from holding its lock."""
    for handle in _held:
        with suppress(OSError):
            os.close(handle)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
