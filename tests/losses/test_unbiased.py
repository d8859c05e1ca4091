from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from parity_data import inputs
from torch import Tensor

from plopcli.losses.classification import IGNORED, cross_entropy
from plopcli.losses.distillation import distillation
from plopcli.losses.unbiased import unbiased_cross_entropy, unbiased_distillation

GOLDEN = Path(__file__).parents[1] / "parity_data" / "losses.npz"
OLD, NEW = 4, 2


def draw(classes: int = OLD + NEW, scale: float = 3.0) -> Tensor:
    return (scale * torch.randn(2, classes, 6, 6, dtype=torch.float64)).requires_grad_()


def draw_labels() -> Tensor:
    """Background, both new classes and ignored pixels."""
    return torch.tensor([0, OLD, OLD + 1, IGNORED])[torch.randint(4, (2, 6, 6))]


@pytest.mark.parity
@pytest.mark.parametrize("case", inputs.LOSS_CASES)
@pytest.mark.parametrize("name", ["unce", "unkd", "unkd_alpha2"])
def test_losses_and_gradients_are_the_reference_s(case: str, name: str) -> None:
    golden, given = np.load(GOLDEN), inputs.loss_inputs(case)
    logits = torch.from_numpy(given["logits"]).requires_grad_()
    old_logits, labels = torch.from_numpy(given["old_logits"]), torch.from_numpy(given["labels"])
    losses: dict[str, Callable[[], Tensor]] = {
        "unce": lambda: unbiased_cross_entropy(logits, labels, inputs.LOSS_CASES[case][1]),
        "unkd": lambda: unbiased_distillation(logits, old_logits),
        "unkd_alpha2": lambda: unbiased_distillation(logits, old_logits, alpha=2.0),
    }

    loss = losses[name]()
    loss.mean().backward()

    expected = golden[f"{case}/{name}"]
    np.testing.assert_allclose(loss.detach().numpy(), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert logits.grad is not None
    gradient, head = logits.grad.numpy(), golden[f"{case}/{name}/grad_head"]
    np.testing.assert_allclose(gradient.ravel()[:64], head, rtol=0, atol=1e-5 * np.abs(head).max())
    assert np.abs(gradient.astype(np.float64)).sum() == pytest.approx(golden[f"{case}/{name}/grad_sum_abs"], rel=1e-5)


@pytest.mark.parametrize("old", [1, 3, OLD])
def test_both_are_plain_losses_on_merged_probabilities(old: int) -> None:
    logits, labels = draw(), draw_labels()
    p = logits.softmax(1)

    labels = torch.where(labels == IGNORED, labels, torch.where(labels == 0, 0, labels - OLD + old))
    merged = torch.cat([p[:, :old].sum(1, keepdim=True), p[:, old:]], 1).log()
    index = torch.where(labels < old, 0, labels - old + 1)
    expected = F.nll_loss(merged, index.where(labels != IGNORED, IGNORED), ignore_index=IGNORED, reduction="none")
    compare(unbiased_cross_entropy(logits, labels, old), expected, logits)

    targets = draw(old).detach()
    merged = torch.cat([p[:, :1] + p[:, old:].sum(1, keepdim=True), p[:, 1:old]], 1).log()
    expected = -(targets.softmax(1) * merged).sum(1) / old
    compare(unbiased_distillation(logits, targets), expected, logits)


def compare(ours: Tensor, expected: Tensor, logits: Tensor) -> None:
    torch.testing.assert_close(ours, expected)
    weights = torch.randn_like(ours)
    gradients = [torch.autograd.grad((loss * weights).sum(), logits, retain_graph=True)[0] for loss in (ours, expected)]
    torch.testing.assert_close(*gradients)


def test_without_new_probability_they_are_the_plain_losses() -> None:
    logits, old_logits = draw().detach(), draw(OLD).detach()
    logits[:, OLD:] = -1e4
    torch.testing.assert_close(unbiased_distillation(logits, old_logits), distillation(logits, old_logits))
    alone, labels = torch.cat([logits[:, :1], draw(NEW).detach()], 1), torch.full((2, 6, 6), 1)
    torch.testing.assert_close(unbiased_cross_entropy(alone, labels, 1), cross_entropy(alone, labels))


def test_old_classes_are_not_pushed_down_where_the_label_is_background() -> None:
    logits = torch.zeros(1, OLD + NEW, 1, 1, requires_grad=True)
    unbiased_cross_entropy(logits, torch.zeros(1, 1, 1, dtype=torch.int64), OLD).sum().backward()
    assert logits.grad is not None
    assert (logits.grad[0, :OLD] < 0).all()
    assert (logits.grad[0, OLD:] > 0).all()


def test_ignored_pixels_have_no_cross_entropy_but_are_distilled() -> None:
    logits, old_logits = draw(), draw(OLD)
    loss = unbiased_cross_entropy(logits, torch.full((2, 6, 6), IGNORED), OLD)
    (gradient,) = torch.autograd.grad(loss.sum(), logits, retain_graph=True)
    assert (loss == 0).all()
    assert (gradient == 0).all()
    unbiased_distillation(logits, old_logits).sum().backward()
    assert logits.grad is not None
    assert (logits.grad != 0).all()
    assert old_logits.grad is None


@pytest.mark.parametrize("scale", [0.0, 1e4])
@pytest.mark.parametrize("old", [1, OLD])
def test_extreme_logits_give_finite_losses_and_gradients(scale: float, old: int) -> None:
    logits = (scale * torch.randn(2, OLD + NEW, 6, 6)).requires_grad_()
    loss = unbiased_cross_entropy(logits, draw_labels(), old)
    loss = loss + unbiased_distillation(logits, scale * torch.randn(2, old, 6, 6))
    loss.mean().backward()
    assert loss.isfinite().all()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize(
    ("given", "computed"),
    [(torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float64, torch.float64)],
)
def test_losses_are_computed_in_single_precision_at_least(given: torch.dtype, computed: torch.dtype) -> None:
    logits, old_logits, labels = draw().to(given), draw(OLD).to(given), draw_labels()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = unbiased_cross_entropy(logits, labels, OLD), unbiased_distillation(logits, old_logits)
    exact = logits.double()
    expected = unbiased_cross_entropy(exact, labels, OLD), unbiased_distillation(exact, old_logits.double())
    for ours, reference in zip(losses, expected, strict=True):
        assert ours.dtype == computed
        torch.testing.assert_close(ours.double(), reference, rtol=1e-5, atol=1e-5)
