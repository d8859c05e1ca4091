from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from parity_data import inputs
from torch import Tensor

from plopcli.losses.classification import IGNORED, binary_cross_entropy
from plopcli.losses.distillation import distillation, feature_distance, icarl_combined, icarl_disjoint

GOLDEN = Path(__file__).parents[1] / "parity_data" / "losses.npz"
OLD, NEW = 4, 2

LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "kd": lambda new, labels, old: distillation(new, old),
    "icarl_combined": lambda new, labels, old: icarl_combined(new, old),
    "icarl_disjoint": icarl_disjoint,
    "icarl_disjoint_bkg": lambda new, labels, old: icarl_disjoint(new, labels, old, keep_background=True),
}


def draw(classes: int, scale: float = 3.0) -> Tensor:
    return (scale * torch.randn(2, classes, 6, 6, dtype=torch.float64)).requires_grad_()


def draw_labels() -> Tensor:
    """Background, both new classes and ignored pixels."""
    return torch.tensor([0, OLD, OLD + 1, IGNORED])[torch.randint(4, (2, 6, 6))]


@pytest.mark.parity
@pytest.mark.parametrize("case", inputs.LOSS_CASES)
@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients_are_the_reference_s(case: str, name: str) -> None:
    golden, given = np.load(GOLDEN), inputs.loss_inputs(case)
    logits = torch.from_numpy(given["logits"]).requires_grad_()

    loss = LOSSES[name](logits, torch.from_numpy(given["labels"]), torch.from_numpy(given["old_logits"])).mean()
    if name == "icarl_combined":
        loss = 10 * loss
    loss.backward()

    assert loss.item() == pytest.approx(golden[f"{case}/{name}"], rel=1e-5)
    assert logits.grad is not None
    gradient, head = logits.grad.numpy(), golden[f"{case}/{name}/grad_head"]
    np.testing.assert_allclose(gradient.ravel()[:64], head, rtol=0, atol=1e-5 * np.abs(head).max())
    assert np.abs(gradient.astype(np.float64)).sum() == pytest.approx(golden[f"{case}/{name}/grad_sum_abs"], rel=1e-5)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 3.0])
def test_distillation_compares_probabilities_of_old_classes(alpha: float) -> None:
    new, old = draw(OLD + NEW), draw(OLD)
    expected = -(F.softmax(alpha * old, 1) * F.log_softmax(new[:, :OLD], 1)).sum(1) / OLD
    torch.testing.assert_close(distillation(new, old, alpha), expected.detach(), check_stride=False)


def test_distillation_is_least_for_equal_probabilities() -> None:
    old = draw(OLD).detach()
    new = torch.cat([old + 5, draw(NEW).detach()], 1).requires_grad_()
    distillation(new, old).sum().backward()
    assert new.grad is not None
    torch.testing.assert_close(new.grad, torch.zeros_like(new.grad))


def test_feature_distance_is_a_mean_over_elements() -> None:
    new = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 2, 1, 2).requires_grad_()
    old = torch.zeros(1, 2, 1, 2, requires_grad=True)
    distance = feature_distance(new, old)
    distance.backward()
    assert distance == 7.5
    assert new.grad is not None
    assert new.grad.flatten().tolist() == [0.5, 1.0, 1.5, 2.0]
    assert old.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_are_squared_in_single_precision(dtype: torch.dtype) -> None:
    new, old = (torch.full((1, 4, 2, 2), value, dtype=dtype) for value in (400.0, 0.0))  # 400^2 overflows float16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        distance = feature_distance(new, old)
    assert distance.dtype == torch.float32
    assert distance == 160_000


@pytest.mark.parametrize("keep_background", [False, True])
def test_icarl_disjoint_is_bce_on_joined_targets(keep_background: bool) -> None:
    new, old, labels = draw(OLD + NEW), draw(OLD), draw_labels()
    targets = (
        F.one_hot(labels.where(labels != IGNORED, OLD + NEW), OLD + NEW + 1)[..., :-1].permute(0, 3, 1, 2).double()
    )
    first = 1 if keep_background else 0
    targets[:, first:OLD] = old.detach().sigmoid()[:, first:]
    expected = F.binary_cross_entropy_with_logits(new, targets, reduction="none").sum(1)
    torch.testing.assert_close(icarl_disjoint(new, labels, old, keep_background=keep_background), expected)


def test_icarl_combined_sums_over_old_classes() -> None:
    new, old = draw(OLD + NEW), draw(OLD)
    expected = F.binary_cross_entropy_with_logits(new[:, :OLD], old.detach().sigmoid(), reduction="none").sum(1)
    torch.testing.assert_close(icarl_combined(new, old), expected.mean())


def test_a_sure_previous_model_is_a_label() -> None:
    labels = torch.randint(OLD, (2, 6, 6))
    old = 200.0 * F.one_hot(labels, OLD).permute(0, 3, 1, 2).double() - 100
    new = draw(OLD)
    torch.testing.assert_close(icarl_combined(new, old), binary_cross_entropy(new, labels).mean())


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("scale", [0.0, 1e4])
@pytest.mark.parametrize("label", ["mixed", "ignored"])
def test_extreme_inputs_give_finite_losses_and_gradients(name: str, scale: float, label: str) -> None:
    new, old = (scale * torch.randn(2, OLD + NEW, 6, 6)).requires_grad_(), scale * torch.randn(2, OLD, 6, 6)
    labels = draw_labels() if label == "mixed" else torch.full((2, 6, 6), IGNORED)
    loss = LOSSES[name](new, labels, old)
    loss.mean().backward()
    assert loss.shape == (() if name == "icarl_combined" else (2, 6, 6))
    assert loss.isfinite().all()
    assert new.grad is not None
    assert new.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    ("given", "computed"),
    [(torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float64, torch.float64)],
)
def test_losses_are_computed_in_single_precision_at_least(name: str, given: torch.dtype, computed: torch.dtype) -> None:
    new, old, labels = draw(OLD + NEW).to(given), draw(OLD).to(given), draw_labels()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = LOSSES[name](new, labels, old)
    assert loss.dtype == computed
    torch.testing.assert_close(loss.double(), LOSSES[name](new.double(), labels, old.double()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_the_previous_model_gets_no_gradient(name: str) -> None:
    new, old = draw(OLD + NEW), draw(OLD)
    LOSSES[name](new, draw_labels(), old).sum().backward()
    assert old.grad is None
