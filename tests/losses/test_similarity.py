from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from plopcli.losses.classification import IGNORED
from plopcli.losses.distillation import distillation
from plopcli.losses.similarity import (
    ClassSums,
    prototypes_of,
    shrink_labels,
    similarity_distillation,
    similarity_weights,
    sum_by_class,
)

OLD, NEW = 4, 2


def draw(classes: int, scale: float = 3.0) -> Tensor:
    return (scale * torch.randn(2, classes, 6, 6, dtype=torch.float64)).requires_grad_()


def draw_labels() -> Tensor:
    """Background, both new classes and ignored pixels."""
    return torch.tensor([0, OLD, OLD + 1, IGNORED])[torch.randint(4, (2, 6, 6))]


def draw_weights(delta: float = 0.0) -> Tensor:
    return similarity_weights(torch.randn(NEW, 5).double(), torch.randn(OLD, 5).double(), delta)


def looped(logits: Tensor, labels: Tensor, old_logits: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """The formula, pixel by pixel."""
    losses = []
    for image, row, column in torch.cartesian_prod(*(torch.arange(size) for size in labels.shape)).tolist():
        label = int(labels[image, row, column])
        if label == IGNORED or label < OLD:
            continue
        p = (old_logits[image, :, row, column].detach() / temperature).softmax(0)
        log_q = (logits[image, :OLD, row, column] / temperature).log_softmax(0)
        losses.append(-sum(weights[label - OLD, c] * p[c] * log_q[c] for c in range(OLD)))
    return temperature**2 * torch.stack(losses).mean()


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("delta", [0.0, 1.0])
def test_the_distillation_is_the_formula(temperature: float, delta: float) -> None:
    new, old, labels, weights = draw(OLD + NEW), draw(OLD), draw_labels(), draw_weights(delta)

    loss = similarity_distillation(new, labels, old, weights, temperature)
    (gradient,) = torch.autograd.grad(loss, new)

    expected = looped(new, labels, old, weights, temperature)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, new)[0])
    assert not gradient[:, OLD:].any()
    assert not gradient.permute(0, 2, 3, 1)[(labels < OLD) | (labels == IGNORED)].any()


def test_equal_weights_make_it_plain_distillation() -> None:
    new, old, labels = draw(OLD + NEW), draw(OLD), draw_labels()
    weights = torch.full((NEW, OLD), 1 / OLD, dtype=torch.float64)
    plain = distillation(new, old)[(labels >= OLD) & (labels != IGNORED)].mean()
    torch.testing.assert_close(similarity_distillation(new, labels, old, weights, 1.0), plain)


@pytest.mark.parametrize("label", [0, OLD - 1, OLD, IGNORED])
@pytest.mark.parametrize("scale", [3.0, 1000.0])
def test_images_of_one_label_give_finite_losses_and_gradients(label: int, scale: float) -> None:
    new, old = draw(OLD + NEW, scale), draw(OLD, scale)
    loss = similarity_distillation(new, torch.full((2, 6, 6), label), old, draw_weights(), 3.0)
    loss.backward()
    assert loss.isfinite()
    assert new.grad is not None
    assert new.grad.isfinite().all()
    assert bool(loss > 0) == bool(new.grad.any()) == (label == OLD)
    assert old.grad is None


def test_weights_are_a_softmax_of_cosines_without_gradient() -> None:
    new, old = torch.randn(NEW, 5).requires_grad_(), torch.randn(OLD, 5)
    weights = similarity_weights(new, old)
    for y in range(NEW):
        cosines = [float((new[y] @ old[c] / (new[y].norm() * old[c].norm())).detach()) for c in range(OLD)]
        total = sum(math.exp(cosine) for cosine in cosines)
        assert weights[y].tolist() == pytest.approx([math.exp(cosine) / total for cosine in cosines], rel=1e-5)
    assert not weights.requires_grad


@pytest.mark.parametrize("delta", [0.0, 1.0])
def test_old_classes_that_are_alike_weigh_the_same(delta: float) -> None:
    """Weights of exactly the mean are not below it."""
    for old_classes in (3, 7, 16, 101):
        weights = similarity_weights(torch.randn(NEW, 5), torch.randn(5).expand(old_classes, 5), delta)
        torch.testing.assert_close(weights, torch.full((NEW, old_classes), 1 / old_classes))


def test_a_class_without_a_prototype_resembles_all_alike() -> None:
    weights = similarity_weights(torch.zeros(1, 5), torch.randn(OLD, 5))
    torch.testing.assert_close(weights, torch.full((1, OLD), 1 / OLD))


def test_delta_drops_the_weights_below_its_share_of_the_mean() -> None:
    new, old = torch.randn(8, 5), torch.randn(OLD, 5)
    every = similarity_weights(new, old)
    for delta in (0.5, 1.0, 1.5):
        kept = similarity_weights(new, old, delta)
        assert torch.equal(kept, torch.where(every < delta / OLD, 0, every))
        assert 0 < int((kept == 0).sum()) < kept.numel()
    assert not similarity_weights(new, old, OLD + 1.0).any()


def test_sums_by_class_are_those_of_a_loop_and_add_up() -> None:
    features, labels = torch.randn(2, 5, 6, 6), draw_labels()
    found = sum_by_class(features.to(memory_format=torch.channels_last), labels, OLD, NEW)
    for index in range(NEW):
        chosen = features.permute(0, 2, 3, 1)[labels == OLD + index]
        torch.testing.assert_close(found.features[index], chosen.sum(0))
        assert found.pixels[index] == len(chosen)
    parts = [sum_by_class(features[i : i + 1], labels[i : i + 1], OLD, NEW) for i in range(2)]
    torch.testing.assert_close(parts[0].features + parts[1].features, found.features)
    assert torch.equal(parts[0].pixels + parts[1].pixels, found.pixels)


def test_ignored_pixels_are_of_no_class_whatever_the_number_of_classes() -> None:
    found = sum_by_class(torch.ones(1, 3, 2, 2), torch.tensor([[[IGNORED, 0], [254, IGNORED]]]), 0, 300)
    assert int(found.pixels.sum()) == 2
    assert found.pixels[IGNORED] == 0


def test_prototypes_are_means_and_zeros_for_classes_without_pixels() -> None:
    sums = ClassSums(torch.tensor([[2.0, 4.0], [0.0, 0.0]]), torch.tensor([2, 0]))
    assert prototypes_of(sums).tolist() == [[1, 2], [0, 0]]


def test_features_in_half_precision_are_summed_in_float32() -> None:
    found = sum_by_class(torch.ones(1, 2, 64, 64, dtype=torch.bfloat16), torch.zeros(1, 64, 64).long(), 0, 1)
    assert found.features.dtype == torch.float32
    assert found.features.tolist() == [[4096, 4096]]


@pytest.mark.parametrize(("size", "small"), [(16, 4), (48, 6), (10, 3), (513, 33)])
def test_small_labels_are_those_at_the_cells_centres(size: int, small: int) -> None:
    labels = torch.randint(256, (1, size, size))
    at = [int((i + 0.5) * size / small) for i in range(small)]
    shrunk = shrink_labels(labels, small, small)
    assert shrunk.dtype == torch.int64
    assert torch.equal(shrunk, labels[:, at][:, :, at])


def test_autocast_changes_nothing() -> None:
    new, old, labels, features = draw(OLD + NEW), draw(OLD), draw_labels(), torch.randn(2, 5, 6, 6)
    stored = torch.randn(OLD, 5)

    def loss() -> Tensor:
        own = prototypes_of(sum_by_class(features, labels, OLD, NEW))
        return similarity_distillation(new.float(), labels, old.float(), similarity_weights(own, stored), 3.0)

    with torch.autocast("cpu", torch.bfloat16):
        half = loss()
    assert torch.equal(half, loss())
