"""The images of a step on their way to the networks, for training and for a method's own pass."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from plopcli.data.loading import PREPARING, Plan, TrainingImages, training_batches
from plopcli.engine.run import Run
from plopcli.engine.transfer import on_device
from plopcli.methods.base import Batch, StepPass
from plopcli.models.segmenter import Outputs, Segmenter


def batches(run: Run, images: TrainingImages, plan: Plan, start: int, stop: int) -> Generator[Batch]:
    """Micro-batches of iterations ``start`` to ``stop`` on the device of this process; to be closed."""
    loaded = training_batches(
        images, plan, start, stop, pin_memory=run.process.device.type == "cuda", processes=run.process.local_world
    )
    return on_device(loaded, run.process.device, channels_last=run.settings.compute.channels_last)


def step_pass(run: Run, images: TrainingImages, plan: Plan, model: Segmenter, old_model: Segmenter | None) -> StepPass:
    """A method's own pass over the images of a step."""
    preparing = replace(plan, purpose=PREPARING)

    def fresh() -> Iterator[Batch]:
        return batches(run, images, preparing, 0, preparing.iterations_per_epoch)

    def old_outputs(pictures: Tensor) -> Outputs:
        assert old_model is not None, "step 0 has no old model"
        with torch.no_grad(), run.precision.autocast():
            outputs: Outputs = old_model(pictures)
            return outputs

    def new_outputs(pictures: Tensor) -> Outputs:
        training = model.training
        with torch.no_grad(), run.precision.autocast():
            outputs: Outputs = model.eval()(pictures, features=True)
        model.train(training)
        return outputs

    return StepPass(fresh, old_outputs, run.process.sum, new_outputs)
