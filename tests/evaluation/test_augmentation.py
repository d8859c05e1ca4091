"""Several looks at an image."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from plopcli.evaluation.augmentation import PLAIN, Augmentation, probabilities, read_scales
from plopcli.models.classifiers import PLAIN as PLAIN_PLAN


def network(images: Tensor) -> Tensor:
    """Three logits at a quarter of the size, not symmetric, from whatever size."""
    weight = torch.arange(3 * 3 * 16, dtype=torch.float32).sin().view(3, 3, 4, 4)
    return F.conv2d(F.pad(images, (0, -images.shape[-1] % 4, 0, -images.shape[-2] % 4)), weight, stride=4)


def test_one_look_is_a_softmax() -> None:
    images = torch.randn(2, 3, 20, 30, generator=torch.manual_seed(0))
    expected = F.interpolate(network(images), size=(20, 30), mode="bilinear").softmax(1)
    assert torch.equal(probabilities(network, PLAIN_PLAN, images, PLAIN), expected)
    assert PLAIN.is_plain


def test_all_looks_count_alike_and_mirrors_are_turned_back() -> None:
    images = torch.randn(1, 3, 24, 32, generator=torch.manual_seed(1))
    looks = [images, F.interpolate(images, size=(36, 48), mode="bilinear")]
    expected = torch.zeros(1, 3, 24, 32)
    for look in looks:
        expected += F.interpolate(network(look), size=(24, 32), mode="bilinear").softmax(1) / 4
        mirrored = F.interpolate(network(look.flip(3)).flip(3), size=(24, 32), mode="bilinear")
        expected += mirrored.softmax(1) / 4
    found = probabilities(network, PLAIN_PLAN, images, Augmentation((1.0, 1.5), flip=True))
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.allclose(found.sum(1), torch.ones(1, 24, 32))


def test_a_mirrored_image_gives_the_mirrored_answer() -> None:
    images = torch.randn(1, 3, 24, 32, generator=torch.manual_seed(2))
    looks = Augmentation((0.5, 1.0), flip=True)
    found, mirrored = (
        probabilities(network, PLAIN_PLAN, images, looks),
        probabilities(network, PLAIN_PLAN, images.flip(3), looks),
    )
    assert torch.allclose(found, mirrored.flip(3), atol=1e-6)


def test_scales_are_read_and_told() -> None:
    looks = Augmentation(read_scales("0.5,1,1.75"), flip=True)
    assert looks.scales == (0.5, 1.0, 1.75)
    assert looks.describe() == "mean probabilities over scales 0.5, 1, 1.75 and mirror images"
    assert not Augmentation((1.25,)).is_plain
    with pytest.raises(AssertionError):
        probabilities(network, PLAIN_PLAN, torch.zeros(1, 3, 8, 8), Augmentation(()))
