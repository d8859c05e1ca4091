"""What the sections of `python -m benchmarks.gpu` share: limits of time, findings in a file, timing."""

from __future__ import annotations

import json
import signal
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import torch

from benchmarks.report import Figures, save
from benchmarks.workload import TINY_NETWORK, Training, Workload, compute_of
from plopcli.devices.process import Process
from plopcli.settings.sections import ModelSettings


class OutOfTimeError(BaseException):
    """The time of a section or of a case is over. No Exception, so that no library swallows it."""


@contextmanager
def limit(seconds: float) -> Iterator[None]:
    """Raises `OutOfTimeError` after so many seconds, or when the time of an outer limit is over."""

    def ring(_signal: int, _frame: FrameType | None) -> None:
        raise OutOfTimeError

    began = time.monotonic()
    before = signal.signal(signal.SIGALRM, ring)
    outer, _ = signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01))
    if outer and outer < seconds:
        signal.setitimer(signal.ITIMER_REAL, outer)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, before)
        left = max(outer - (time.monotonic() - began), 0.01) if outer else 0.0
        signal.setitimer(signal.ITIMER_REAL, left)


@dataclass
class Session:
    """What the sections share, and what they have found."""

    process: Process
    tiny: bool
    folder: Path
    tag: str | None
    deadline: float
    figures: Figures = field(default_factory=dict)
    #: The fastest training of PLOP so far, and its images per second.
    best: Training | None = None
    best_speed: float = 0.0
    #: The build of inplace-abn, once it has begun.
    build: subprocess.Popen[bytes] | None = None

    @property
    def device(self) -> torch.device:
        return self.process.device

    @property
    def left(self) -> float:
        return self.deadline - time.monotonic()

    @property
    def network(self) -> ModelSettings:
        return TINY_NETWORK if self.tiny else ModelSettings(pretrained=False)

    def workload(self, method: str = "plop", **traits: object) -> Workload:
        """24 images of 512 pixels; a toy where the run is tiny."""
        images, crop = (4, 64) if self.tiny else (24, 512)
        return Workload(method, self.network, compute_of(self.device.type, **traits), images, crop)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def write(self) -> None:
        save("gpu", self.figures, self.folder, self.tag)

    def note(self, name: str, value: object, *, group: str | None = None) -> None:
        """Keeps a finding, in the file too, and tells it."""
        place = self.figures if group is None else self.figures.setdefault(group, {})
        place[name] = value
        self.write()
        text = json.dumps(value, default=str)
        print(f"{name}: {text if len(text) < 1500 else text[:1500] + ' ...'}", flush=True)


@contextmanager
def guarded(session: Session, name: str, seconds: float, group: str | None = None) -> Iterator[None]:
    """A part whose failure, or end of time, is a finding, called ``name``."""
    began = time.monotonic()
    try:
        with limit(min(seconds, max(session.left, 0.01))):
            yield
    except OutOfTimeError:
        session.note(name, {"failed": f"stopped after {time.monotonic() - began:.0f} s"}, group=group)
    except Exception as error:
        lines = traceback.format_exc().splitlines()
        told = {"failed": f"{type(error).__name__}: {error}"[:2000], "traceback": lines[-12:]}
        session.note(name, told, group=group)


def timed(session: Session, call: Callable[[], object], windows: int, iterations: int) -> list[float]:
    """Seconds of an iteration in every window; the host waits for the device at the ends of windows only."""
    seconds = []
    session.wait()
    for _ in range(windows):
        start = time.perf_counter()
        for _ in range(iterations):
            call()
        session.wait()
        seconds.append((time.perf_counter() - start) / iterations)
    return seconds
