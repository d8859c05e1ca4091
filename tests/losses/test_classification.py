from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from parity_data import inputs
from torch import Tensor

from plopcli.losses.classification import IGNORED, binary_cross_entropy, cross_entropy, focal_loss

GOLDEN = Path(__file__).parents[1] / "parity_data" / "losses.npz"

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ce": cross_entropy,
    "bce": binary_cross_entropy,
    "focal": focal_loss,
    "focal_new": partial(focal_loss, first_new=2),
}


@pytest.mark.parity
@pytest.mark.parametrize("case", inputs.LOSS_CASES)
@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients_are_the_reference_s(case: str, name: str) -> None:
    golden, given = np.load(GOLDEN), inputs.loss_inputs(case)
    logits = torch.from_numpy(given["logits"]).requires_grad_()
    labels = torch.from_numpy(given["labels"])

    if name == "focal_new":
        loss = focal_loss(logits, labels, first_new=inputs.LOSS_CASES[case][1])
    else:
        loss = LOSSES[name](logits, labels)
    loss.mean().backward()

    expected = golden[f"{case}/{name}"]
    np.testing.assert_allclose(loss.detach().numpy(), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert logits.grad is not None
    gradient = logits.grad.numpy()
    head = golden[f"{case}/{name}/grad_head"]
    np.testing.assert_allclose(gradient.ravel()[:64], head, rtol=0, atol=1e-5 * np.abs(head).max())
    assert np.abs(gradient.astype(np.float64)).sum() == pytest.approx(golden[f"{case}/{name}/grad_sum_abs"], rel=1e-5)


def test_ignored_pixels_cost_nothing_and_count_in_the_mean() -> None:
    logits = torch.zeros(1, 4, 1, 2)
    labels = torch.tensor([[[1, IGNORED]]])
    for name, value in (("ce", np.log(4)), ("bce", 4 * np.log(2)), ("focal", 0.75**2 * np.log(4))):
        loss = LOSSES[name](logits, labels)
        torch.testing.assert_close(loss, torch.tensor([[[value, 0.0]]], dtype=torch.float32))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("scale", [0, 100])
@pytest.mark.parametrize("label", [IGNORED, 0, 3])
def test_images_of_one_label_give_finite_losses_and_gradients(name: str, scale: float, label: int) -> None:
    logits = (scale * torch.randn(2, 4, 6, 6)).requires_grad_()
    LOSSES[name](logits, torch.full((2, 6, 6), label)).mean().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert (logits.grad == 0).all() == (label == IGNORED)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    ("given", "computed"),
    [(torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float64, torch.float64)],
)
def test_losses_are_computed_in_single_precision_at_least(name: str, given: torch.dtype, computed: torch.dtype) -> None:
    logits, labels = torch.randn(1, 4, 3, 3).to(given), torch.zeros(1, 3, 3, dtype=torch.int64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = LOSSES[name](logits, labels)
    assert loss.dtype == computed
    torch.testing.assert_close(loss.double(), LOSSES[name](logits.double(), labels), rtol=1e-5, atol=1e-5)


def test_binary_cross_entropy_is_that_of_the_one_hot_label() -> None:
    logits, labels = 30 * torch.randn(2, 4, 6, 6), torch.randint(4, (2, 6, 6))
    one_hot = F.one_hot(labels, 4).permute(0, 3, 1, 2).float()
    expected = F.binary_cross_entropy_with_logits(logits, one_hot, reduction="none").sum(1)
    torch.testing.assert_close(binary_cross_entropy(logits, labels), expected)


def test_focal_loss_without_focus_is_cross_entropy() -> None:
    logits, labels = torch.randn(2, 4, 6, 6), torch.randint(4, (2, 6, 6))
    assert torch.equal(focal_loss(logits, labels, gamma=0), cross_entropy(logits, labels))


def test_focal_loss_can_leave_old_labels_alone() -> None:
    logits, labels = torch.randn(2, 4, 6, 6), torch.randint(4, (2, 6, 6))
    loss = focal_loss(logits, labels, first_new=2)
    old = labels < 2
    assert torch.equal(loss[old], cross_entropy(logits, labels)[old])
    assert torch.equal(loss[~old], focal_loss(logits, labels)[~old])
