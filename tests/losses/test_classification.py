from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from parity_data import inputs

from plopcli.losses.classification import IGNORED, cross_entropy

GOLDEN = Path(__file__).parents[1] / "parity_data" / "losses.npz"


@pytest.mark.parity
@pytest.mark.parametrize("case", inputs.LOSS_CASES)
def test_cross_entropy_and_its_gradient_are_the_reference_s(case: str) -> None:
    golden, given = np.load(GOLDEN), inputs.loss_inputs(case)
    logits = torch.from_numpy(given["logits"]).requires_grad_()

    loss = cross_entropy(logits, torch.from_numpy(given["labels"]))
    loss.mean().backward()

    expected = golden[f"{case}/ce"]
    np.testing.assert_allclose(loss.detach().numpy(), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert logits.grad is not None
    gradient = logits.grad.numpy()
    head = golden[f"{case}/ce/grad_head"]
    np.testing.assert_allclose(gradient.ravel()[:64], head, rtol=0, atol=1e-5 * np.abs(head).max())
    assert np.abs(gradient.astype(np.float64)).sum() == pytest.approx(golden[f"{case}/ce/grad_sum_abs"], rel=1e-5)


def test_ignored_pixels_cost_nothing_and_count_in_the_mean() -> None:
    logits = torch.zeros(1, 4, 1, 2)
    loss = cross_entropy(logits, torch.tensor([[[1, IGNORED]]]))
    torch.testing.assert_close(loss, torch.tensor([[[np.log(4), 0.0]]], dtype=torch.float32))


@pytest.mark.parametrize("label", [IGNORED, 0, 3])
def test_images_of_one_label_give_finite_losses_and_gradients(label: int) -> None:
    logits = (100 * torch.randn(2, 4, 6, 6)).requires_grad_()
    cross_entropy(logits, torch.full((2, 6, 6), label)).mean().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert (logits.grad == 0).all() == (label == IGNORED)


@pytest.mark.parametrize(("given", "computed"), [(torch.float16, torch.float32), (torch.float64, torch.float64)])
def test_losses_are_computed_in_single_precision_at_least(given: torch.dtype, computed: torch.dtype) -> None:
    logits = torch.randn(1, 4, 3, 3).to(given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert cross_entropy(logits, torch.zeros(1, 3, 3, dtype=torch.int64)).dtype == computed
