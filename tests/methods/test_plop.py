from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from drawn_outputs import NEW, OLD, data_of, outputs, step_pass
from parity_data import inputs
from pydantic import ValidationError
from rich.console import Console
from running import run_scenario
from tensors import assert_finite, assert_same_tensors
from torch import Tensor

from plopcli.data.batches import Batch
from plopcli.losses.classification import cross_entropy
from plopcli.methods import METHODS, get_method
from plopcli.methods.base import CROSS_ENTROPY, Method, StepContext
from plopcli.methods.plop import Plop, PlopSettings
from plopcli.models.segmenter import Outputs, build_segmenter
from plopcli.resolution.layers import Resolved
from plopcli.settings.sections import ModelSettings


def plop(**settings: Any) -> Plop:
    """PLOP at a step that adds 2 classes to 4."""
    return Plop(PlopSettings(**settings), StepContext(1, (OLD, NEW)))


def prepared(**settings: Any) -> Plop:
    """PLOP whose thresholds are estimated."""
    method = plop(**settings)
    labels = torch.from_numpy(inputs.label_maps("plop", 4, 32, [4, 5]))
    method.before_step(step_pass([3 * torch.randn(4, OLD, 32, 32)], [labels]))
    return method


@pytest.mark.parametrize(
    "name", [name for name, kind in METHODS.items() if kind.step_0_key(kind.Settings()) == CROSS_ENTROPY]
)
def test_step_0_is_plain_cross_entropy(name: str) -> None:
    kind = get_method(name)
    method: Method = kind(kind.Settings(), StepContext(0, (OLD,)))
    batch = Batch(torch.zeros(2, 3, 16, 16), torch.from_numpy(inputs.label_maps("ce", 2, 16, [1, 2, 3])))
    new = outputs(OLD)

    method.before_step(data_of())
    terms = method.losses(batch, new, None)

    assert not method.uses_old_model
    assert not method.uses_features
    assert list(terms) == ["classification"]
    torch.testing.assert_close(terms["classification"], cross_entropy(new.logits, batch.labels).mean())
    assert method.carried_state() == {}
    assert method.report() == {}


@pytest.mark.parametrize("estimator", ["reference", "exact"])
@pytest.mark.parametrize("without_background", ["zero", "one"])
@pytest.mark.parametrize("labels", ["ignored", "new", "background", "one without background"])
def test_losses_and_gradients_are_finite_on_degenerate_labels(
    estimator: str, without_background: str, labels: str
) -> None:
    method = prepared(estimator=estimator, adaptive_without_background=without_background)
    truth = torch.from_numpy(inputs.label_maps("degenerate", 2, 16, [4, 5]))
    if labels == "one without background":
        truth[0] = OLD
    else:
        truth[:] = {"ignored": 255, "new": OLD, "background": 0}[labels]
    new = outputs(OLD + NEW, trained=True, scale=30)

    terms = method.losses(Batch(torch.zeros(2, 3, 16, 16), truth), new, outputs(OLD, scale=30))
    sum(terms.values()).backward()

    assert set(terms) == {"classification", "pod"}
    assert_finite(terms)
    assert_finite(method.diagnostics)
    assert not [name for name, value in method.diagnostics.items() if value.requires_grad]
    for tensor in (new.logits, new.small, *new.features):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
    assert new.logits.grad is not None
    teaches = labels in ("background", "one without background") or (labels == "new" and without_background == "one")
    assert new.logits.grad.any() == teaches


def test_each_image_is_weighed_by_its_own_share_of_pseudo_labels() -> None:
    method = plop()
    fixed = {"thresholds": torch.full((OLD + NEW,), 0.01), "pixels": torch.ones(6), "accepted": torch.ones(6)}
    method.load_carried_state(fixed, same_step=True)
    new, old = outputs(OLD + NEW), outputs(OLD)
    labels = torch.zeros(2, 16, 16, dtype=torch.int64)
    labels[1, 8:] = OLD
    old.logits[:] = 0  # unsure everywhere, but
    old.logits[0, 1] = 50  # in the first image, and
    old.logits[1, 2, :4] = 50  # in half of the second one's background

    terms = method.losses(Batch(torch.zeros(2, 3, 16, 16), labels), new, old)

    first = cross_entropy(new.logits[:1], torch.ones_like(labels[:1])).mean()
    labels[1, :4], labels[1, 4:8] = 2, 255
    second = cross_entropy(new.logits[1:], labels[1:]).mean()
    torch.testing.assert_close(terms["classification"], (first + 0.5 * second) / 2)
    assert method.diagnostics["accepted"].item() == pytest.approx(320 / 384)
    assert method.diagnostics["adaptive_factor"].item() == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("settings", "pod", "pseudo", "factor"),
    [
        ({}, True, True, True),
        ({"adaptive_factor": False}, True, True, False),
        ({"pseudo": "off"}, True, False, False),
        ({"pod_factor": 0}, True, True, True),
        ({"pod": "off"}, False, True, True),
        ({"pod_factor": 0, "pod_logits": "off"}, False, True, True),
        ({"pod_factor": 0, "pod_logits_factor": 0}, False, True, True),
        ({"pod_factor": 0, "pod_logits": "off", "pseudo": "off"}, False, False, False),
    ],
)
def test_each_part_can_be_switched_off(settings: dict[str, Any], pod: bool, pseudo: bool, factor: bool) -> None:
    method = prepared(**settings)
    batch = Batch(torch.zeros(2, 3, 16, 16), torch.from_numpy(inputs.label_maps("off", 2, 16, [4, 5])))
    new, old = outputs(OLD + NEW), outputs(OLD)

    terms = method.losses(batch, new, old)

    plain = cross_entropy(new.logits, batch.labels).mean()
    assert ("pod" in terms) == pod == method.uses_features
    assert method.uses_old_model == (pod or pseudo)
    assert (method.thresholds is not None) == pseudo == ("accepted" in method.diagnostics)
    assert bool(terms["classification"] == plain) != pseudo
    assert ("adaptive_factor" in method.diagnostics) == factor


@pytest.mark.parametrize("init", ["balanced", "default"])
def test_initialisation_of_the_new_classifier(init: str) -> None:
    settings = ModelSettings(backbone="resnet18", width=8, head_channels=8, pretrained=False)
    model = build_segmenter(settings, (OLD, NEW))
    before = {name: value.clone() for name, value in model.cls.state_dict().items()}
    plop(init=init).initialise(model, None)
    after = model.cls.state_dict()

    if init == "default":
        assert_same_tensors(after, before)
        return
    bias = before["0.bias"][0] - math.log(NEW + 1)
    torch.testing.assert_close(after["0.bias"], torch.cat([bias[None], before["0.bias"][1:]]))
    torch.testing.assert_close(after["1.bias"], bias.expand(NEW))
    torch.testing.assert_close(after["1.weight"], before["0.weight"][:1].expand(NEW, -1, -1, -1))
    assert torch.equal(after["0.weight"], before["0.weight"])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"pseudo": "median", "pod": "global"},
        {"pseudo": "threshold", "pseudo_threshold": 0.5, "pseudo_rejected": "unbiased", "pod": "spatial"},
        {"pseudo": "naive", "learn_background": False, "pod_prepro": "none"},
        {"pseudo": "confidence", "pod_logits_size": "large"},
    ],
)
def test_a_step_never_waits_for_the_device(settings: dict[str, Any]) -> None:
    """Reading a value of a meta tensor raises, as it would stall a GPU."""
    method = prepared(**settings)

    def to_meta(given: Outputs, trained: bool) -> Outputs:
        def move(tensor: Tensor) -> Tensor:
            return torch.empty_like(tensor, device="meta", requires_grad=trained)

        return Outputs(move(given.logits), move(given.small), tuple(move(f) for f in given.features))

    batch = Batch(*(torch.zeros(2, 16, 16, dtype=torch.int64, device="meta") for _ in range(2)))
    terms = method.losses(batch, to_meta(outputs(OLD + NEW), True), to_meta(outputs(OLD), False))
    sum(terms.values()).backward()
    with pytest.raises(RuntimeError, match="meta"):
        terms["pod"].item()


def test_a_run_takes_other_rules_and_modes(tiny: Callable[..., Resolved], quiet: Console, tmp_path: Path) -> None:
    results = run_scenario(
        tiny(
            method__name="plop",
            method__pseudo="median",
            method__estimator="exact",
            method__pseudo_bins="2000",
            method__threshold_cap="0.8",
            method__pod="global",
            method__pod_prepro="none",
            method__pod_apply="head",
        ),
        console=quiet,
    )
    prepared = results.steps[1].content()["preparation"]
    assert (prepared["pseudo"], prepared["estimator"]) == ("median", "exact")
    assert prepared["without_effect"] == ["adaptive_factor"]
    assert max(prepared["thresholds"]) <= 0.8
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {"accepted", "pod_5", "pod_logits"} == rows[-1]["diagnostics"].keys()


@pytest.mark.parametrize("wrong", [{"init": "zero"}, {"name": "ft"}, {"pods": 1}])
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PlopSettings(**wrong)
