"""Options that several methods share: each changes what it says, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from parity_data import inputs
from pydantic import ValidationError
from torch import Tensor

from plopcli.data.batches import Batch
from plopcli.losses.classification import IGNORED, binary_cross_entropy, cross_entropy, focal_loss
from plopcli.losses.distillation import distillation
from plopcli.losses.unbiased import unbiased_distillation
from plopcli.methods import METHODS, get_method
from plopcli.methods.base import Method, StepContext
from plopcli.methods.distilling import DistillationSettings
from plopcli.methods.learning import ClassificationSettings
from plopcli.models.segmenter import Outputs, Segmenter, build_segmenter
from plopcli.resolution.layers import Resolved, resolve_settings
from plopcli.settings.sections import ModelSettings

OLD, NEW = 4, 2
LEARNING = [name for name, method in METHODS.items() if issubclass(method.Settings, ClassificationSettings)]
DISTILLING = [name for name, method in METHODS.items() if issubclass(method.Settings, DistillationSettings)]
BALANCING = [name for name, method in METHODS.items() if "init" in method.Settings.model_fields]


def make(name: str, step: int = 1, **settings: Any) -> Method:
    """A method at step 0, or at a step that adds 2 classes to 4."""
    kind = get_method(name)
    return kind(kind.Settings(**settings), StepContext(step, (OLD, NEW) if step else (OLD,)))


def draw(step: int = 1) -> tuple[Batch, Outputs, Outputs]:
    """Labels, and outputs of the new and the old model."""

    def outputs(classes: int) -> Outputs:
        features = (torch.randn(2, 8, 16, 16),) * 5
        return Outputs(3 * torch.randn(2, classes, 16, 16), torch.zeros(0), features, torch.randn(2, 8, 4, 4))

    labels = inputs.label_maps("options", 2, 16, [OLD, OLD + 1] if step else [1, 2, 3])
    return Batch(torch.zeros(2, 3, 16, 16), torch.from_numpy(labels)), outputs(OLD + NEW if step else OLD), outputs(OLD)


def network(*classes: int) -> Segmenter:
    settings = ModelSettings(backbone="resnet18", width=8, head_channels=8, pretrained=False)
    return build_segmenter(settings, classes)


def classification(method: Method, batch: Batch, new: Outputs, old: Outputs | None) -> Tensor:
    return method.losses(batch, new, old if method.context.step else None)["classification"]


def test_these_methods_have_them() -> None:
    assert {"ft", "lwf", "ilt", "ewc", "rw", "pi", "joint"} <= set(LEARNING)
    assert {"lwf", "ilt", "mib"} <= set(DISTILLING)
    assert {"ft", "lwf", "lwf-mc", "ilt", "ewc", "rw", "pi", "mib", "plop"} <= set(BALANCING)


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("name", LEARNING)
def test_the_classification_loss_can_be_chosen(name: str, step: int) -> None:
    if METHODS[name].merges_steps and step:
        return
    batch, new, old = draw(step)
    first_new = OLD if step else 0
    expected = {
        "cross_entropy": cross_entropy(new.logits, batch.labels),
        "bce": binary_cross_entropy(new.logits, batch.labels),
        "focal": focal_loss(new.logits, batch.labels, 3.0),
        "focal_new": focal_loss(new.logits, batch.labels, 3.0, first_new),
    }
    found = {
        loss: classification(make(name, step, classification=loss, focal_gamma=3.0), batch, new, old)
        for loss in expected
    }
    for loss, value in expected.items():
        assert torch.equal(found[loss], value.mean()), loss
    assert torch.equal(classification(make(name, step), batch, new, old), found["cross_entropy"])
    assert len({value.item() for value in found.values()}) == (4 if step else 3)
    assert found["focal"] != classification(make(name, step, classification="focal"), batch, new, old)


@pytest.mark.parametrize("name", LEARNING)
def test_step_0_is_shared_by_those_that_learn_alike(name: str) -> None:
    kind = get_method(name)

    def key(**settings: Any) -> Mapping[str, Any]:
        return kind.step_0_key(kind.Settings(**settings))

    assert key() == key(focal_gamma=3.0), "which cross-entropy has no use for"
    assert key(classification="focal") == key(classification="focal_new")
    losses = [{}, {"classification": "bce"}, {"classification": "focal"}, {"classification": "focal", "focal_gamma": 3}]
    assert len({str(key(**settings)) for settings in losses}) == 4


def test_binary_decisions_are_those_of_lwf_mc_at_step_0() -> None:
    ft, lwf_mc = (get_method(name) for name in ("ft", "lwf-mc"))
    assert ft.step_0_key(ft.Settings(classification="bce")) == lwf_mc.step_0_key(lwf_mc.Settings())


def test_a_method_that_says_nothing_of_its_step_0_shares_it_with_itself_alone() -> None:
    own, other = (Method.step_0_key(get_method(name).Settings()) for name in ("ft", "plop"))
    assert own != other
    assert own == Method.step_0_key(get_method("ft").Settings())
    assert own != Method.step_0_key(get_method("ft").Settings(classification="bce"))


@pytest.mark.parametrize("init", ["balanced", "default"])
@pytest.mark.parametrize("name", BALANCING)
def test_new_classes_can_start_from_the_background(name: str, init: str) -> None:
    model, old_model = network(OLD, NEW), network(OLD)
    before = {key: value.clone() for key, value in model.cls.state_dict().items()}
    make(name, init=init).initialise(model, old_model)
    changed = {key for key, value in model.cls.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == ({"0.bias", "1.weight", "1.bias"} if init == "balanced" else set())
    make(name, 0, init=init).initialise(network(OLD), None)  # at step 0 there is nothing to share out


@pytest.mark.parametrize("name", LEARNING)
def test_by_default_new_classes_start_at_random(name: str) -> None:
    # Where steps are merged there is no new classifier to start.
    assert METHODS[name].Settings().model_dump().get("init") == (None if METHODS[name].merges_steps else "default")


def plain(name: str, new: Tensor, old: Tensor, alpha: float = 1.0) -> Tensor:
    """The distillation of every pixel that ``name`` weighs."""
    return (unbiased_distillation if "mib" in name else distillation)(new, old, alpha)


@pytest.mark.parametrize("name", DISTILLING)
def test_distillation_has_a_temperature_for_both_models(name: str) -> None:
    batch, new, old = draw()
    found = make(name, kd_temperature=3.0, kd_alpha=2.0).losses(batch, new, old)
    factor = METHODS[name].Settings().model_dump()["kd_factor"]
    expected = factor * plain(name, new.logits / 3, old.logits / 3, 2.0).mean()
    torch.testing.assert_close(found["logit_distillation"], expected)
    assert found["classification"] == make(name).losses(batch, new, old)["classification"]
    assert found["logit_distillation"] != make(name, kd_alpha=2.0).losses(batch, new, old)["logit_distillation"]


@pytest.mark.parametrize("name", DISTILLING)
def test_distillation_can_be_kept_to_some_pixels(name: str) -> None:
    batch, new, old = draw()
    assert (batch.labels == IGNORED).any()
    factor = METHODS[name].Settings().model_dump()["kd_factor"]
    pixels = factor * plain(name, new.logits, old.logits)
    found = {
        kind: make(name, kd_pixels=kind).losses(batch, new, old)["logit_distillation"]
        for kind in ("all", "background", "new")
    }
    assert torch.equal(found["all"], make(name).losses(batch, new, old)["logit_distillation"])
    torch.testing.assert_close(found["background"], (pixels * (batch.labels == 0)).mean())
    torch.testing.assert_close(found["new"], (pixels * (batch.labels >= OLD)).mean())
    assert 0 < found["new"] < found["all"]


@pytest.mark.parametrize("name", DISTILLING)
def test_distillation_can_follow_the_schedule_of_pod(name: str) -> None:
    batch, new, old = draw()
    constant, scheduled = (
        make(name, kd_schedule=on).losses(batch, new, old)["logit_distillation"] for on in (False, True)
    )
    torch.testing.assert_close(scheduled, math.sqrt((OLD + NEW) / NEW) * constant)


@pytest.mark.parametrize("name", DISTILLING)
def test_distillation_stays_finite_where_no_pixel_counts(name: str) -> None:
    batch, new, old = draw()
    ignored = Batch(batch.images, torch.full_like(batch.labels, IGNORED))
    logits = new.logits.requires_grad_()
    terms = make(name, kd_pixels="background").losses(ignored, new, old)
    assert terms["logit_distillation"] == 0
    sum(terms.values()).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def resolve_domains(name: str, assignments: Sequence[str]) -> Resolved:
    flags = {"method.name": name, "data.dataset": "cityscapes-domain"}
    return resolve_settings(flags, assignments=assignments, environment={}, preset="none")


@pytest.mark.parametrize("name", [name for name in METHODS if name != "joint"])
def test_with_domains_nothing_is_left_that_needs_old_or_new_classes(name: str) -> None:
    kind = get_method(name)
    wanted = {"init": "balanced", "classification": "focal_new", "kd_pixels": "new"}
    assignments = [f"method.{key}={value}" for key, value in wanted.items() if key in kind.Settings.model_fields]
    resolved = resolve_domains(name, assignments)
    after = resolved.settings.method
    assert type(after).model_validate(after.model_dump()) == after
    kept = {"init": "default", "classification": "focal", "kd_pixels": "all"}
    given = {key: value for key, value in after.model_dump().items() if key in wanted}
    assert given == {key: kept[key] for key in given}
    assert all(resolved.origins[f"method.{key}"] == "preset domains" for key in given)
    lines = resolved.notes
    assert all(any(line.startswith(f"method.{key}: {kept[key]} in place of") for line in lines) for key in given)


@pytest.mark.parametrize("name", METHODS)
def test_what_makes_sense_with_domains_is_left_alone(name: str) -> None:
    if issubclass(METHODS[name].Settings, ClassificationSettings):
        resolved = resolve_domains(name, ["method.classification=bce"])
        assert resolved.settings.method.model_dump()["classification"] == "bce"
        assert not any("classification" in line for line in resolved.notes)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        *((name, {"classification": "hinge"}) for name in LEARNING),
        *((name, {"focal_gamma": 0.5}) for name in LEARNING),
        *((name, {"init": "zero"}) for name in BALANCING),
        *((name, {"kd_pixels": "old"}) for name in DISTILLING),
        *((name, {"kd_temperature": 0}) for name in DISTILLING),
        ("joint", {"init": "balanced"}),
    ],
)
def test_impossible_options_are_refused(name: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        get_method(name).Settings(**wrong)
