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
from plopcli.losses.classification import cross_entropy
from plopcli.losses.distillation import distillation
from plopcli.methods.base import StepContext
from plopcli.methods.mib import Mib, MibSettings
from plopcli.models.segmenter import Outputs, build_segmenter
from plopcli.settings.sections import ModelSettings

GOLDEN = Path(__file__).parents[1] / "parity_data" / "losses.npz"
OLD, NEW = 4, 2


def mib(**settings: Any) -> Mib:
    """MiB at a step that adds 2 classes to 4."""
    return Mib(MibSettings(**settings), StepContext(1, (OLD, NEW)))


def draw() -> tuple[Batch, Outputs, Outputs]:
    """Labels, and outputs of the new and the old model."""

    def outputs(classes: int) -> Outputs:
        return Outputs(3 * torch.randn(2, classes, 16, 16), torch.zeros(0))

    labels = torch.from_numpy(inputs.label_maps("mib", 2, 16, [OLD, OLD + 1]))
    return Batch(torch.zeros(2, 3, 16, 16), labels), outputs(OLD + NEW), outputs(OLD)


@pytest.mark.parity
@pytest.mark.parametrize("case", inputs.LOSS_CASES)
def test_terms_are_pixel_means_of_the_reference_s_losses(case: str) -> None:
    golden, given = np.load(GOLDEN), inputs.loss_inputs(case)
    method = Mib(MibSettings(kd_alpha=2.0), StepContext(1, inputs.LOSS_CASES[case][1:3]))
    new, old = (Outputs(torch.from_numpy(given[name]), torch.zeros(0)) for name in ("logits", "old_logits"))

    terms = method.losses(Batch(torch.zeros(0), torch.from_numpy(given["labels"])), new, old)

    assert terms["classification"].item() == pytest.approx(golden[f"{case}/unce"].mean(), rel=1e-5)
    assert terms["logit_distillation"].item() == pytest.approx(10 * golden[f"{case}/unkd_alpha2"].mean(), rel=1e-5)


def test_each_part_has_its_plain_counterpart() -> None:
    batch, new, old = draw()
    plain = {
        "classification": cross_entropy(new.logits, batch.labels).mean(),
        "logit_distillation": 10 * distillation(new.logits, old.logits).mean(),
    }
    for setting, term in (("cross_entropy", "classification"), ("distillation", "logit_distillation")):
        terms = mib(**{setting: "plain"}).losses(batch, new, old)
        for name, value in terms.items():
            assert (value.item() == pytest.approx(plain[name].item())) == (name == term)


def test_the_distillation_scales_with_its_factor_and_can_be_switched_off() -> None:
    batch, new, old = draw()
    terms = [mib(kd_factor=factor).losses(batch, new, old) for factor in (10, 100)]
    torch.testing.assert_close(terms[1]["logit_distillation"], 10 * terms[0]["logit_distillation"])
    assert terms[1]["classification"] == terms[0]["classification"]

    off = mib(kd_factor=0)
    assert not off.uses_old_model
    assert list(off.losses(batch, new, None)) == ["classification"]


@pytest.mark.parametrize("init", ["balanced", "default"])
def test_initialisation_of_the_new_classifier(init: str) -> None:
    settings = ModelSettings(backbone="resnet18", width=8, head_channels=8, pretrained=False)
    model = build_segmenter(settings, (OLD, NEW))
    before = {name: value.clone() for name, value in model.cls.state_dict().items()}
    mib(init=init).initialise(model, None)
    changed = {name for name, value in model.cls.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == ({"0.bias", "1.weight", "1.bias"} if init == "balanced" else set())


def test_a_step_never_waits_for_the_device() -> None:
    """Reading a value of a meta tensor raises, as it would stall a GPU."""
    batch, new, old = draw()

    def to_meta(tensor: Tensor, trained: bool = False) -> Tensor:
        return torch.empty_like(tensor, device="meta", requires_grad=trained)

    new, old = Outputs(to_meta(new.logits, True), new.small), Outputs(to_meta(old.logits), old.small)
    terms = mib().losses(Batch(batch.images, to_meta(batch.labels)), new, old)
    sum(terms.values()).backward()


@pytest.mark.parametrize(
    "wrong",
    [{"kd_factor": -1}, {"kd_alpha": 0}, {"cross_entropy": "ce"}, {"distillation": "kd"}, {"init": "zero"}, {"kd": 1}],
)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        MibSettings(**wrong)
