"""Random outputs of two models, and passes over a step's images, for tests of what methods compute."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from plopcli.methods.base import Batch, StepPass
from plopcli.models.segmenter import Outputs

#: Classes before the step, background included, and classes that it brings.
OLD, NEW = 4, 2


def outputs(classes: int, size: int = 16, trained: bool = False, scale: float = 3.0) -> Outputs:
    """Random outputs of a model with five feature maps and an encoder's output, for two images."""

    def draw(*shape: int) -> Tensor:
        return (scale * torch.randn(2, *shape)).requires_grad_(trained)

    features = tuple(draw(3, side, side) for side in (8, 4, 4, 4, 4))
    return Outputs(draw(classes, size, size), draw(classes, 4, 4), features, draw(3, 4, 4))


def step_pass(logits: list[Tensor], labels: list[Tensor]) -> StepPass:
    """A pass over images that are themselves the previous model's logits."""

    def batches() -> Iterator[Batch]:
        return (Batch(z, y) for z, y in zip(logits, labels, strict=True))

    return StepPass(batches, lambda images: Outputs(images, images), lambda tensor: tensor)
