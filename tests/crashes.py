"""Rebuilds the disk as a crash after any file operation of a run leaves it, goes on from there, and compares the end.

    python tests/crashes.py --jobs 2

A tiny run is recorded once: after every file operation in its folder it is seen what has changed, and what was flushed.
A second recording is that of its going on after a stop. From these, for every operation, follow

- what a killed process leaves, the last write whole or half done;
- what a power cut leaves: data that were not flushed are gone, zero or torn; names that were not flushed are undone;
  both.

From each of these states ``run-scenario --resume`` has to come by itself to the weights, results, matrices, metrics and
events of the run that was never disturbed, and what was finished has to be there still.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from rich.console import Console
from running import TINY, run_scenario
from torture import differences

from plopcli.data.toy import generate_toy
from plopcli.errors import PlopError
from plopcli.resolution.layers import resolve_settings
from plopcli.runs.checkpoint import save_checkpoint

SETTINGS = TINY | {
    "data.dataset": "toy",
    "data.crop": "32",
    "data.workers": "0",
    "scenario.task": "10-10",
    "method.name": "plop",
    "train.batch": "4",
    "train.first.epochs": "1",
    "train.later.epochs": "2",
    "train.validate_every": "1",
    "output.print_every": "1",
    "output.snapshot_iterations": "1",
    "output.tensorboard": "true",
}
#: Where disks are rebuilt: flushing costs nothing there.
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
#: Files by their path below the folder that is watched; None stands for a folder.
State = Mapping[str, bytes | None]


class Change(NamedTuple):
    """What one file operation did.

    Attributes:
        kind: "write", "name" (a file or folder has it now), "gone", "flush"; "begin" (all so far was there before) or
            "mark" (a file is finished).
        path: Which name, below the watched folder.
        node: Which file or folder.
        content: What a file holds after a write; None for a folder that is named.
        ends: Whether the operation ends with it: a rename takes names and gives one, at once.
    """

    kind: str
    path: str
    node: int
    content: bytes | None = None
    ends: bool = True


class Recorder:
    """Sees what file operations of this process do below a folder.

    Operations announce themselves (`sys.addaudithook`), flushes by a patch of `os.fsync`; before each, whatever has
    changed since the last one is noted. So nothing escapes that is written in C, and several writes of one file in a
    row count as one, which may be torn anywhere.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.changes: list[Change] = []
        self._seen: dict[str, tuple[int, bytes | None]] = {}
        self._nodes: dict[int, int] = {}
        self._new = 0
        self._lock = threading.RLock()
        self._looking = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Records what is done inside."""
        global _active
        flush = os.fsync

        def fsync(handle: int) -> None:
            self.look()
            flush(handle)
            self._flushed(os.fstat(handle).st_ino)

        if not _hooked:
            sys.addaudithook(_announced)
            _hooked.append(True)
        self.look()
        self.changes.append(Change("begin", "", 0))
        _active = self
        try:
            with patch("os.fsync", fsync):
                yield
            self.look()
        finally:
            _active = None

    def mark(self, path: str) -> None:
        """Notes that a file is finished."""
        self.look()
        self.changes.append(Change("mark", path, 0))

    def look(self) -> None:
        """Notes what has changed."""
        with self._lock:
            if self._looking:
                return
            self._looking = True
            try:
                self._compare(dict(self._walk()))
            finally:
                self._looking = False

    def _walk(self) -> Iterator[tuple[str, tuple[int, bytes | None]]]:
        for folder, folders, files in os.walk(self.root):
            place = Path(folder)
            for name in folders:
                yield str((place / name).relative_to(self.root)), ((place / name).stat().st_ino, None)
            for name in files:
                with (place / name).open("rb") as file:
                    yield str((place / name).relative_to(self.root)), (os.fstat(file.fileno()).st_ino, file.read())

    def _compare(self, now: dict[str, tuple[int, bytes | None]]) -> None:
        there = {inode for inode, _ in self._seen.values()}
        renamed = any(inode in there and self._seen.get(path, (0,))[0] != inode for path, (inode, _) in now.items())
        for path, (inode, _) in self._seen.items():
            if path not in now or now[path][0] != inode:
                self.changes.append(Change("gone", path, self._nodes[inode], ends=not renamed))
        for path, (inode, content) in sorted(now.items()):
            before = self._seen.get(path)
            if before is None or before[0] != inode:
                if inode not in there:  # numbers of removed files are given again
                    self._new += 1
                    self._nodes[inode] = self._new
                self.changes.append(Change("name", path, self._nodes[inode], None if content is None else b""))
            earlier = next((held for number, held in self._seen.values() if number == inode), b"")
            if content is not None and content != (earlier if inode in there else b""):
                self.changes.append(Change("write", path, self._nodes[inode], content))
        self._seen = now

    def _flushed(self, inode: int) -> None:
        if inode == self.root.stat().st_ino:
            self.changes.append(Change("flush", "", 0))
        for path, (number, _) in self._seen.items():
            if number == inode:
                self.changes.append(Change("flush", path, self._nodes[inode]))


_active: Recorder | None = None
_hooked: list[bool] = []
_OPERATIONS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link")


def _announced(event: str, arguments: tuple[Any, ...]) -> None:
    recorder = _active
    if recorder is None or event not in _OPERATIONS or recorder._looking:
        return
    if isinstance(arguments[0], (str, os.PathLike)) and os.fspath(arguments[0]).startswith(str(recorder.root)):
        recorder.look()


class Disk:
    """What the recorded changes make of a disk: what processes see, and what would be left without power."""

    def __init__(self) -> None:
        self.names: dict[str, int] = {}
        self.held: dict[int, bytes | None] = {0: None}
        self.flushed, self.flushed_names = dict(self.held), dict(self.names)
        self.kept: list[str] = []

    def apply(self, change: Change) -> None:
        """Does what the operation did."""
        if change.kind == "mark":
            self.kept.append(change.path)
        elif change.kind == "begin":
            self.flushed, self.flushed_names = dict(self.held), dict(self.names)
        elif change.kind == "name":
            self.names[change.path] = change.node
            self.held.setdefault(change.node, change.content)
            self.flushed.setdefault(change.node, change.content)
        elif change.kind == "gone":
            if self.names.get(change.path) == change.node:
                del self.names[change.path]
        elif change.kind == "write":
            self.held[change.node] = change.content
        elif self.held.get(change.node) is None:  # a folder: its names
            inside = {path: node for path, node in self.names.items() if _parent(path) == change.path}
            outside = {path: node for path, node in self.flushed_names.items() if _parent(path) != change.path}
            self.flushed_names = outside | inside
        else:
            self.flushed[change.node] = self.held[change.node]

    def killed(self) -> State:
        """After SIGKILL."""
        return {path: self.held[node] for path, node in self.names.items()}

    def torn(self, last: Change) -> State:
        """After SIGKILL amid the last write."""
        before = self.flushed[last.node] or b""
        content = last.content or b""
        start = len(before) if content.startswith(before) else 0
        return self.killed() | {last.path: content[: start + (len(content) - start) // 2]}

    def without_power(self, data: Callable[[bytes, bytes], bytes], *, names: bool) -> State:
        """After a power cut.

        Args:
            data: What is left of a file, from what was flushed of it and what it held.
            names: Whether names that were not flushed are undone.
        """
        there = dict(sorted((self.flushed_names if names else self.names).items()))
        left: dict[str, bytes | None] = {}
        for path, node in there.items():
            if _parent(path) and _parent(path) not in left:
                continue  # the folder is gone with all it held
            content, flushed = self.held[node], self.flushed[node]
            left[path] = None if content is None else data(flushed or b"", content)
        return left


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _whole(flushed: bytes, content: bytes) -> bytes:
    return content


def _gone(flushed: bytes, content: bytes) -> bytes:
    return flushed


def _zero(flushed: bytes, content: bytes) -> bytes:
    return flushed + bytes(max(0, len(content) - len(flushed)))


def _half(flushed: bytes, content: bytes) -> bytes:
    if not content.startswith(flushed):
        return flushed
    return content[: len(flushed) + (len(content) - len(flushed)) // 2]


class Crash(NamedTuple):
    """A state to go on from.

    Attributes:
        name: Which crash leaves it.
        state: What is on the disk.
        kept: Files that were finished, and have to be there.
    """

    name: str
    state: State
    kept: tuple[str, ...]


def crashes(recording: Sequence[Change], label: str = "") -> Iterator[Crash]:
    """Every state that a crash may leave, each once."""
    disk, seen, begins = Disk(), set[frozenset[tuple[str, int]]](), [change.kind for change in recording].index("begin")
    for number, change in enumerate(recording):
        disk.apply(change)
        if number < begins or not change.ends:
            continue
        states = {"killed": disk.killed()}
        if change.kind == "write":
            states["killed amid a write"] = disk.torn(change)
        states |= {
            f"power cut, unflushed data {kind}{', names undone' * undone}": disk.without_power(data, names=undone)
            for kind, data in (("whole", _whole), ("gone", _gone), ("zero", _zero), ("torn", _half))
            for undone in (False, True)
        }
        for kind, state in states.items():
            if (told := frozenset((path, hash(content)) for path, content in state.items())) not in seen:
                seen.add(told)
                yield Crash(
                    f"{label}{kind} after operation {number} ({change.kind} {change.path})", state, tuple(disk.kept)
                )


def rebuild(state: State, root: Path) -> None:
    """Writes a state into ``root``, which is emptied."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    for path, content in sorted(state.items()):
        if content is None:
            (root / path).mkdir(parents=True)
        else:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(content)


def train(data: Path, run: Path) -> str:
    """A run, or its going on; gives what it said."""
    settings = resolve_settings(
        {}, assignments=[f"{key}={value}" for key, value in SETTINGS.items()] + [f"data.root={data}", f"run={run}"],
        environment={},
    )  # fmt: skip
    said = io.StringIO()
    # Curves take longer than the run, and are drawn again whatever happens.
    with (
        patch("plopcli.engine.scenario_run.draw_run", lambda *_: None),
        patch("plopcli.engine.evaluate.show_step", lambda *_: None),
    ):
        run_scenario(settings, console=Console(file=said, width=500), resume=True)
    return said.getvalue()


def record(data: Path, root: Path) -> list[Change]:
    """What a run in ``root/run`` does to the disk; finished checkpoints are marked."""
    recorder = Recorder(root)

    def saved(path: Path, checkpoint: Any) -> None:
        save_checkpoint(path, checkpoint)
        recorder.mark(str(path.relative_to(root)))

    with recorder.watching(), patch("plopcli.engine.step.save_checkpoint", saved):
        train(data, root / "run")
    return recorder.changes


def failure(crash: Crash, data: Path, undisturbed: Path) -> str | None:
    """What is wrong after going on from ``crash``; None if all is as it should be."""
    with tempfile.TemporaryDirectory(prefix="plop-crash-", dir=MEMORY) as place:
        root = Path(place)
        rebuild(crash.state, root)
        if lost := [path for path in crash.kept if path not in crash.state]:
            return f"{crash.name}: finished and lost: {lost}"
        trained = {path: (root / path).stat().st_mtime_ns for path in crash.kept}
        try:
            said = train(data, root / "run")
        except (Exception, SystemExit) as error:
            hint = f" ({error.hint})" if isinstance(error, PlopError) else ""
            return f"{crash.name}: {type(error).__name__}: {error}{hint}"
        found = differences(undisturbed, root / "run")
        found += [f"{path} was trained again" for path, at in trained.items() if (root / path).stat().st_mtime_ns != at]
        return f"{crash.name}: {'; '.join(found)}\n{said[-300:]}" if found else None


class Prepared(NamedTuple):
    """What is needed to try crashes: the data, the run that was never disturbed, and all crashes."""

    data: Path
    undisturbed: Path
    crashes: list[Crash]


def prepare(folder: Path) -> Prepared:
    """Records both runs."""
    generate_toy(folder / "toy", train=10, val=4, test=4, size=32)
    train(folder, folder / "warm" / "run")  # the class index is made once, and what is imported late is
    (folder / "alone").mkdir()
    first = record(folder, folder / "alone")
    found = list(crashes(first))
    # Going on has operations of its own: from amid the last step, whose last snapshot is damaged.
    stopped = next(c.state for c in reversed(found) if sum("snapshot-1-" in path for path in c.state) == 2)
    newest = max(path for path in stopped if "snapshot-1-" in path)
    stopped = {**stopped, newest: (stopped[newest] or b"")[:1000]}
    rebuild(stopped, folder / "again")
    found += crashes(record(folder, folder / "again"), "going on, ")
    return Prepared(folder, folder / "alone" / "run", found)


def run_all(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--part", type=int, default=1, metavar="N", help="only every N-th state")
    chosen = parser.parse_args(words)
    torch.set_num_threads(1)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="plop-crashes-", dir=MEMORY) as place:
        made = prepare(Path(place))
        tried = made.crashes[:: chosen.part]
        print(f"{len(made.crashes)} states, {len(tried)} of them are gone on from", flush=True)
        failed = 0
        with get_context("fork").Pool(chosen.jobs) as pool:
            look = partial(failure, data=made.data, undisturbed=made.undisturbed)
            for number, found in enumerate(pool.imap_unordered(look, tried), 1):
                failed += found is not None
                if found is not None:
                    print(found, flush=True)
                if number % 100 == 0:
                    print(f"{number} done, {failed} failed   ({time.monotonic() - began:.0f} s)", flush=True)
    print(f"{len(tried)} states, {failed} failed, {time.monotonic() - began:.0f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(run_all())
