"""Batches on their way from the loaders to the device, for training and for a method's own passes."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace

import torch
from torch import Tensor

from plopcli.data.batches import Batch
from plopcli.data.loading import (
    PREPARING,
    Batches,
    BatchSchedule,
    EvaluationImages,
    LoadedBatch,
    TrainingImages,
    evaluation_batches,
    training_batches,
)
from plopcli.data.transforms import normalise
from plopcli.devices.precision import Precision
from plopcli.devices.process import Process
from plopcli.engine.setup import StepSetup
from plopcli.methods.base import StepData
from plopcli.models.layout import is_channels_last
from plopcli.models.segmenter import Outputs
from plopcli.scenarios.scenario import Scenario
from plopcli.settings.sections import RunSettings


def batches(
    images: TrainingImages,
    schedule: BatchSchedule,
    start: int,
    stop: int,
    process: Process,
    *,
    channels_last: bool,
) -> Generator[Batch]:
    """Micro-batches of iterations ``start`` to ``stop`` on the device of this process."""
    pinned = process.device.type == "cuda"
    loaded = training_batches(images, schedule, start, stop, pin_memory=pinned, processes=process.local_world)
    return on_device(loaded, process.device, channels_last=channels_last, maps=tuple(images.sources[0].maps))


def on_device(
    batches: Batches, device: torch.device, *, channels_last: bool, maps: tuple[str, ...] = ()
) -> Generator[Batch]:
    """Loaded batches as the networks take them; ``batches`` is closed with this generator.

    On a GPU a batch is copied and normalised beside the computation of the one before.

    Args:
        batches: From the loaders; pinned, for a GPU.
        device: Where to.
        channels_last: Memory layout of the images.
        maps: Names of the further maps.
    """
    with closing(batches):
        if device.type != "cuda":
            for loaded in batches:
                yield _batch(loaded, device, channels_last, maps)
            return
        stream = torch.cuda.Stream(device)
        for loaded in batches:
            # The host is ahead of the GPU, which is still busy with the batch before.
            with torch.cuda.stream(stream):
                batch = _batch(loaded, device, channels_last, maps)
            current = torch.cuda.current_stream(device)
            current.wait_stream(stream)
            for tensor in (batch.images, batch.labels, *batch.maps.values(), batch.sources):
                if tensor is not None:
                    # Else the allocator, which knows of the copying stream alone, would give the memory away too early.
                    tensor.record_stream(current)
            yield batch


def _batch(loaded: LoadedBatch, device: torch.device, channels_last: bool, maps: tuple[str, ...]) -> Batch:
    def moved(tensor: Tensor) -> Tensor:
        return tensor.to(device, non_blocking=True)

    return Batch(
        normalise(moved(loaded.pixels), channels_last=channels_last),
        moved(loaded.labels).long(),
        {name: moved(plane) for name, plane in zip(maps, loaded.maps, strict=True)},
        None if loaded.sources is None else moved(loaded.sources),
        loaded.names,
    )


def step_data(
    setup: StepSetup, settings: RunSettings, scenario: Scenario, process: Process, precision: Precision
) -> StepData:
    """The images of a step as a method sees them, exemplars aside."""
    channels_last = is_channels_last(setup.model)
    preparing = replace(setup.schedule, purpose=PREPARING, replayed=None)
    model, old_model = setup.model, setup.old_model

    def fresh() -> Iterator[Batch]:
        return batches(setup.images, preparing, 0, preparing.iterations_per_epoch, process, channels_last=channels_last)

    def whole() -> Iterator[Batch]:
        maps = setup.images.sources[0].maps
        crops = settings.data.model_copy(update={"evaluation": "crop"})
        loaded = evaluation_batches(
            EvaluationImages(setup.images.split, crops, maps),
            setup.schedule.micro_batch,
            rank=process.rank,
            world=process.world,
            pin_memory=process.device.type == "cuda",
            processes=process.local_world,
        )
        return on_device(loaded, process.device, channels_last=channels_last, maps=tuple(maps))

    def old_outputs(images: Tensor, features: bool = False) -> Outputs:
        assert old_model is not None, "step 0 has no old model"
        with torch.no_grad(), precision.autocast():
            outputs: Outputs = old_model(images, features=features)
            return outputs

    def new_outputs(images: Tensor, features: bool = False) -> Outputs:
        training = model.training
        with torch.no_grad(), precision.autocast():
            outputs: Outputs = model.eval()(images, features=features)
        model.train(training)
        return outputs

    step = setup.context.step
    return StepData(fresh, whole, lambda: scenario.candidates(step), old_outputs, new_outputs, process.sum)
