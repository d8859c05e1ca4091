"""The training of a step, from its first iteration or from a snapshot to its last."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from typing import NamedTuple

import torch

from plopcli.data.batches import Batch
from plopcli.devices.signals import deferred_for, signals_deferred
from plopcli.engine.batches import batches
from plopcli.engine.compute_options import set_compute_options
from plopcli.engine.evaluate import validate
from plopcli.engine.faults import errors_told
from plopcli.engine.metrics_log import MetricsLog
from plopcli.engine.optim import build_optimizer, build_schedule, prepare_training
from plopcli.engine.profiling import WARM_UP, profiled
from plopcli.engine.run import Run
from plopcli.engine.setup import StepSetup
from plopcli.engine.snapshots import SnapshotKeeper, restore
from plopcli.engine.trainer import Trainer
from plopcli.models.layout import is_channels_last
from plopcli.runs.snapshot import Snapshot
from plopcli.settings.sections import StepRecipe

#: Seconds that a process which is asked to stop waits for images: the others need its share of the iteration to agree
#: on where to stop. One alone stops at once.
_GRACE = 10.0


class Trained(NamedTuple):
    """What training a step took.

    Attributes:
        seconds: Time, that before interruptions included.
        skipped: Iterations that fp16 made skip.
    """

    seconds: float
    skipped: int


def train_epochs(run: Run, setup: StepSetup, snapshot: Snapshot | None) -> Trained:
    """Trains a step, epoch by epoch.

    Raises:
        StoppedError: A signal asked to stop; the state is saved.
        PlopError: Training diverged, or a file could not be read.
    """
    schedule = setup.schedule
    recipe = run.settings.train.recipe(schedule.step)
    trainer = build_trainer(run, setup)
    total = recipe.epochs * schedule.iterations_per_epoch
    start = 0 if snapshot is None else snapshot.iteration
    trace = run.folder.profile / f"step-{schedule.step}-process-{run.process.rank}"
    channels_last = is_channels_last(setup.model)
    with (
        closing(batches(setup.images, schedule, start, total, run.process, channels_last=channels_last)) as stream,
        run.log.progress(f"step {schedule.step}: train") as bar,
        profiled(trace, _profiled_iterations(run, total - start), run.process.device) as tick,
    ):

        def show(done: int, note: str) -> None:
            bar.update(done, total, note)

        recorder = MetricsLog(run, schedule, recipe, show)
        if snapshot is not None:
            restore(run, trainer, recorder, snapshot)
        keeper = SnapshotKeeper(
            run, schedule.step, trainer, recorder, total, 0.0 if snapshot is None else snapshot.seconds
        )
        for epoch in range(start // schedule.iterations_per_epoch, recipe.epochs + 1):
            end = epoch * schedule.iterations_per_epoch
            with signals_deferred(), errors_told(run.settings), keeper.saved_on_failure():
                _train_epoch(trainer, stream, end, recorder, keeper, tick)
            if _validates(run, epoch, recipe) and trainer.iteration == end:
                validate(run, schedule.step, epoch, end, setup.model)
    return Trained(keeper.seconds, recorder.skipped)


def _train_epoch(
    trainer: Trainer,
    batches: Iterator[Batch],
    end: int,
    recorder: MetricsLog,
    keeper: SnapshotKeeper,
    tick: Callable[[], None],
) -> None:
    """Trains up to iteration ``end``: loads, steps, records, and saves where it is time.

    Raises:
        StoppedError: A signal asked to stop; the state is saved.
        PlopError: Training diverged, or a file could not be read.
    """
    recorder.start_clock()
    while trainer.iteration < end:
        began = time.perf_counter()
        with deferred_for(_GRACE if trainer.process.world > 1 else 0.0):
            micro_batches = list(islice(batches, trainer.accumulation))
        waited = time.perf_counter() - began
        with keeper.iteration():
            done = trainer.iterate(micro_batches)
            done.waited = waited
            tick()
            recorder.add(done)
            pausing = keeper.should_pause()
            if pausing or trainer.iteration == end:
                recorder.flush()
        if pausing or trainer.iteration == end:
            keeper.save_if_due(epoch_ends=trainer.iteration == end)
            recorder.start_clock()


def build_trainer(run: Run, setup: StepSetup) -> Trainer:
    """The training core for a step of ``run``; sets what of the network is trained, and how it computes."""
    compute, schedule, method = run.settings.compute, setup.schedule, setup.method
    recipe = run.settings.train.recipe(schedule.step)
    prepare_training(setup.model, method, recipe)
    set_compute_options(run, setup.model)
    if compute.compile != "off":
        torch.compiler.reset()  # what earlier steps have compiled counts against a limit, beyond which nothing is
    optimizer = build_optimizer(setup.model, method, recipe)
    return Trainer(
        setup.model,
        setup.old_model,
        method,
        optimizer,
        build_schedule(optimizer, recipe, schedule.iterations_per_epoch),
        run.precision.fresh(),
        run.process,
        schedule.accumulation,
        epoch=schedule.iterations_per_epoch,
        total=recipe.epochs * schedule.iterations_per_epoch,
        compiler=None if compute.compile == "off" else compute.compile,
        tolerance=run.settings.train.skip_non_finite,
    )


def _validates(run: Run, epoch: int, recipe: StepRecipe) -> bool:
    every = run.settings.train.validate_every
    return every > 0 and 0 < epoch < recipe.epochs and epoch % every == 0


def _profiled_iterations(run: Run, left: int) -> int:
    asked = run.settings.output.profile
    possible = min(asked, max(0, left - WARM_UP))
    if asked > possible:
        run.log.say(f"  only {possible} of {left} iterations can be profiled: {WARM_UP} go to warm up")
    return possible
