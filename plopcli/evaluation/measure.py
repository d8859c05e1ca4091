"""Confusion matrices of models, in training and in evaluation."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from plopcli.data.datasets import Sample
from plopcli.data.loading import EvaluationImages, evaluation_batches
from plopcli.data.samples import StepSplit
from plopcli.data.transforms import normalise
from plopcli.devices.precision import Precision
from plopcli.devices.process import Process, fixed_sizes
from plopcli.evaluation.augmentation import PLAIN, Augmentation, probabilities
from plopcli.metrics.segmentation import ConfusionMatrix, Matrix
from plopcli.models.segmenter import Segmenter
from plopcli.settings.sections import DataSettings

Progress = Callable[[int, int], None]
Keep = Callable[[Sample, npt.NDArray[np.uint8]], None]
"""Called with an image and the learned ids (H, W) that were measured on it."""


def measure(
    model: Segmenter,
    images: EvaluationImages,
    batch: int,
    process: Process,
    precision: Precision,
    progress: Progress | None = None,
    augmentation: Augmentation = PLAIN,
    keep: Keep | None = None,
) -> Matrix:
    """Confusion matrix of ``model`` over ``images``, every image counted once, summed over processes.

    Leaves the model in eval mode.

    Args:
        model: The network, on the process's device.
        images: Evaluation images.
        batch: Images per forward pass (1 where whole images are evaluated).
        process: This process; whole batches are dealt out to the ranks in turn.
        precision: As in training.
        progress: Called with (batches done, batches).
        augmentation: Test-time augmentation.
        keep: Called with each image and its predicted ids.
    """
    model.eval()
    confusion = ConfusionMatrix(sum(model.class_counts), process.device)
    channels_last = next(model.parameters()).is_contiguous(memory_format=torch.channels_last)
    size = batch if images.settings.evaluation == "crop" else 1
    total = len(range(process.rank, -(-len(images.split) // size), process.world))
    with torch.no_grad(), fixed_sizes(images.settings.evaluation == "crop"), ExitStack() as stack:
        batches = evaluation_batches(
            images,
            batch,
            rank=process.rank,
            world=process.world,
            pin_memory=process.device.type == "cuda",
            processes=process.local_world,
        )
        stack.enter_context(closing(batches))
        for done, loaded in enumerate(batches, start=1):
            pictures = normalise(loaded.pixels.to(process.device, non_blocking=True), channels_last=channels_last)
            predicted = _labels(model, pictures, precision, augmentation)
            confusion.update(loaded.labels.to(process.device, non_blocking=True), predicted)
            if keep is not None:
                first = (process.rank + (done - 1) * process.world) * size
                samples = images.split.samples[first : first + size]
                for sample, ids in zip(samples, predicted.to(torch.uint8).cpu().numpy(), strict=True):
                    keep(sample, ids)
            if progress is not None:
                progress(done, total)
    process.sum(confusion.counts)
    return confusion.numpy()


def _labels(model: Segmenter, pictures: Tensor, precision: Precision, augmentation: Augmentation) -> Tensor:
    """Learned ids (B, H, W) of normalised images."""
    with precision.autocast():
        if augmentation.is_plain:
            return model.plan.labels(model(pictures).scores)
        looks = probabilities(lambda images: model(images).small_scores, model.plan, pictures, augmentation)
        return model.plan.decide(looks)


def measure_split(
    model: Segmenter,
    split: StepSplit,
    settings: DataSettings,
    batch: int,
    process: Process,
    precision: Precision,
    progress: Progress | None = None,
    augmentation: Augmentation = PLAIN,
    keep: Keep | None = None,
) -> tuple[Matrix, dict[str, Matrix] | None]:
    """`measure` of a split: over all of it, and for each of its domains where it has any."""
    by_domain = {
        domain: measure(
            model, EvaluationImages(images, settings), batch, process, precision, progress, augmentation, keep
        )
        for domain, images in split.by_domain().items()
    }
    total: Matrix = np.sum(list(by_domain.values()), axis=0)
    return total, by_domain if any(by_domain) else None
