"""LwF, LwF-MC and ILT: methods that only add distillation to their classification loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parity_data import inputs
from pydantic import ValidationError
from torch import Tensor

from plopcli.data.batches import Batch
from plopcli.losses.classification import binary_cross_entropy, cross_entropy
from plopcli.losses.distillation import icarl_disjoint
from plopcli.methods import get_method
from plopcli.methods.base import Method, StepContext
from plopcli.models.segmenter import Outputs

GOLDEN = Path(__file__).parents[1] / "parity_data" / "losses.npz"
OLD, NEW = 4, 2
NAMES = ["lwf", "lwf-mc", "ilt"]


def build(name: str, step: int = 1, classes: tuple[int, ...] = (OLD, NEW), **settings: Any) -> Method:
    kind = get_method(name)
    return kind(kind.Settings(**settings), StepContext(step, classes[: step + 1]))


def draw(step: int = 1) -> tuple[Batch, Outputs, Outputs]:
    """Labels, and outputs of the new and the old model with an encoder map."""

    def outputs(classes: int) -> Outputs:
        logits = (3 * torch.randn(2, classes, 16, 16)).requires_grad_()
        return Outputs(logits, torch.zeros(0), (), torch.randn(2, 8, 4, 4).requires_grad_())

    labels = torch.from_numpy(inputs.label_maps("lwf", 2, 16, [OLD, OLD + 1] if step else [1, 2, 3]))
    return Batch(torch.zeros(2, 3, 16, 16), labels), outputs(OLD + NEW if step else OLD), outputs(OLD)


@pytest.mark.parity
@pytest.mark.parametrize("case", inputs.LOSS_CASES)
@pytest.mark.parametrize(
    ("name", "settings", "terms"),
    [
        ("lwf", {}, {"classification": ("ce", 1), "logit_distillation": ("kd", 100)}),
        ("lwf-mc", {}, {"classification": ("bce", 1), "icarl": ("icarl_combined", 1)}),
        ("lwf-mc", {"targets": "disjoint"}, {"classification": ("icarl_disjoint", 1)}),
        ("lwf-mc", {"targets": "disjoint_bkg"}, {"classification": ("icarl_disjoint_bkg", 1)}),
        ("ilt", {"encoder_factor": 0}, {"classification": ("ce", 1), "logit_distillation": ("kd", 100)}),
    ],
)
def test_terms_are_the_reference_s_losses(
    case: str, name: str, settings: dict[str, Any], terms: dict[str, tuple[str, float]]
) -> None:
    golden, given = np.load(GOLDEN), inputs.loss_inputs(case)
    new, old = (Outputs(torch.from_numpy(given[key]), torch.zeros(0)) for key in ("logits", "old_logits"))
    method = build(name, 1, inputs.LOSS_CASES[case][1:3], **settings)

    ours = method.losses(Batch(torch.zeros(0), torch.from_numpy(given["labels"])), new, old)

    assert ours.keys() == terms.keys()
    for term, (loss, factor) in terms.items():
        assert ours[term].item() == pytest.approx(factor * golden[f"{case}/{loss}"].mean(), rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_step_0_needs_no_old_model(name: str) -> None:
    method = build(name, step=0)
    batch, new, _ = draw(step=0)
    loss = binary_cross_entropy if name == "lwf-mc" else cross_entropy
    assert method.losses(batch, new, None) == {"classification": loss(new.logits, batch.labels).mean()}
    assert not method.uses_old_model
    assert not method.uses_features


def test_only_lwf_mc_has_a_step_0_of_its_own_kind() -> None:
    assert [get_method(name).first_step for name in ("ft", *NAMES, "mib", "plop")] == [
        "cross-entropy",
        "cross-entropy",
        "binary cross-entropy",
        "cross-entropy",
        "cross-entropy",
        "cross-entropy",
    ]


def test_lwf_mc_needs_the_old_model_for_disjoint_targets_whatever_the_factor() -> None:
    batch, new, old = draw()
    for targets in ("disjoint", "disjoint_bkg"):
        method = build("lwf-mc", targets=targets, icarl_factor=0)
        assert method.uses_old_model
        expected = icarl_disjoint(new.logits, batch.labels, old.logits, keep_background=targets == "disjoint_bkg")
        assert method.losses(batch, new, old) == {"classification": expected.mean()}


def test_ilt_distils_the_encoder_s_output() -> None:
    batch, new, old = draw()
    assert new.encoder is not None
    assert old.encoder is not None
    method = build("ilt")
    terms = method.losses(batch, new, old)
    torch.testing.assert_close(terms["encoder_distillation"], 100 * (new.encoder - old.encoder).square().mean())
    assert list(terms) == ["classification", "logit_distillation", "encoder_distillation"]
    assert method.uses_features
    sum(terms.values()).backward()
    assert old.encoder.grad is None
    assert old.logits.grad is None


@pytest.mark.parametrize(
    ("name", "factors"),
    [("lwf", {"kd_factor": 0}), ("lwf-mc", {"icarl_factor": 0}), ("ilt", {"kd_factor": 0, "encoder_factor": 0})],
)
def test_factors_scale_their_terms_and_0_switches_them_off(name: str, factors: dict[str, float]) -> None:
    batch, new, old = draw()
    off = build(name, **factors)
    assert not off.uses_old_model
    assert list(off.losses(batch, new, None)) == ["classification"]

    plain = build(name, **dict.fromkeys(factors, 2)).losses(batch, new, old)
    double = build(name, **dict.fromkeys(factors, 4)).losses(batch, new, old)
    for term, value in plain.items():
        torch.testing.assert_close(double[term], value if term == "classification" else 2 * value)


def test_parts_of_ilt_can_be_switched_off_one_by_one() -> None:
    batch, new, old = draw()
    without_features = old._replace(encoder=None)
    logits_only = build("ilt", encoder_factor=0)
    assert not logits_only.uses_features
    assert list(logits_only.losses(batch, new, without_features)) == ["classification", "logit_distillation"]
    encoder_only = build("ilt", kd_factor=0)
    assert list(encoder_only.losses(batch, new, old)) == ["classification", "encoder_distillation"]


@pytest.mark.parametrize("name", NAMES)
def test_a_step_never_waits_for_the_device(name: str) -> None:
    """Reading a value of a meta tensor raises, as it would stall a GPU."""

    def to_meta(given: Outputs, trained: bool) -> Outputs:
        def move(tensor: Tensor) -> Tensor:
            return torch.empty_like(tensor, device="meta", requires_grad=trained)

        assert given.encoder is not None
        return Outputs(move(given.logits), given.small, (), move(given.encoder))

    batch, new, old = draw()
    batch = Batch(batch.images, torch.empty_like(batch.labels, device="meta"))
    sum(build(name).losses(batch, to_meta(new, True), to_meta(old, False)).values()).backward()


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("lwf", {"kd_factor": -1}),
        ("lwf", {"kd_alpha": 0}),
        ("lwf-mc", {"icarl_factor": -1}),
        ("lwf-mc", {"targets": "joint"}),
        ("lwf-mc", {"kd_factor": 1}),
        ("ilt", {"encoder_factor": -1}),
        ("ilt", {"kd_alpha": -1}),
    ],
)
def test_impossible_settings_are_refused(name: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        get_method(name).Settings(**wrong)
