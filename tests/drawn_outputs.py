"""Random outputs of two models, and passes over a step's images, for tests of what methods compute."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from plopcli.data.batches import Batch
from plopcli.methods.base import StepData
from plopcli.models.segmenter import Outputs

#: Classes before the step, background included, and classes that it brings.
OLD, NEW = 4, 2


def outputs(classes: int, size: int = 16, trained: bool = False, scale: float = 3.0) -> Outputs:
    """Random outputs of a model with five feature maps and an encoder's output, for two images."""

    def draw(*shape: int) -> Tensor:
        return (scale * torch.randn(2, *shape)).requires_grad_(trained)

    features = tuple(draw(3, side, side) for side in (8, 4, 4, 4, 4))
    return Outputs(draw(classes, size, size), draw(classes, 4, 4), features, draw(3, 4, 4))


def data_of(
    batches: Callable[[], Iterator[Batch]] | None = None,
    old_outputs: Callable[[Tensor], Outputs] | None = None,
    reduce: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    new_outputs: Callable[[Tensor], Outputs] | None = None,
) -> StepData:
    """What the engine offers a method; whatever is not given fails when it is used."""

    def passed(network: Callable[[Tensor], Outputs] | None) -> Callable[..., Outputs]:
        def run(images: Tensor, features: bool = False) -> Outputs:
            assert network is not None, "this network is not to be used"
            return network(images)

        return run

    def no_pass() -> Iterator[Batch]:
        raise AssertionError("no pass is needed")

    return StepData(batches or no_pass, no_pass, lambda: (), passed(old_outputs), passed(new_outputs), reduce)


def step_pass(logits: list[Tensor], labels: list[Tensor]) -> StepData:
    """A pass over images that are themselves the previous model's logits."""

    def batches() -> Iterator[Batch]:
        return (Batch(z, y) for z, y in zip(logits, labels, strict=True))

    return data_of(batches, lambda images: Outputs(images, images))
