from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from drawn_outputs import data_of
from pydantic import ValidationError
from tensors import assert_same_tensors
from torch import Tensor

from plopcli.devices.process import Process
from plopcli.engine.setup import StepSetup
from plopcli.engine.step import finish_step
from plopcli.methods import get_method
from plopcli.methods.base import Method, StepContext
from plopcli.methods.mib_ewf import MibEwf
from plopcli.methods.plop_ewf import PlopEwf
from plopcli.methods.weight_fusion import fuse, fusion_share
from plopcli.models.segmenter import Segmenter, build_segmenter
from plopcli.resolution.layers import resolve_settings
from plopcli.settings.sections import ModelSettings

OLD, NEW = 4, 2
EWF = {"mib-ewf": "mib", "plop-ewf": "plop"}
#: Settings that have other defaults than in the method underneath.
OWN = ("name", "fusion")


def models() -> tuple[Segmenter, Segmenter]:
    """A network after a step and one that goes on from it, all weights and statistics apart."""
    settings = ModelSettings(backbone="resnet18", width=8, head_channels=8, pretrained=False)
    old = build_segmenter(settings, (OLD,))
    for tensor in old.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.randn_like(tensor).abs())
    new = copy.deepcopy(old)
    new.add_classifier(NEW)
    return new, old.eval().requires_grad_(False)


def moved(model: Segmenter) -> dict[str, Tensor]:
    """Moves everything in ``model``, as training does, and gives a copy of its tensors."""
    for tensor in model.state_dict().values():
        tensor.add_(torch.randn_like(tensor) if tensor.is_floating_point() else 7)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def trained(name: str, **settings: Any) -> tuple[Method, dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """A method after its step: what it was, and the tensors of the old, the trained and the saved model."""
    kind = get_method(name)
    method = kind(kind.Settings(**settings), StepContext(1, (OLD, NEW)))
    model, old = models()
    method.initialise(model, old)
    before = moved(model)
    finish(method, model, old)
    return method, dict(old.state_dict()), before, dict(model.state_dict())


def finish(method: Method, model: Segmenter, old: Segmenter | None) -> None:
    """What the engine does after the last iteration."""
    unused: Any = None
    setup = StepSetup(method.context, model, old, method, unused, unused)
    assert finish_step(setup, Process(torch.device("cpu")), data_of(), averaged=False) is model


@pytest.mark.parametrize("name", ["ft", *EWF])
def test_old_and_trained_weights_are_averaged_as_the_formula_says(name: str) -> None:
    method, old, before, after = trained(name, fusion="auto")
    share = math.sqrt(NEW / (OLD + NEW))
    assert fusion_share(method.settings, method.context) == share
    statistics = [key for key in old if key.endswith(("running_mean", "running_var"))]
    assert statistics
    for key, value in old.items():
        if value.is_floating_point():
            torch.testing.assert_close(after[key], (1 - share) * value + share * before[key])
            assert not torch.equal(after[key], before[key]), key
        else:
            assert torch.equal(after[key], before[key]), key
    for key in set(after) - set(old):
        assert key.startswith("cls.1.")
        assert torch.equal(after[key], before[key])


@pytest.mark.parametrize("name", EWF)
def test_a_share_of_1_changes_nothing_and_0_undoes_the_step(name: str) -> None:
    _, _, before, after = trained(name, fusion=1.0)
    assert_same_tensors(after, before)
    _, old, before, after = trained(name, fusion=0.0)
    fused = {key: value for key, value in old.items() if value.is_floating_point()}
    assert_same_tensors({key: after[key] for key in fused}, fused)
    assert torch.equal(after["cls.1.weight"], before["cls.1.weight"])


def test_the_previous_model_stays_as_it_is() -> None:
    model, old = models()
    kept = {key: value.clone() for key, value in old.state_dict().items()}
    method = MibEwf(MibEwf.Settings(), StepContext(1, (OLD, NEW)))
    method.initialise(model, old)
    moved(model)
    finish(method, model, old)
    assert_same_tensors(old.state_dict(), kept)


def test_nothing_is_fused_at_step_0() -> None:
    model, _ = models()
    method = PlopEwf(PlopEwf.Settings(), StepContext(0, (OLD + NEW,)))
    method.initialise(model, None)
    before = moved(model)
    finish(method, model, None)
    assert_same_tensors(model.state_dict(), before)


@pytest.mark.parametrize(("classes", "share"), [((16, 1), math.sqrt(1 / 17)), ((16, 1, 1), math.sqrt(1 / 18))])
def test_the_share_is_that_of_the_step_s_classes(classes: tuple[int, ...], share: float) -> None:
    method = MibEwf(MibEwf.Settings(), StepContext(len(classes) - 1, classes))
    assert fusion_share(method.settings, method.context) == share


def test_where_steps_bring_domains_auto_keeps_all_of_the_training() -> None:
    settings = resolve_settings(
        {"method.name": "mib-ewf", "data.dataset": "cityscapes-domain"}, environment={}, preset="none"
    ).settings.method
    assert isinstance(settings, MibEwf.Settings)
    assert settings.cross_entropy == "plain"
    assert fusion_share(settings, StepContext(1, (19,), shared=True)) == 1
    assert fusion_share(MibEwf.Settings(fusion=0.5), StepContext(1, (19,), shared=True)) == 0.5


@pytest.mark.parametrize("name", EWF)
def test_the_method_underneath_has_all_its_settings_and_starts_as_ever(name: str) -> None:
    kind, base = get_method(name), get_method(EWF[name])
    assert kind.like == EWF[name]
    assert set(kind.Settings.model_fields) == set(base.Settings.model_fields)
    ours, theirs = kind.Settings().model_dump(), base.Settings().model_dump()
    assert {key: ours[key] for key in theirs if key not in OWN} == {
        key: value for key, value in theirs.items() if key not in OWN
    }
    assert dict(kind.for_domains) == dict(base.for_domains)
    model, old = models()
    same = copy.deepcopy(model)
    kind(kind.Settings(), StepContext(1, (OLD, NEW))).initialise(model, old)
    base(base.Settings(), StepContext(1, (OLD, NEW))).initialise(same, old)
    assert_same_tensors(model.state_dict(), same.state_dict())
    assert not torch.equal(model.state_dict()["cls.0.bias"], old.state_dict()["cls.0.bias"])


def test_tensors_of_another_type_are_fused_in_that_of_the_new_model() -> None:
    new, old = {"w": torch.ones(2)}, {"w": torch.zeros(2, dtype=torch.float64)}
    fuse(new, old, 0.25)
    assert new["w"].dtype == torch.float32
    assert new["w"].tolist() == [0.25, 0.25]


@pytest.mark.parametrize("wrong", [{"fusion": 1.5}, {"fusion": -0.1}, {"fusion": "half"}, {"name": "mib"}])
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        MibEwf.Settings(**wrong)
