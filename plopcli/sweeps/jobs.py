"""Trains the runs of a plan, several at a time, each in a process of its own that can be stopped and resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from plopcli.engine.checks import check_same_settings
from plopcli.errors import DamagedFileError, PlopError, UsageError
from plopcli.resolution.layers import read_settings
from plopcli.runs.folder import RunFolder
from plopcli.sweeps.plan import PlannedRun

#: Seconds that runs get to save where they stand when the comparison is stopped.
PATIENCE = 60.0
_TERMINATED = 143
_POLL = 0.2


@dataclass
class _Job:
    run: PlannedRun
    process: subprocess.Popen[bytes]
    started: float


def is_finished(run: PlannedRun) -> bool:
    """Whether the last step of ``run`` has been measured; what is damaged is to be measured again."""
    try:
        results = RunFolder(run.folder).read_results()
    except DamagedFileError:
        return False
    return results is not None and results.is_finished()


def check_begun(runs: Sequence[PlannedRun]) -> None:
    """Refuses runs that were begun with settings that give other results: one table must not mix them.

    Raises:
        UsageError: Names the run and the differences.
    """
    for run in runs:
        path = RunFolder(run.folder).settings
        if path.is_file():
            try:
                check_same_settings(run.folder, read_settings(path).model_dump(mode="json"), run.resolved.settings)
            except UsageError as error:
                raise UsageError(
                    f"{run.name}: {error.message}",
                    "Give the plan that it was begun with (and the same --set), or another folder; or remove the run.",
                ) from error


def run_all(runs: Sequence[PlannedRun], jobs: int, say: Callable[[str], None]) -> None:
    """Trains the unfinished ones of ``runs``, at most ``jobs`` at a time.

    Each is a `plop run-scenario --resume` of its own, so that one that fails does not affect the others, and all resume
    where they were stopped. Its output goes to ``RUN.log`` beside its folder. A run that takes step 0 over from another
    waits for that. Several jobs on one CPU share its cores. ``say`` is called with each line of progress.

    Raises:
        PlopError: Runs have failed; names them. The others were finished first.
    """
    waiting = [run for run in runs if not is_finished(run)]
    if len(waiting) < len(runs):
        say(f"{len(runs) - len(waiting)} of {len(runs)} runs are finished already")
    running: list[_Job] = []
    failed: list[PlannedRun] = []
    done = len(runs) - len(waiting)
    previous = signal.signal(signal.SIGTERM, _stop)
    try:
        while waiting or running:
            while len(running) < jobs and (ready := _next(waiting)) is not None:
                waiting.remove(ready)
                say(f"{ready.name}: started")
                running.append(_Job(ready, _start(ready, jobs), time.monotonic()))
            if not running:
                # What is left waits for a step 0 whose run has failed.
                failed += waiting
                break
            time.sleep(_POLL)
            for job in [job for job in running if job.process.poll() is not None]:
                running.remove(job)
                done += 1
                say(f"{job.run.name}: {_outcome(job)}   ({done} of {len(runs)})")
                if job.process.returncode != 0:
                    failed.append(job.run)
    finally:
        signal.signal(signal.SIGTERM, previous)
        _end(running)
    if failed:
        raise PlopError(
            f"{len(failed)} of {len(runs)} runs have not finished: {'; '.join(run.name for run in failed)}.",
            f"Why is in {_log(failed[0])} and the like. The same command goes on with what is missing.",
        )


def _next(waiting: Sequence[PlannedRun]) -> PlannedRun | None:
    """The first run that can start: it trains step 0 itself, or the step 0 that it takes over is there."""
    for run in waiting:
        if run.donor is None or RunFolder(run.donor).checkpoint(0).is_file():
            return run
    return None


def _start(run: PlannedRun, jobs: int) -> subprocess.Popen[bytes]:
    # -P: a file random.py in the working folder is no module of the program.
    words = [sys.executable, "-P", "-m", "plopcli", "run-scenario", *run.arguments, "--resume"]
    if run.donor is not None and not RunFolder(run.folder).checkpoint(0).is_file():
        words += ["--init-from", str(run.donor)]
    environment = dict(os.environ)
    if jobs > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    with _log(run).open("ab") as log:
        # In a session of its own: a Ctrl-C reaches it through `_end`, once.
        return subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True)


def _outcome(job: _Job) -> str:
    minutes, seconds = divmod(round(time.monotonic() - job.started), 60)
    if job.process.returncode != 0:
        return f"FAILED with exit code {job.process.returncode}, see {_log(job.run)}"
    results = RunFolder(job.run.folder).read_results()
    miou = results.steps[-1].miou.all if results and results.steps else None
    return f"done in {minutes}:{seconds:02d}" + ("" if miou is None else f", mIoU all {miou:.1f}")


def _log(run: PlannedRun) -> Path:
    return run.folder.with_name(f"{run.folder.name}.log")


def _end(running: Sequence[_Job]) -> None:
    for job in running:
        job.process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + PATIENCE
    for job in running:
        try:
            job.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            job.process.kill()


def _stop(number: int, frame: FrameType | None) -> None:
    raise SystemExit(_TERMINATED)
