"""From files to batches of 8-bit pixels and learned labels.

Order depends on (seed, step, epoch) alone and augmentation on (seed, step, epoch, image, source): never on a worker, a
process or where a run was resumed. A pass is one continuous stream over all epochs, so that workers fetch across
epoch borders and a run can start at any iteration.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from plopcli.data import transforms
from plopcli.data.loader_processes import in_processes
from plopcli.data.reading import read_mask, read_pair
from plopcli.data.samples import Sample, StepSplit
from plopcli.errors import DataError, UsageError
from plopcli.settings.sections import DataSettings

#: What a stream of random numbers is for; keeps order and augmentation of different passes apart.
ORDER, AUGMENT, REPLAY = 0, 1, 2
TRAINING, PREPARING, PHASE = 0, 1, 2
_MAX_WORKERS = 8
#: Where a loader process has died, and where one is stuck.
_ADVICE = (
    "Use fewer loader processes, --set data.workers=N (0: none), or fewer images at a time, --set "
    "compute.micro_batch=N.",
    "Where a single image may take longer: --set data.timeout=SECONDS. Loading without such processes: --set "
    "data.workers=0.",
)


class Key(NamedTuple):
    """One image, by its position in its source, of one epoch. Source 0 are the step's own images, 1 exemplars."""

    epoch: int
    image: int
    source: int = 0


@dataclass(frozen=True)
class Replayed:
    """How exemplars take part in the batches of a step.

    Args:
        images: How many there are.
        share: Of each batch, whose images they replace; None: they are shuffled in among the step's own images, each
            once an epoch.
    """

    images: int
    share: float | None

    def positions(self, batch: int) -> list[int]:
        """Positions in a batch that exemplars take, spread over it, so that all processes get their part."""
        share = self.share or 0.0
        return [place for place in range(batch) if int((place + 1) * share + 1e-9) > int(place * share + 1e-9)]


@dataclass(frozen=True)
class BatchSchedule:
    """Which images form which micro-batch.

    Args:
        images: Images of the step itself.
        batch: Images per iteration, over all processes and accumulation.
        micro_batch: Images per process and forward pass.
        seed: Seed of the run.
        step: Step of the scenario.
        purpose: `TRAINING`, `PREPARING` (a method's own pass) or `PHASE` (training of the method's own before the
            step's).
        rank: This process.
        world: Number of processes.
        replayed: Exemplars that take part; None without any.
    """

    images: int
    batch: int
    micro_batch: int
    seed: int
    step: int
    purpose: int = TRAINING
    rank: int = 0
    world: int = 1
    replayed: Replayed | None = None

    def __post_init__(self) -> None:
        assert self.batch % (self.micro_batch * self.world) == 0
        if self.images < self.batch:
            raise UsageError(
                f"Step {self.step} has {self.images} training images, fewer than one batch of {self.batch}.",
                f"Use --batch {self.images} or less.",
            )

    @property
    def _pool(self) -> int:
        """Images that an epoch's order is made of."""
        mixed = self.replayed is not None and self.replayed.share is None
        return self.images + (self.replayed.images if self.replayed is not None and mixed else 0)

    @property
    def iterations_per_epoch(self) -> int:
        """Whole batches in an epoch; the incomplete one is dropped."""
        return self._pool // self.batch

    @property
    def accumulation(self) -> int:
        """Micro-batches of this process per iteration."""
        return self.batch // (self.micro_batch * self.world)

    def order(self, epoch: int) -> npt.NDArray[np.int64]:
        """The permutation of the images in ``epoch``; numbers from ``images`` on are exemplars."""
        return np.random.default_rng((self.seed, self.step, ORDER, self.purpose, epoch)).permutation(self._pool)

    def micro_batches(self, start: int, stop: int) -> Iterator[list[Key]]:
        """Keys of the micro-batches of this process, for iterations ``start`` to ``stop`` (exclusive) of the step."""
        share = self.batch // self.world
        epoch, order = -1, np.empty(0, dtype=np.int64)
        for iteration in range(start, stop):
            if iteration // self.iterations_per_epoch != epoch:
                epoch = iteration // self.iterations_per_epoch
                order = self.order(epoch)
            first = (iteration % self.iterations_per_epoch) * self.batch
            keys = [self._key(epoch, int(place)) for place in order[first : first + self.batch]]
            for place, exemplar in self._replacing(iteration):
                keys[place] = Key(iteration, exemplar, source=1)
            mine = keys[self.rank * share : (self.rank + 1) * share]
            yield from (mine[at : at + self.micro_batch] for at in range(0, share, self.micro_batch))

    def _key(self, epoch: int, place: int) -> Key:
        return Key(epoch, place) if place < self.images else Key(epoch, place - self.images, source=1)

    def _replacing(self, iteration: int) -> Iterator[tuple[int, int]]:
        """Places in the batch of ``iteration`` and the exemplars that they get."""
        if self.replayed is None or not self.replayed.share or not self.replayed.images:
            return iter(())
        places = self.replayed.positions(self.batch)
        rng = np.random.default_rng((self.seed, self.step, REPLAY, self.purpose, iteration))
        again = self.replayed.images < len(places)
        return zip(places, map(int, rng.choice(self.replayed.images, len(places), replace=again)), strict=True)


class Example(NamedTuple):
    """A loaded image.

    Attributes:
        pixels: (H, W, 3), uint8, RGB.
        labels: (H, W), uint8, learned ids, 255 ignored.
        maps: Further maps (H, W), uint8, in the order in which they were asked for.
        name: Of the image.
        source: 0: of the step's own images; 1: an exemplar.
    """

    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]
    maps: tuple[npt.NDArray[np.uint8], ...] = ()
    name: str = ""
    source: int = 0


class LoadedBatch(NamedTuple):
    """Examples on the CPU: pixels (B, H, W, 3), labels (B, H, W), maps (B, H, W), uint8; names; sources (B,), uint8."""

    pixels: Tensor
    labels: Tensor
    maps: tuple[Tensor, ...] = ()
    names: tuple[str, ...] = ()
    sources: Tensor | None = None


#: To be closed (`contextlib.closing`), which ends the loader processes.
Batches = Generator[LoadedBatch]


class Source(NamedTuple):
    """Where images of a step come from.

    Attributes:
        splits: Images, each group with its own table of labels; numbered through from the first to the last.
        maps: Folders of further maps, one NAME.png each for an image called NAME; a method names them.
    """

    splits: tuple[StepSplit, ...]
    maps: Mapping[str, Path] = {}

    def __len__(self) -> int:
        return sum(map(len, self.splits))

    def at(self, image: int) -> tuple[Sample, npt.NDArray[np.uint8]]:
        """An image by its number, and its table of labels."""
        for split in self.splits:
            if image < len(split):
                return split.samples[image], split.table
            image -= len(split)
        raise IndexError(image)


Decoded = tuple[Image.Image, Image.Image, list[Image.Image]]


def _decode(sample: Sample, maps: Mapping[str, Path]) -> Decoded:
    image, mask = read_pair(sample)
    return image, mask, [_read_map(name, folder, sample, image.size) for name, folder in maps.items()]


def _read_map(name: str, folder: Path, sample: Sample, size: tuple[int, int]) -> Image.Image:
    path = folder / f"{sample.name}.png"
    read = read_mask(path)
    if read.size != size:
        raise DataError(
            f"The {name} map {path} has {read.width} x {read.height} pixels, its image {size[0]} x {size[1]}.",
            f"Maps are as large as their images; make that of {sample.name} anew.",
        )
    return read


class TrainingImages:
    """Training samples of a step, decoded once for all epochs if so set.

    Args:
        split: The step's own images.
        settings: How they are read.
        exemplars: Images of earlier steps, by their tables of labels.
        maps: Folders of further maps by name.

    Raises:
        DataError: A file cannot be decoded (here where samples are cached, else when it is needed).
    """

    def __init__(
        self,
        split: StepSplit,
        settings: DataSettings,
        exemplars: Sequence[StepSplit] = (),
        maps: Mapping[str, Path] | None = None,
    ) -> None:
        self.split = split
        self.settings = settings
        self.sources = (Source((split,), maps or {}), Source(tuple(exemplars), maps or {}))
        self._cache: dict[tuple[int, int], Decoded] = {}
        if settings.cache:
            for number, source in enumerate(self.sources):
                for image in range(len(source)):
                    self._cache[number, image] = _decode(source.at(image)[0], source.maps)

    def augmented(self, key: Key, schedule: BatchSchedule) -> Example:
        """The image ``key``, cut, resized to the crop and perhaps flipped, as drawn for it alone."""
        settings, source = self.settings, self.sources[key.source]
        sample, table = source.at(key.image)
        decoded = self._cache.get((key.source, key.image)) or _decode(sample, source.maps)
        # What is drawn for the step's own images does not depend on whether there are exemplars.
        stream = (schedule.seed, schedule.step, AUGMENT, schedule.purpose, key.epoch, key.image)
        rng = np.random.default_rng(stream if key.source == 0 else (*stream, key.source))
        image, mask, maps = decoded
        pixels, ids, *planes = transforms.training_crop(
            image, mask, settings.crop, settings.scale, settings.ratio, settings.flip, rng, maps
        )
        return Example(pixels, _look_up(table, ids), tuple(planes), sample.name, key.source)


class _Stream:
    """Samples by `Key`, and the sampler that yields the keys of iterations ``start`` to ``stop``."""

    def __init__(self, images: TrainingImages, schedule: BatchSchedule, start: int, stop: int) -> None:
        self.images, self.schedule, self.start, self.stop = images, schedule, start, stop

    def __getitem__(self, key: Key) -> Example:
        return self.images.augmented(key, self.schedule)

    def __iter__(self) -> Iterator[list[Key]]:
        return self.schedule.micro_batches(self.start, self.stop)


class EvaluationImages:
    """Samples by index for evaluation: central crops, or whole images.

    Args:
        split: The images.
        settings: How they are read.
        maps: Folders of further maps by name.
    """

    def __init__(self, split: StepSplit, settings: DataSettings, maps: Mapping[str, Path] | None = None) -> None:
        self.split = split
        self.settings = settings
        self.maps = maps or {}

    def __getitem__(self, index: int) -> Example:
        sample = self.split.samples[index]
        image, mask, maps = _decode(sample, self.maps)
        if self.settings.evaluation == "crop":
            pixels, ids, *planes = transforms.central_crop(image, mask, self.settings.crop, maps)
        else:
            pixels, ids, *planes = (np.asarray(one) for one in (image, mask, *maps))
        return Example(pixels, _look_up(self.split.table, ids), tuple(planes), sample.name)


def training_batches(
    images: TrainingImages,
    schedule: BatchSchedule,
    start: int,
    stop: int,
    *,
    pin_memory: bool = False,
    processes: int = 1,
) -> Batches:
    """Micro-batches of iterations ``start`` to ``stop``.

    Args:
        images: The samples of the step.
        schedule: Which of them form which batch.
        start: First iteration.
        stop: Iteration to end before.
        pin_memory: Put batches where a GPU can fetch them by itself.
        processes: Processes on this machine that load at the same time, and share its cores.
    """
    stream = _Stream(images, schedule, start, stop)
    return _loaded(stream.__getitem__, stream, images.settings, processes, pin_memory)


def evaluation_batches(
    images: EvaluationImages,
    batch: int,
    *,
    rank: int = 0,
    world: int = 1,
    pin_memory: bool = False,
    processes: int = 1,
) -> Batches:
    """All images once, in order; process ``rank`` gets the whole batches rank, rank + world, ...

    Whole images come one by one, whatever ``batch``, since their sizes differ.
    """
    size = batch if images.settings.evaluation == "crop" else 1
    batches = [list(range(start, min(start + size, len(images.split)))) for start in range(0, len(images.split), size)]
    return _loaded(images.__getitem__, batches[rank::world], images.settings, processes, pin_memory)


def _loaded(
    load: Callable[[Any], Example],
    batches: Iterable[Sequence[Key]] | Iterable[Sequence[int]],
    settings: DataSettings,
    processes: int,
    pin: bool,
) -> Batches:
    """Batches from loader processes, which end when this generator is closed, or from this process itself."""
    workers = worker_count(settings, processes)
    if workers:
        loaded = in_processes(load, _collate, batches, workers, settings.timeout, _ADVICE)
    else:
        loaded = (_collate([load(key) for key in keys]) for keys in batches)
    with closing(loaded):
        for stacked in loaded:
            *planes, names = stacked
            pixels, labels, sources, *maps = (
                torch.from_numpy(plane).pin_memory() if pin else torch.from_numpy(plane) for plane in planes
            )
            yield LoadedBatch(pixels, labels, tuple(maps), names, sources)


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


def _collate(examples: list[Example]) -> tuple[Any, ...]:
    """Pixels, labels, sources and maps, each stacked, and the names."""
    pixels, labels, maps, names, sources = zip(*examples, strict=True)
    planes = [np.stack(plane) for plane in (pixels, labels)]
    return (*planes, np.array(sources, dtype=np.uint8), *map(np.stack, zip(*maps, strict=True)), names)
