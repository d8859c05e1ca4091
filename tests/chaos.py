"""Disturbs runs by faults of all kinds at random, goes on with them, and compares the end with an undisturbed run.

    python tests/chaos.py --minutes 30

A round is a run with one or two processes, with loader processes or without, that meets one to three faults (`KINDS`)
one after the other and is then let alone. No attempt may hang, leave a process behind, call its fault a bug, or lose or
train again a step that was finished; and the end has to be that of the undisturbed run: weights bit by bit, results,
matrices, metrics, events and log. Mounts are made in a name space of this process.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.utils.tensorboard  # imported where it is needed; here once for all runs
from torture import SETTINGS, Ways, differences, start

import plopcli.visualization.curves  # noqa: F401  the same
from plopcli.data.toy import generate_toy

#: Seconds in which an attempt has to end by itself, on a loaded machine too.
DEADLINE = 240.0
#: Seconds without a single image until a loader counts as stuck.
TIMEOUT = 4
#: CLONE_NEWNS, MS_REC | MS_PRIVATE, MS_REMOUNT.
_NEW_MOUNTS, _PRIVATE, _REMOUNT = 0x20000, 0x44000, 0x20


class FoundError(Exception):
    """Something went wrong that must not."""


class Scene:
    """A run that is disturbed.

    Args:
        ways: How it is started.
        run: Its folder.
        chance: Decides about everything.
        alone: Seconds that it takes undisturbed.
    """

    def __init__(self, ways: Ways, run: Path, chance: random.Random, alone: float) -> None:
        self.ways, self.run, self.chance, self.alone = ways, run, chance, alone
        self.workers = chance.choice((0, 2))
        self.pids: list[int] = []
        self.codes: dict[int, int] = {}

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.ways.method}, {self.ways.processes} processes, {self.workers} loaders each"

    def start(self, first: Callable[[], object] = os.getpid, workers: int | None = None) -> None:
        """Starts it, or goes on with it."""
        settings = SETTINGS | {"train.first.epochs": 1, "train.later.epochs": 2, "data.timeout": TIMEOUT}
        settings |= {"data.workers": self.workers if workers is None else workers}
        self.codes = {}
        self.pids = start(self.ways, self.run, settings, first)

    def sleep(self) -> None:
        """Until a random moment of it."""
        self.wait(self.chance.uniform(0, self.alone))

    def wait(self, seconds: float) -> bool:
        """Whether it has ended after ``seconds`` at most."""
        until = time.monotonic() + seconds
        while len(self.codes) < len(self.pids):
            for pid in self.pids:
                if pid not in self.codes and (ended := os.waitpid(pid, os.WNOHANG))[0]:
                    self.codes[pid] = os.waitstatus_to_exitcode(ended[1])
            if time.monotonic() > until:
                break
            time.sleep(0.005)
        return len(self.codes) == len(self.pids)

    def ends(self) -> list[int]:
        """Its exit codes.

        Raises:
            FoundError: It hangs, or leaves processes behind.
        """
        try:
            if not self.wait(DEADLINE):
                raise FoundError(f"still at work after {DEADLINE:.0f} s: {self.members()}")
            until = time.monotonic() + 10
            while left := self.members():
                if time.monotonic() > until:
                    raise FoundError(f"left behind: {left}")
                time.sleep(0.05)
        finally:
            self.kill(self.members())
            self.wait(10)
        return [self.codes[pid] for pid in self.pids]

    def members(self) -> list[int]:
        """Its processes that are alive, loaders included."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                facts = (path / "stat").read_text().rpartition(") ")[2].split()
                if int(facts[3]) in self.pids and facts[0] != "Z":
                    found.append(int(path.name))
        return found

    def loaders(self) -> list[int]:
        """Its loader processes."""
        return [pid for pid in self.members() if pid not in self.pids]

    def kill(self, pids: Sequence[int], number: int = signal.SIGKILL) -> None:
        """Sends a signal to whoever of ``pids`` is there."""
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)


def killed(scene: Scene) -> None:
    """SIGKILL to all, to one of the processes, or to a loader."""
    scene.start()
    scene.sleep()
    victims = [scene.members(), scene.pids[-1:], scene.loaders()[:1]]
    scene.kill(scene.chance.choice([chosen for chosen in victims if chosen] or [[]]))
    scene.ends()


def asked_to_stop(scene: Scene) -> None:
    """A signal that asks to stop, to all or to one."""
    scene.start()
    scene.sleep()
    number = scene.chance.choice((signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP))
    scene.kill(scene.chance.choice((scene.members(), scene.pids)), number)
    scene.ends()


def paused(scene: Scene) -> None:
    """SIGSTOP to a process, SIGCONT after a while."""
    scene.start()
    scene.sleep()
    victim = scene.chance.choice(scene.pids)
    scene.kill([victim], signal.SIGSTOP)
    time.sleep(scene.chance.uniform(0.1, 3))
    scene.kill([victim], signal.SIGCONT)
    _succeeded(scene.ends())


def loader_stopped(scene: Scene) -> None:
    """SIGSTOP to a loader, for good or for a while."""
    scene.start(workers=2)
    until = time.monotonic() + 60
    while not (loaders := scene.loaders()) and time.monotonic() < until and not scene.wait(0.01):
        pass
    scene.wait(scene.chance.uniform(0, 1))
    victims = scene.chance.sample(loaders, min(1, len(loaders)))
    scene.kill(victims, signal.SIGSTOP)
    if scene.chance.random() < 0.5:
        time.sleep(scene.chance.uniform(0.1, 1))
        scene.kill(victims, signal.SIGCONT)
    scene.ends()


def file_too_large(scene: Scene) -> None:
    """The system refuses to write beyond some bytes of any file, as where a quota is used up."""
    limit = int(10 ** scene.chance.uniform(1, 6))
    scene.start(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    scene.ends()


def disk_full(scene: Scene) -> None:
    """The run's own file system is full for a time."""
    with suppress(FileNotFoundError):
        shutil.rmtree(scene.run)  # nothing is moved onto the mount: the run begins there
    scene.run.mkdir()
    _mount(b"tmpfs", scene.run, 0, f"size={scene.chance.randrange(64, 4096)}k".encode())
    try:
        scene.start()
        scene.ends()
        _mount(b"tmpfs", scene.run, _REMOUNT, b"size=256m")
        _undisturbed(scene)
        there = scene.run.with_name(f"{scene.run.name}-disk")
        shutil.copytree(scene.run, there)
    finally:
        _system("umount2", os.fsencode(scene.run), 2)
    scene.run.rmdir()
    there.rename(scene.run)


def few_files(scene: Scene) -> None:
    """Too many files are open: EMFILE."""
    limit = scene.chance.randrange(8, 40)
    scene.start(lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit)))
    scene.ends()


def little_memory(scene: Scene) -> None:
    """The system gives no more memory: ENOMEM."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + int(2 ** scene.chance.uniform(20, 29))
    scene.start(lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)))
    scene.ends()


def disk_fails(scene: Scene) -> None:
    """A flush, a rename or a removal fails with EIO, that one or all from there on."""
    number, forever = scene.chance.randrange(1, 60), scene.chance.random() < 0.5
    place, name = scene.chance.choice(((os, "fsync"), (Path, "replace"), (Path, "unlink")))

    def fail() -> None:
        done, work = [0], getattr(place, name)

        def failing(*arguments: Any, **more: Any) -> Any:
            done[0] += 1
            if done[0] == number or (forever and done[0] > number):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return work(*arguments, **more)

        setattr(place, name, failing)

    scene.start(fail)
    scene.ends()


def image_vanishes(scene: Scene) -> None:
    """An image or mask is away for a time."""
    victim = scene.chance.choice(sorted((scene.ways.data / "toy").rglob("train_*.*")))
    scene.start()
    scene.sleep()
    away = victim.with_suffix(".away")
    victim.rename(away)
    try:
        scene.ends()
    finally:
        away.rename(victim)


def figures_damaged(scene: Scene) -> None:
    """A file that can be made again, of a run that was killed, is cut off, zero, flipped or gone."""
    killed(scene)
    found = [scene.run / "results.json", scene.run / "results.csv", scene.run / "environment.json"]
    found += scene.run.glob("confusion/*.npz")
    found += scene.run.glob("checkpoints/snapshot-*.pt")
    for victim in [path for path in found if path.is_file()]:
        if scene.chance.random() < 0.5:
            continue
        content = bytearray(victim.read_bytes())
        match scene.chance.randrange(4):
            case 0:
                victim.unlink()
                continue
            case 1:
                content = content[: scene.chance.randrange(len(content) + 1)]
            case 2:
                content = bytearray(len(content))
            case _ if content:
                content[scene.chance.randrange(len(content))] ^= 1 << scene.chance.randrange(8)
        victim.write_bytes(content)


def console_closed(scene: Scene) -> None:
    """Whoever reads what the run says goes away; or there is no console at all."""
    reads, writes = os.pipe()
    if scene.chance.random() < 0.5:
        scene.start(lambda: [os.dup2(writes, number) for number in (1, 2)] and os.close(reads))
    else:
        scene.start(lambda: (os.close(1), os.close(2)))
    os.close(writes)
    scene.sleep()
    os.close(reads)
    _succeeded(scene.ends())


def small_shm(scene: Scene) -> None:
    """/dev/shm of a few kilobytes, as in containers."""

    def shrink() -> None:
        _system("unshare", _NEW_MOUNTS)
        _mount(b"tmpfs", Path("/dev/shm"), 0, b"size=16k")

    scene.start(shrink, workers=2)
    _succeeded(scene.ends())


KINDS = (
    killed,
    asked_to_stop,
    paused,
    loader_stopped,
    file_too_large,
    few_files,
    little_memory,
    disk_fails,
    image_vanishes,
    figures_damaged,
    console_closed,
)
#: Those for which file systems have to be mounted.
MOUNTING = (disk_full, small_shm)


def _succeeded(codes: list[int]) -> None:
    if any(codes):
        raise FoundError(f"exit codes {codes} where nothing was to be noticed")


def _undisturbed(scene: Scene) -> None:
    scene.start()
    _succeeded(scene.ends())


def _system(name: str, *arguments: Any) -> None:
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _mount(kind: bytes, place: Path, flags: int, options: bytes) -> None:
    _system("mount", kind, os.fsencode(place), kind, flags, options)


def _may_mount() -> bool:
    """Gives this process mounts of its own, if it may."""
    try:
        _system("unshare", _NEW_MOUNTS)
        _system("mount", None, b"/", None, _PRIVATE, None)
    except OSError:
        return False
    return True


@contextmanager
def nothing_lost(scene: Scene) -> Iterator[None]:
    """Within it no finished step may go or be trained again, and no fault be called a bug.

    Raises:
        FoundError: It is so.
    """
    finished = {path: path.stat().st_mtime_ns for path in scene.run.glob("checkpoints/step-*.pt")}
    said = scene.run.with_name(f"{scene.run.name}.out")
    before = said.stat().st_size if said.exists() else 0
    yield
    for path, at in finished.items():
        if not path.exists() or path.stat().st_mtime_ns != at:
            raise FoundError(f"{path.name} was finished, and is {'other' if path.exists() else 'gone'}")
    words = said.read_bytes()[before:].decode("utf-8", errors="replace") if said.exists() else ""
    for word in ("This is a bug", "Traceback"):
        if word in words:
            raise FoundError(f"it said {word!r}")


class Chaos:
    """Rounds of faults, and their figures."""

    def __init__(self, folder: Path, kinds: Sequence[Callable[[Scene], None]]) -> None:
        self.folder, self.kinds = folder, kinds
        self.data = folder / "data"
        generate_toy(self.data / "toy", train=48, val=8, test=8, size=64)
        self.alone: dict[Ways, tuple[Path, float]] = {}
        self.ends: dict[str, Counter[str]] = {kind.__name__: Counter() for kind in kinds}
        self.longest: dict[str, float] = dict.fromkeys(self.ends, 0.0)
        self.rounds = self.steps = 0

    def undisturbed(self, ways: Ways) -> tuple[Path, float]:
        """The run that nothing disturbs, made once, and the seconds that it takes."""
        if ways not in self.alone:
            run, began = self.folder / f"{ways.method}-{ways.processes}", time.monotonic()
            _undisturbed(Scene(ways, run, random.Random(0), 1.0))
            self.alone[ways] = run, time.monotonic() - began
        return self.alone[ways]

    def round(self, chance: random.Random) -> str | None:
        """Disturbs a run; gives what went wrong, None if nothing did."""
        ways = Ways(self.data, chance.choice(("ft", "plop")), chance.choice((1, 2)), "10-10")
        expected, alone = self.undisturbed(ways)
        run = self.folder / f"round-{self.rounds}"
        self.rounds += 1
        scene = Scene(ways, run, chance, alone)
        met: list[str] = []
        try:
            for kind in chance.choices(self.kinds, k=chance.randrange(1, 4)):
                if kind is disk_full and met:
                    continue
                met.append(kind.__name__)
                began = time.monotonic()
                with nothing_lost(scene):
                    kind(scene)
                self.longest[kind.__name__] = max(self.longest[kind.__name__], time.monotonic() - began)
                self.ends[kind.__name__][" ".join(str(scene.codes[pid]) for pid in scene.pids)] += 1
            self.steps += len(list(run.glob("checkpoints/step-*.pt")))
            with nothing_lost(scene):
                _undisturbed(scene)
            if found := differences(expected, run):
                raise FoundError("; ".join(found))
        except FoundError as error:
            said = run.with_name(f"{run.name}.out").read_text(errors="replace")[-3000:]
            return f"round {self.rounds - 1} ({scene.name}), {', '.join(met)}: {error}\n{said}"
        shutil.rmtree(run)
        return None


def run_all(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=None, help="of the faults; by default another one each time")
    parser.add_argument("--only", nargs="+", default=None, metavar="KIND", help="of the kinds of faults")
    chosen = parser.parse_args(words)
    torch.set_num_threads(1)
    may_mount = _may_mount()
    kinds = [*KINDS, *(MOUNTING if may_mount else ())]
    if not may_mount:
        print("nothing can be mounted here: no full disk, no small /dev/shm")
    kinds = [kind for kind in kinds if chosen.only is None or kind.__name__ in chosen.only]
    seed = random.SystemRandom().randrange(2**32) if chosen.seed is None else chosen.seed
    chance = random.Random(seed)
    folder = Path(tempfile.mkdtemp(prefix="plop-chaos-"))
    if may_mount:  # flushing costs nothing there
        _mount(b"tmpfs", folder, 0, b"size=2g")
    print(f"faults by seed {seed}, in {folder}", flush=True)
    began, failures = time.monotonic(), 0
    chaos = Chaos(folder, kinds)
    while time.monotonic() - began < 60 * chosen.minutes:
        if (found := chaos.round(chance)) is not None:
            failures += 1
            print(found, flush=True)
    for kind, ends in chaos.ends.items():
        codes = ", ".join(f"{count} x {code}" for code, count in ends.most_common())
        print(f"  {kind:16} {ends.total():4}   at most {chaos.longest[kind]:3.0f} s   exit codes {codes or '-'}")
    print(
        f"{chaos.rounds} runs, {sum(ends.total() for ends in chaos.ends.values())} faults, {chaos.steps} finished "
        f"steps at stake, {failures} runs went wrong, {(time.monotonic() - began) / 60:.1f} min",
        flush=True,
    )
    with suppress(OSError):
        _system("umount2", os.fsencode(folder), 2)
    shutil.rmtree(folder)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(run_all())
