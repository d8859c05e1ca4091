"""From files to batches of 8-bit pixels and learned labels.

Order depends on (seed, step, epoch) alone and augmentation on (seed, step, epoch, image index): never on a worker, a
process or where a run was resumed. A pass is one continuous stream over all epochs, so that workers fetch across
epoch borders and a run can start at any iteration.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from plopcli.data import transforms
from plopcli.data.datasets import Sample
from plopcli.data.loader_processes import in_processes
from plopcli.data.reading import read_image, read_mask
from plopcli.errors import PlopError, UsageError
from plopcli.scenarios.scenario import StepSplit
from plopcli.settings.sections import DataSettings

#: What a stream of random numbers is for; keeps order and augmentation of different passes apart.
ORDER, AUGMENT = 0, 1
TRAINING, PREPARING = 0, 1
_MAX_WORKERS = 8
#: Where a loader process has died, and where one is stuck.
_ADVICE = (
    "Use fewer loader processes, --set data.workers=N (0: none), or fewer images at a time, --set "
    "compute.micro_batch=N.",
    "Where a single image may take longer: --set data.timeout=SECONDS. Loading without such processes: --set "
    "data.workers=0.",
)


class Key(NamedTuple):
    """One image, by its position in the step, of one epoch."""

    epoch: int
    image: int


@dataclass(frozen=True)
class Plan:
    """Which images form which micro-batch.

    Args:
        images: Images of the step.
        batch: Images per iteration, over all processes and accumulation.
        micro_batch: Images per process and forward pass.
        seed: Seed of the run.
        step: Step of the scenario.
        purpose: `TRAINING` or `PREPARING` (a method's own pass).
        rank: This process.
        world: Number of processes.
    """

    images: int
    batch: int
    micro_batch: int
    seed: int
    step: int
    purpose: int = TRAINING
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        assert self.batch % (self.micro_batch * self.world) == 0
        if self.images < self.batch:
            raise UsageError(
                f"Step {self.step} has {self.images} training images, fewer than one batch of {self.batch}.",
                f"Use --batch {self.images} or less.",
            )

    @property
    def iterations_per_epoch(self) -> int:
        """Whole batches in an epoch; the incomplete one is dropped."""
        return self.images // self.batch

    @property
    def accumulation(self) -> int:
        """Micro-batches of this process per iteration."""
        return self.batch // (self.micro_batch * self.world)

    def order(self, epoch: int) -> npt.NDArray[np.int64]:
        """The permutation of the images in ``epoch``."""
        return np.random.default_rng((self.seed, self.step, ORDER, self.purpose, epoch)).permutation(self.images)

    def micro_batches(self, start: int, stop: int) -> Iterator[list[Key]]:
        """Keys of the micro-batches of this process, for iterations ``start`` to ``stop`` (exclusive) of the step."""
        share = self.batch // self.world
        epoch, order = -1, np.empty(0, dtype=np.int64)
        for iteration in range(start, stop):
            if iteration // self.iterations_per_epoch != epoch:
                epoch = iteration // self.iterations_per_epoch
                order = self.order(epoch)
            first = (iteration % self.iterations_per_epoch) * self.batch + self.rank * share
            for micro in range(first, first + share, self.micro_batch):
                yield [Key(epoch, int(index)) for index in order[micro : micro + self.micro_batch]]


Arrays = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]
#: Pixels (B, H, W, 3) and labels (B, H, W). To be closed (`contextlib.closing`), which ends the loader processes.
Batches = Generator[tuple[Tensor, Tensor]]


def _decode(sample: Sample) -> tuple[Image.Image, Image.Image]:
    return read_image(sample.image), read_mask(sample.mask)


class TrainingImages:
    """Training samples of a step, decoded once for all epochs if so set.

    Raises:
        DataError: A file cannot be decoded (here where samples are cached, else when it is needed).
    """

    def __init__(self, split: StepSplit, settings: DataSettings) -> None:
        self.split = split
        self.settings = settings
        self._cache = [_decode(sample) for sample in split.samples] if settings.cache else None

    def augmented(self, key: Key, plan: Plan) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Pixels (crop, crop, 3) and labels (crop, crop), both uint8."""
        settings = self.settings
        pair = self._cache[key.image] if self._cache is not None else _decode(self.split.samples[key.image])
        rng = np.random.default_rng((plan.seed, plan.step, AUGMENT, plan.purpose, *key))
        pixels, ids = transforms.training_crop(*pair, settings.crop, settings.scale, settings.ratio, settings.flip, rng)
        return pixels, _look_up(self.split.table, ids)


class _Stream(Dataset[Arrays | PlopError]):
    """Samples by `Key`, and the sampler that yields the keys of iterations ``start`` to ``stop``."""

    def __init__(self, images: TrainingImages, plan: Plan, start: int, stop: int) -> None:
        self.images, self.plan, self.start, self.stop = images, plan, start, stop

    def __getitem__(self, key: Key) -> Arrays | PlopError:
        try:
            return self.images.augmented(key, self.plan)
        except PlopError as error:
            return error

    def __iter__(self) -> Iterator[list[Key]]:
        return self.plan.micro_batches(self.start, self.stop)


class EvaluationImages(Dataset[Arrays | PlopError]):
    """Samples by index for evaluation: central crops, or whole images."""

    def __init__(self, split: StepSplit, settings: DataSettings) -> None:
        self.split = split
        self.settings = settings

    def __getitem__(self, index: int) -> Arrays | PlopError:
        try:
            return self._cropped(index)
        except PlopError as error:
            return error

    def _cropped(self, index: int) -> Arrays:
        image, mask = _decode(self.split.samples[index])
        if self.settings.evaluation == "crop":
            pixels, ids = transforms.central_crop(image, mask, self.settings.crop)
        else:
            pixels, ids = np.asarray(image), np.asarray(mask)
        return pixels, _look_up(self.split.table, ids)


def training_batches(
    images: TrainingImages, plan: Plan, start: int, stop: int, *, pin_memory: bool = False, processes: int = 1
) -> Batches:
    """Micro-batches of iterations ``start`` to ``stop``: pixels (B, H, W, 3), labels (B, H, W), uint8, on the CPU.

    Args:
        images: The samples of the step.
        plan: Which of them form which batch.
        start: First iteration.
        stop: Iteration to end before.
        pin_memory: Put batches where a GPU can fetch them by itself.
        processes: Processes on this machine that load at the same time, and share its cores.
    """
    stream = _Stream(images, plan, start, stop)
    return _loaded(stream, stream, images.settings, processes, pin_memory)


def evaluation_batches(
    images: EvaluationImages,
    batch: int,
    *,
    rank: int = 0,
    world: int = 1,
    pin_memory: bool = False,
    processes: int = 1,
) -> Batches:
    """All images once, in order, as pixels and labels; process ``rank`` gets the whole batches rank, rank + world, ...

    Whole images come one by one, whatever ``batch``, since their sizes differ.
    """
    size = batch if images.settings.evaluation == "crop" else 1
    batches = [list(range(start, min(start + size, len(images.split)))) for start in range(0, len(images.split), size)]
    return _loaded(images, batches[rank::world], images.settings, processes, pin_memory)


def _loaded(
    images: Dataset[Arrays | PlopError],
    batches: Iterable[Sequence[Key]] | Iterable[Sequence[int]],
    settings: DataSettings,
    processes: int,
    pin: bool,
) -> Batches:
    """Batches from loader processes, which end when this generator is closed, or from this process itself."""
    workers = worker_count(settings, processes)
    load: Callable[[Any], Arrays | PlopError] = images.__getitem__
    if workers:
        loaded = in_processes(load, _collate, batches, workers, settings.timeout, _ADVICE)
    else:
        loaded = (_collate([load(key) for key in keys]) for keys in batches)
    with closing(loaded):
        for arrays in loaded:
            pixels, labels = map(torch.from_numpy, arrays)
            yield (pixels.pin_memory(), labels.pin_memory()) if pin else (pixels, labels)


def worker_count(settings: DataSettings, processes: int = 1) -> int:
    """Loader processes for ``settings`` of each of ``processes`` that share the machine.

    By default together as many as cores, and at most 8 each; none where decoded images are at hand.
    """
    if settings.workers != "auto":
        return settings.workers
    if settings.cache:
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores // processes, _MAX_WORKERS))


def _look_up(table: npt.NDArray[np.uint8], ids: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """``table[ids]``, as one pass over bytes."""
    return np.frombuffer(ids.tobytes().translate(table.tobytes()), dtype=np.uint8).reshape(ids.shape)


def _collate(pairs: list[Arrays | PlopError]) -> Arrays:
    arrays: list[Arrays] = []
    for pair in pairs:
        if isinstance(pair, PlopError):
            raise pair
        arrays.append(pair)
    pixels, labels = zip(*arrays, strict=True)
    return np.stack(pixels), np.stack(labels)
