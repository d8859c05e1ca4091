from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parity_data import inputs
from pydantic import ValidationError
from torch import Tensor

from plopcli.errors import DataError
from plopcli.losses.classification import cross_entropy
from plopcli.methods import METHODS, get_method
from plopcli.methods.base import Batch, Method, StepContext, StepPass
from plopcli.methods.plop import Plop, PlopSettings
from plopcli.models.segmenter import Outputs, build_segmenter
from plopcli.settings.sections import ModelSettings

GOLDEN = Path(__file__).parents[1] / "parity_data"
OLD, NEW = 4, 2


def plop(**settings: Any) -> Plop:
    """PLOP at a step that adds 2 classes to 4."""
    return Plop(PlopSettings(**settings), StepContext(1, (OLD, NEW)))


def outputs(classes: int, size: int = 16, trained: bool = False, scale: float = 3.0) -> Outputs:
    """Random outputs of a model with five feature maps."""

    def draw(*shape: int) -> Tensor:
        return (scale * torch.randn(2, *shape)).requires_grad_(trained)

    features = tuple(draw(3, side, side) for side in (8, 4, 4, 4, 4))
    return Outputs(draw(classes, size, size), draw(classes, 4, 4), features)


def step_pass(logits: list[Tensor], labels: list[Tensor]) -> StepPass:
    """A pass over images that are themselves the previous model's logits."""

    def batches() -> Iterator[Batch]:
        return (Batch(z, y) for z, y in zip(logits, labels, strict=True))

    return StepPass(batches, lambda images: Outputs(images, images), lambda tensor: tensor)


def prepared(**settings: Any) -> Plop:
    """PLOP whose thresholds are estimated."""
    method = plop(**settings)
    labels = torch.from_numpy(inputs.label_maps("plop", 4, 32, [4, 5]))
    method.before_step(step_pass([3 * torch.randn(4, OLD, 32, 32)], [labels]))
    return method


@pytest.mark.parametrize(
    "name", [name for name, kind in METHODS.items() if kind.describe_first_step(kind.Settings()) == "cross-entropy"]
)
def test_step_0_is_plain_cross_entropy(name: str) -> None:
    kind = get_method(name)
    method: Method = kind(kind.Settings(), StepContext(0, (OLD,)))
    batch = Batch(torch.zeros(2, 3, 16, 16), torch.from_numpy(inputs.label_maps("ce", 2, 16, [1, 2, 3])))
    new = outputs(OLD)

    method.before_step(StepPass(lambda: pytest.fail("no pass is needed"), pytest.fail, lambda t: t))
    terms = method.losses(batch, new, None)

    assert not method.uses_old_model
    assert not method.uses_features
    assert list(terms) == ["classification"]
    torch.testing.assert_close(terms["classification"], cross_entropy(new.logits, batch.labels).mean())
    assert method.state_dict() == {}
    assert method.report() == {}


@pytest.mark.parity
@pytest.mark.parametrize("case", inputs.LOSS_CASES)
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("pod_plop", {}),
        ("pod_10-1", {"pod_logits_factor": 0.00001}),
        ("pod_no_schedule", {"pod_schedule": False, "pod_logits": "trim"}),
    ],
)
def test_pod_term(case: str, name: str, settings: dict[str, Any]) -> None:
    given = inputs.loss_inputs(case)
    batch, old_classes, new_classes, _ = inputs.LOSS_CASES[case]
    method = Plop(PlopSettings(pseudo="off", **settings), StepContext(1, (old_classes, new_classes)))

    def result(prefix: str, small: str) -> Outputs:
        features = tuple(torch.from_numpy(f) for f in given[f"{prefix}features"])
        return Outputs(torch.from_numpy(given[f"{prefix}logits"]), torch.from_numpy(given[small]), features)

    labels = torch.from_numpy(given["labels"])
    terms = method.losses(
        Batch(torch.zeros(batch, 3, 1, 1), labels), result("", "new_small"), result("old_", "old_small")
    )

    assert terms["pod"].item() == pytest.approx(np.load(GOLDEN / "losses.npz")[f"{case}/{name}"], rel=1e-5)
    layers = [value for key, value in method.diagnostics.items() if key.startswith("pod_")]
    assert len(layers) == 6
    torch.testing.assert_close(sum(layers), terms["pod"])


@pytest.mark.parity
@pytest.mark.parametrize("case", ["a", "b"])
def test_thresholds_after_a_pass_over_the_step(case: str) -> None:
    golden = np.load(GOLDEN / "median.npz")
    classes = tuple(int(c) for c in golden[f"{case}/classes"])
    logits, labels = inputs.median_inputs(case, sum(classes[:-1]), sum(classes))
    method = Plop(PlopSettings(), StepContext(len(classes) - 1, classes))

    method.before_step(step_pass([torch.from_numpy(z) for z in logits], [torch.from_numpy(y) for y in labels]))

    report = method.report()
    np.testing.assert_allclose(report["thresholds"], golden[f"{case}/thresholds"], rtol=0, atol=1e-6 * 0.02)
    assert report["estimator"] == "reference"
    assert sum(report["pixels"]) == sum((y == 0).sum() for y in labels)
    assert report["accepted"][-1] is None  # a new class is never predicted


@pytest.mark.parametrize("estimator", ["reference", "exact"])
def test_thresholds_of_two_processes_are_those_of_one(estimator: str) -> None:
    logits = [scale * torch.randn(2, OLD, 32, 32) for scale in (1.0, 3.0)]
    labels = [torch.from_numpy(inputs.label_maps(f"rank{i}", 2, 32, [4, 5])) for i in range(2)]
    single = plop(estimator=estimator)
    single.before_step(step_pass(logits, labels))

    # The first process's reduction is where it meets the second's histogram.
    histograms: list[Tensor] = []
    second = step_pass(logits[1:], labels[1:])
    plop(estimator=estimator).before_step(
        StepPass(second.batches, second.old_outputs, lambda t: (histograms.append(t.clone()), t)[1])
    )
    first = step_pass(logits[:1], labels[:1])
    method = plop(estimator=estimator)
    method.before_step(StepPass(first.batches, first.old_outputs, lambda t: t + histograms[0]))

    assert method.thresholds is not None
    assert single.thresholds is not None
    assert torch.equal(method.thresholds, single.thresholds)
    assert method.report() == single.report()


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
    assert all(term.isfinite() for term in terms.values())
    assert all(value.isfinite() and not value.requires_grad for value in method.diagnostics.values())
    for tensor in (new.logits, new.small, *new.features):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
    assert new.logits.grad is not None
    teaches = labels in ("background", "one without background") or (labels == "new" and without_background == "one")
    assert new.logits.grad.any() == teaches


def test_each_image_is_weighed_by_its_own_share_of_pseudo_labels() -> None:
    method = plop()
    fixed = {"thresholds": torch.full((OLD + NEW,), 0.01), "pixels": torch.ones(6), "accepted": torch.ones(6)}
    method.load_state_dict(fixed, same_step=True)
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


def test_settings_of_the_pod_term_change_it() -> None:
    batch = Batch(torch.zeros(2, 3, 16, 16), torch.zeros(2, 16, 16, dtype=torch.int64))
    new, old = outputs(OLD + NEW), outputs(OLD)

    def pod(**settings: Any) -> float:
        return plop(pseudo="off", **settings).losses(batch, new, old)["pod"].item()

    both, features, logits = pod(), pod(pod_logits_factor=0), pod(pod_factor=0)
    assert both == pytest.approx(features + logits)
    assert pod(pod_logits="off") == pytest.approx(features * 6 / 5)  # five layers instead of six
    assert pod(pod_logits="trim") != both
    assert pod(pod_scales=(1, 2)) < both
    assert pod(pod_schedule=False) * math.sqrt((OLD + NEW) / NEW) == pytest.approx(both)


def test_threshold_floor_is_the_least_threshold() -> None:
    thresholds = prepared(threshold_floor=0.4).thresholds
    assert thresholds is not None
    assert (thresholds >= 0.4).all()


@pytest.mark.parametrize("init", ["balanced", "default"])
def test_initialisation_of_the_new_classifier(init: str) -> None:
    settings = ModelSettings(backbone="resnet18", width=8, head_channels=8, pretrained=False)
    model = build_segmenter(settings, (OLD, NEW))
    before = {name: value.clone() for name, value in model.cls.state_dict().items()}
    plop(init=init).initialise(model, None)
    after = model.cls.state_dict()

    if init == "default":
        assert all(torch.equal(after[name], value) for name, value in before.items())
        return
    bias = before["0.bias"][0] - math.log(NEW + 1)
    torch.testing.assert_close(after["0.bias"], torch.cat([bias[None], before["0.bias"][1:]]))
    torch.testing.assert_close(after["1.bias"], bias.expand(NEW))
    torch.testing.assert_close(after["1.weight"], before["0.weight"][:1].expand(NEW, -1, -1, -1))
    assert torch.equal(after["0.weight"], before["0.weight"])


def test_a_resumed_step_goes_on_with_its_thresholds() -> None:
    method, resumed = prepared(), plop()
    resumed.load_state_dict(method.state_dict(), same_step=True)
    batch = Batch(torch.zeros(2, 3, 16, 16), torch.from_numpy(inputs.label_maps("resume", 2, 16, [4, 5])))
    new, old = outputs(OLD + NEW), outputs(OLD)
    assert resumed.losses(batch, new, old) == method.losses(batch, new, old)
    assert resumed.report() == method.report()


def test_the_next_step_does_not_inherit_thresholds() -> None:
    following = Plop(PlopSettings(), StepContext(2, (OLD, NEW, 1)))
    following.load_state_dict(prepared().state_dict(), same_step=False)
    assert following.thresholds is None


def test_the_report_of_thresholds_that_are_not_finite_is_json() -> None:
    method = plop()
    state = {"thresholds": torch.tensor([math.inf, math.nan, 0.5, 0, 0, 0]), "pixels": torch.arange(6)}
    method.load_state_dict(state | {"accepted": torch.zeros(6).double() / 0}, same_step=True)
    report = json.loads(json.dumps(method.report(), allow_nan=False))
    assert report["thresholds"][:3] == ["inf", "nan", 0.5]
    assert report["accepted"] == [None] * 6


@pytest.mark.parametrize("state", [{}, {"thresholds": torch.zeros(3)}, {"thresholds": [0.1] * 6}])
def test_a_state_without_fitting_thresholds_is_refused(state: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="thresholds"):
        plop().load_state_dict(state, same_step=True)


def test_a_step_never_waits_for_the_device() -> None:
    """Reading a value of a meta tensor raises, as it would stall a GPU."""
    method = prepared()

    def to_meta(given: Outputs, trained: bool) -> Outputs:
        def move(tensor: Tensor) -> Tensor:
            return torch.empty_like(tensor, device="meta", requires_grad=trained)

        return Outputs(move(given.logits), move(given.small), tuple(move(f) for f in given.features))

    batch = Batch(*(torch.zeros(2, 16, 16, dtype=torch.int64, device="meta") for _ in range(2)))
    terms = method.losses(batch, to_meta(outputs(OLD + NEW), True), to_meta(outputs(OLD), False))
    sum(terms.values()).backward()
    with pytest.raises(RuntimeError, match="meta"):
        terms["pod"].item()


@pytest.mark.parametrize(
    "wrong",
    [
        {"pod_factor": -1},
        {"pod_logits_factor": -0.1},
        {"pod_logits": "both"},
        {"pod_scales": ()},
        {"pod_scales": (0, 2)},
        {"pseudo": "naive"},
        {"estimator": "median"},
        {"threshold_floor": 1.5},
        {"adaptive_without_background": "two"},
        {"init": "zero"},
        {"name": "ft"},
        {"pod": 1},
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PlopSettings(**wrong)
