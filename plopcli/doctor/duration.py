"""Estimates how long a run will take, from the timings of a rehearsal."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_high

import torch

from plopcli.console.live import clock
from plopcli.data.loading import worker_count
from plopcli.doctor.rehearsal import Timing
from plopcli.engine.checks import batch_schedule
from plopcli.engine.eta import PHASE_COST
from plopcli.engine.run import Run

#: How far off an estimate may be even where all measured iterations took the same.
_DOUBT = 0.15
#: Seconds that a panel of an overlay takes beside the prediction, and the curves altogether.
_PANEL, _CURVES = 0.2, 3.0


@dataclass(frozen=True)
class StepDuration:
    """Expected seconds of a step.

    Args:
        step: Its number.
        iterations: Number of iterations.
        iteration: Seconds of each iteration.
        training: All iterations, and the validation in between.
        evaluation: Measuring it afterwards.
        around: Models, loaders, the method's own passes, checkpoint.
    """

    step: int
    iterations: int
    iteration: float
    training: float
    evaluation: float
    around: float

    @property
    def total(self) -> float:
        """The sum of all parts."""
        return self.training + self.evaluation + self.around


@dataclass(frozen=True)
class Duration:
    """Expected seconds of a run.

    Args:
        steps: Steps that are still to be trained.
        around: Before the first and after the last.
        low: If all iterations take as long as the fastest measured one.
        high: The same of the slowest.
    """

    steps: tuple[StepDuration, ...]
    around: float
    low: float
    high: float

    @property
    def total(self) -> float:
        """The expected time."""
        return sum(step.total for step in self.steps) + self.around

    def describe(self) -> str:
        """For people."""
        return f"about {clock(self.total)} (between {clock(self.low)} and {clock(self.high)})"


def expected_duration(run: Run, timings: Sequence[Timing], steps: Sequence[int], starting: float) -> Duration:
    """The time that ``steps`` of ``run`` will take; later steps than the measured ones count as the last of those.

    Args:
        run: The run.
        timings: Of step 0 and, where there is one, step 1.
        steps: Steps that are still to be trained.
        starting: Seconds until a run begins to train.
    """
    durations, ratios = [], []
    for step in steps:
        timing = timings[min(step, len(timings) - 1)]
        durations.append(_step(run, step, timing))
        typical = median_high(timing.iterations)
        ratios.append((min(timing.iterations) / typical, max(timing.iterations) / typical))
    around = starting
    if steps:
        output, last = run.settings.output, timings[-1]
        panel = last.evaluation_loading + last.evaluating + _PANEL
        around += _CURVES + output.overlays * panel
    training = [duration.training for duration in durations]
    total = sum(duration.total for duration in durations) + around
    fast = sum(seconds * (1 - low) for seconds, (low, _) in zip(training, ratios, strict=True))
    slow = sum(seconds * (high - 1) for seconds, (_, high) in zip(training, ratios, strict=True))
    return Duration(tuple(durations), around, (total - fast) * (1 - _DOUBT), (total + slow) * (1 + _DOUBT))


def _step(run: Run, step: int, timing: Timing) -> StepDuration:
    settings, world = run.settings, run.process.world
    plan = batch_schedule(settings, run.scenario, run.layout, step)
    recipe = settings.train.recipe(step)
    iterations = recipe.epochs * plan.iterations_per_epoch
    share = plan.batch // world
    iteration = _together(run, median_high(timing.iterations), share * timing.loading)
    images = len(run.scenario.evaluation(step, settings.data.results_on))
    evaluation = timing.starting + _evaluated(run, timing, images)
    every = settings.train.validate_every
    validations = (recipe.epochs - 1) // every if every else 0
    if validations:
        seen = len(run.scenario.evaluation(step, "val"))
        evaluation += validations * (timing.starting + _evaluated(run, timing, seen))
    passed = timing.passes * plan.images / world
    # A snapshot at every end of an epoch, but for no more than a tenth of the time.
    snapshots = min(recipe.epochs * timing.saving * timing.snapshot / timing.checkpoint, 0.1 * iterations * iteration)
    around = (
        timing.building
        + snapshots
        + timing.caching * plan.images
        + timing.starting * (1 + timing.passes)
        + _together(run, passed * timing.passing, passed * timing.loading)
        + timing.phase_epochs * plan.iterations_per_epoch * PHASE_COST * iteration
        + timing.warming
        + timing.saving
    )
    return StepDuration(step, iterations, iteration, iterations * iteration, evaluation, around)


def _evaluated(run: Run, timing: Timing, images: int) -> float:
    own = images / run.process.world
    return _together(run, own * timing.evaluating, own * timing.evaluation_loading)


def _together(run: Run, computing: float, loading: float) -> float:
    """Seconds of computing and loading side by side: limited by computing, loader processes or cores."""
    processes = run.process.local_world
    workers = worker_count(run.settings.data, processes)
    if workers == 0:
        return computing + loading
    threads = torch.get_num_threads() if run.process.device.type == "cpu" else 1
    cores = cores_here()
    busy = min(threads * processes, cores) * computing + processes * loading
    return max(computing, loading / workers, busy / cores)


def cores_here() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
