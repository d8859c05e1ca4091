"""A few iterations of a run, measured: in memory, with the run's own images, models and method, writing nothing.

The computing is measured on images that are at hand, and the loading on one core by itself. How both go together in a
long run follows from the number of loader processes and cores; measured together, the images that loader processes
have fetched in advance would make any loading look free.
"""

from __future__ import annotations

import io
import math
import os
import resource
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from statistics import median_high
from typing import Any

import torch
from rich.console import Console

from plopcli.data.loading import (
    Batches,
    BatchSchedule,
    EvaluationImages,
    Example,
    Key,
    TrainingImages,
    training_batches,
    worker_count,
)
from plopcli.data.samples import StepSplit
from plopcli.devices.process import Process, evaluation_batch
from plopcli.engine.batches import on_device, step_data
from plopcli.engine.faults import errors_told
from plopcli.engine.run import Run
from plopcli.engine.scenario_run import ScenarioChoices, check_run_scenario
from plopcli.engine.setup import prepare_step
from plopcli.engine.step import finish_step, make_checkpoint
from plopcli.engine.trainer import read_iterations
from plopcli.engine.training import build_trainer
from plopcli.errors import PlopError
from plopcli.evaluation.measure import measure
from plopcli.models.segmenter import Segmenter
from plopcli.resolution.layers import Resolved
from plopcli.runs.checkpoint import Checkpoint
from plopcli.settings.sections import DataSettings

#: Iterations of a method's own pass over the images.
_PASS = 2
#: Images that are loaded to see how long that takes.
_LOADED = 8
_WHOLE_IMAGES = 3


@dataclass(frozen=True)
class Timing:
    """Seconds that the parts of a step take in one process, and bytes that it leaves.

    Args:
        step: The step that was rehearsed.
        building: Both models, and the method's initialisation.
        caching: Decoding an image once and for all, where images are kept in memory.
        loading: Decoding and augmenting an image, on one core.
        starting: The loader processes of a pass.
        iterations: Computing of each measured iteration, batches at hand.
        warming: What the first one takes longer.
        passes: How often the method passes over the step's images on its own.
        passing: Such a pass, for each image of this process.
        phase_epochs: Passes of the method's own training before the step's.
        evaluation_loading: Decoding an evaluation image, on one core.
        evaluating: An evaluation image at hand.
        saving: Turning the checkpoint into bytes.
        checkpoint: Size of the checkpoint.
        snapshot: Size of all that training needs to go on in the middle of the step.
        memory: The most memory of the device that was taken, in bytes; on the CPU, of the whole process.
    """

    step: int
    building: float
    caching: float
    loading: float
    starting: float
    iterations: tuple[float, ...]
    warming: float
    passes: float
    passing: float
    phase_epochs: int
    evaluation_loading: float
    evaluating: float
    saving: float
    checkpoint: int
    snapshot: int
    memory: int


def rehearse(
    resolved: Resolved,
    choices: ScenarioChoices,
    *,
    iterations: int,
    budget: float,
    process: Process,
    console: Console,
) -> list[Timing]:
    """Measures step 0 and, where there is one, step 1, as `run_scenario` would train them.

    Args:
        resolved: The settings.
        choices: As of the run.
        iterations: Iterations to measure in each step, after one to warm up.
        budget: Seconds after which measuring a step ends, once there is one measured iteration.
        process: This process; all of a group call alike.
        console: Where to show progress.
    """
    run, _ = process.main_process_first(lambda: check_run_scenario(resolved, choices, process=process, console=console))
    timings: list[Timing] = []
    previous: Checkpoint | None = None
    with errors_told(resolved.settings):
        for step in range(min(2, run.scenario.steps)):
            with run.log.progress(f"step {step}: a few iterations") as bar:
                rehearsal = _Rehearsal(run, step, previous)
                timing, previous = rehearsal.perform(iterations, budget, bar.update)
            timings.append(timing)
    return timings


class _AtHand(TrainingImages):
    """Training images that were augmented before, in turn; counts the requests."""

    def __init__(self, arrays: Sequence[Example], split: StepSplit, settings: DataSettings) -> None:
        super().__init__(split, settings.model_copy(update={"cache": False}))
        self.settings = settings.model_copy(update={"workers": 0})
        self._arrays = arrays
        self.asked = 0

    def augmented(self, key: Key, schedule: BatchSchedule) -> Example:
        self.asked += 1
        return self._arrays[self.asked % len(self._arrays)]


class _EvaluationAtHand(EvaluationImages):
    """Evaluation images that were decoded before."""

    def __init__(self, split: StepSplit, settings: DataSettings, arrays: Sequence[Example]) -> None:
        super().__init__(split, settings.model_copy(update={"workers": 0}))
        self._arrays = arrays

    def __getitem__(self, index: int) -> Example:
        return self._arrays[index]


class _Rehearsal:
    """One step, up to the iterations that are measured."""

    def __init__(self, run: Run, step: int, previous: Checkpoint | None) -> None:
        self.run, self.step, self.settings = run, step, run.settings
        self.split = run.scenario.training(step)
        start = time.perf_counter()
        self.setup = prepare_step(run.settings, run.scenario, run.process, run.layout, step, previous)
        self.schedule = self.setup.schedule
        self.building = time.perf_counter() - start

    def perform(self, iterations: int, budget: float, show: Any) -> tuple[Timing, Checkpoint]:
        """Measures; also returns the checkpoint from which the next step can be rehearsed."""
        run, device = self.run, self.run.process.device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        caching, loading, at_hand = self._load()
        starting = self._start_loaders(loading)
        few = replace(self.schedule, images=min(self.schedule.images, _PASS * self.schedule.batch))
        short = replace(self.setup, images=at_hand, schedule=few)
        data = step_data(short, run.settings, run.scenario, run.process, run.precision)
        start = time.perf_counter()
        self.setup.method.before_step(data)
        _wait(device)
        passing, passed = time.perf_counter() - start, at_hand.asked

        first, *measured = self._train(at_hand, iterations, budget, show)
        at_hand.asked = 0
        start = time.perf_counter()
        model = finish_step(self.setup, run.process, data, averaged=not run.syncs_norm)
        _wait(device)
        passing, passed = passing + time.perf_counter() - start, passed + at_hand.asked

        memory = _memory_taken(device)
        evaluation_loading, evaluating = self._evaluate(model)
        start = time.perf_counter()
        checkpoint = make_checkpoint(run, self.step, model, self.setup.method, {})
        content = io.BytesIO()
        torch.save({"model": dict(checkpoint.model), "method": dict(checkpoint.method)}, content)
        saving = time.perf_counter() - start
        size = content.getbuffer().nbytes
        momentum = sum(parameter.nbytes for parameter in self.setup.model.parameters() if parameter.requires_grad)
        share = _PASS * self.schedule.batch // self.schedule.world
        timing = Timing(
            step=self.step,
            building=self.building,
            caching=caching,
            loading=loading,
            starting=starting,
            iterations=tuple(measured),
            warming=max(0.0, first - median_high(measured)),
            passes=passed / share,
            passing=passing / max(passed, 1),
            phase_epochs=self.setup.method.phase_epochs,
            evaluation_loading=evaluation_loading,
            evaluating=evaluating,
            saving=saving,
            checkpoint=size,
            snapshot=size + momentum,
            memory=memory,
        )
        return timing, checkpoint

    def _load(self) -> tuple[float, float, _AtHand]:
        """Seconds of caching and of loading an image; some images."""
        chosen = [int(row) for row in self.schedule.order(0)[:_LOADED]]
        some = replace(self.split, samples=tuple(self.split.samples[row] for row in chosen))
        start = time.perf_counter()
        images = TrainingImages(some, self.settings.data, maps=self.setup.method.maps)
        cached = time.perf_counter()
        arrays = [images.augmented(Key(0, position), self.schedule) for position in range(len(chosen))]
        loaded = time.perf_counter()
        at_hand = _AtHand(arrays, some, self.settings.data)
        return (cached - start) / len(chosen), (loaded - cached) / len(chosen), at_hand

    def _start_loaders(self, loading: float) -> float:
        """Seconds until the loader processes give the first batch, beyond the loading itself."""
        processes = self.run.process.local_world
        if worker_count(self.settings.data, processes) == 0:
            return 0.0
        start = time.perf_counter()
        images = TrainingImages(self.split, self.settings.data, maps=self.setup.method.maps)
        pinned = self.run.process.device.type == "cuda"
        with closing(training_batches(images, self.schedule, 0, 1, pin_memory=pinned, processes=processes)) as batches:
            next(batches)
        return max(0.0, time.perf_counter() - start - loading * self.schedule.micro_batch)

    def _train(self, at_hand: _AtHand, iterations: int, budget: float, show: Any) -> list[float]:
        """Seconds of each iteration, the first one to warm up."""
        run = self.run
        trainer = build_trainer(run, self.setup)
        batches = on_device(
            self._endless(at_hand),
            run.process.device,
            channels_last=self.settings.compute.channels_last,
            maps=tuple(self.setup.method.maps),
        )
        seconds: list[float] = []
        begun = last = time.perf_counter()

        for stop in range(1, iterations + 2):
            done = trainer.iterate(list(islice(batches, trainer.accumulation)))
            (row,) = read_iterations([done], run.process)  # waits for the device
            if not all(map(math.isfinite, row["terms"].values())):
                raise PlopError(
                    f"The loss is not finite at the beginning of step {self.step}: {row['terms']}.",
                    "Use a lower learning rate (--lr, --lr-later) or --precision float32, and look at the masks: "
                    "plop prepare.",
                )
            now = time.perf_counter()
            seconds.append(now - last)
            last = now
            show(stop, iterations + 1)
            if run.process.broadcast(stop >= 2 and time.perf_counter() - begun > budget):
                break
        return seconds

    def _endless(self, at_hand: _AtHand) -> Batches:
        while True:
            yield from training_batches(at_hand, self.schedule, 0, 1)

    def _evaluate(self, model: Segmenter) -> tuple[float, float]:
        """Seconds of loading an evaluation image, and of evaluating it."""
        run, data = self.run, self.settings.data
        split = run.scenario.evaluation(self.step, data.results_on)
        batch = evaluation_batch(self.settings.train.batch, self.settings.compute)
        count = min(len(split), batch if data.evaluation == "crop" else _WHOLE_IMAGES)
        some = replace(split, samples=split.samples[:count])
        start = time.perf_counter()
        images = EvaluationImages(some, data)
        arrays = [images[number] for number in range(count)]
        loading = (time.perf_counter() - start) / count
        at_hand = _EvaluationAtHand(some, data, arrays)
        # Every process measures alone: of so few images it would get none.
        alone = Process(run.process.device)
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            measure(model, at_hand, batch, alone, run.precision)
            seconds.append(time.perf_counter() - start)
        return loading, seconds[-1] / count


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _memory_taken(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    unit = 1 if os.uname().sysname == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
