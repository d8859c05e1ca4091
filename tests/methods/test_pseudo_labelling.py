from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawn_outputs import NEW, OLD, data_of, outputs, step_pass
from parity_data import inputs
from pydantic import ValidationError
from torch import Tensor

from plopcli.data.batches import Batch
from plopcli.errors import DataError
from plopcli.losses.classification import IGNORED, cross_entropy
from plopcli.losses.pseudo_labels import probability_histogram, pseudo_label
from plopcli.losses.thresholds import class_thresholds
from plopcli.losses.unbiased import unbiased_cross_entropy
from plopcli.methods.base import StepContext, StepData
from plopcli.methods.plop import Plop, PlopSettings
from plopcli.models.segmenter import Outputs

GOLDEN = Path(__file__).parents[1] / "parity_data"
#: Every rule, with what it needs.
RULES: dict[str, dict[str, Any]] = {
    "entropy": {"pseudo": "entropy"},
    "median": {"pseudo": "median"},
    "threshold": {"pseudo": "threshold", "pseudo_threshold": 0.7},
    "naive": {"pseudo": "naive"},
    "confidence": {"pseudo": "confidence"},
}
REJECTING = ["entropy", "median", "threshold"]


def plop(step: int = 1, **settings: Any) -> Plop:
    """PLOP without POD, at a step that adds 2 classes to 4."""
    classes = (OLD, NEW) if step == 1 else (*[1] * OLD, NEW)
    return Plop(PlopSettings(pod="off", **settings), StepContext(step, classes))


def a_pass() -> StepData:
    labels = torch.from_numpy(inputs.label_maps("plop", 4, 32, [4, 5]))
    return step_pass([3 * torch.randn(4, OLD, 32, 32)], [labels])


def prepared(**settings: Any) -> Plop:
    """PLOP whose thresholds, if the rule has any, are estimated."""
    method = plop(**settings)
    method.before_step(a_pass())
    return method


def draw() -> tuple[Batch, Outputs, Outputs]:
    """A batch, and outputs of the new and the old model."""
    labels = torch.from_numpy(inputs.label_maps("rules", 2, 16, [4, 5]))
    return Batch(torch.zeros(2, 3, 16, 16), labels), outputs(OLD + NEW), outputs(OLD)


def classification(method: Plop, batch: Batch, new: Outputs, old: Outputs) -> Tensor:
    return method.losses(batch, new, old)["classification"]


@pytest.mark.parity
@pytest.mark.parametrize(("case", "pseudo"), [("a", "entropy"), ("b", "entropy"), ("c", "median")])
def test_thresholds_after_a_pass_over_the_step(case: str, pseudo: str) -> None:
    golden = np.load(GOLDEN / "median.npz")
    classes = tuple(int(c) for c in golden[f"{case}/classes"])
    logits, labels = inputs.median_inputs(case, sum(classes[:-1]), sum(classes))
    method = Plop(PlopSettings(pseudo=pseudo), StepContext(len(classes) - 1, classes))

    method.before_step(step_pass([torch.from_numpy(z) for z in logits], [torch.from_numpy(y) for y in labels]))

    report, expected = method.report(), golden[f"{case}/thresholds"]
    np.testing.assert_allclose(report["thresholds"], expected, rtol=0, atol=1e-6 * expected.max())
    assert report["estimator"] == "reference"
    assert sum(report["pixels"]) == sum((y == 0).sum() for y in labels)
    assert report["accepted"][-1] is None  # a new class is never predicted


@pytest.mark.parametrize("estimator", ["reference", "exact"])
@pytest.mark.parametrize("pseudo", ["entropy", "median"])
@pytest.mark.parametrize("bins", [None, 1_500])
def test_thresholds_of_two_processes_are_those_of_one(estimator: str, pseudo: str, bins: int | None) -> None:
    settings = {"estimator": estimator, "pseudo": pseudo, "pseudo_bins": bins}
    logits = [scale * torch.randn(2, OLD, 32, 32) for scale in (1.0, 3.0)]
    labels = [torch.from_numpy(inputs.label_maps(f"rank{i}", 2, 32, [4, 5])) for i in range(2)]
    single = plop(**settings)
    single.before_step(step_pass(logits, labels))

    # The first process's reduction is where it meets the second's histogram.
    histograms: list[Tensor] = []
    second = step_pass(logits[1:], labels[1:])
    plop(**settings).before_step(
        data_of(second.batches, second.old_outputs, lambda t: (histograms.append(t.clone()), t)[1])
    )
    first = step_pass(logits[:1], labels[:1])
    method = plop(**settings)
    method.before_step(data_of(first.batches, first.old_outputs, lambda t: t + histograms[0]))

    assert method.thresholds is not None
    assert single.thresholds is not None
    assert torch.equal(method.thresholds, single.thresholds)
    assert method.report() == single.report()


@pytest.mark.parametrize("estimator", ["reference", "exact"])
def test_the_reported_shares_are_those_that_get_accepted(estimator: str) -> None:
    """In the batches that thresholds were estimated from, as finely as the bins tell."""
    logits, labels = 2 * torch.randn(2, OLD, 64, 64), torch.zeros(2, 64, 64, dtype=torch.int64)
    for pseudo in ("entropy", "median"):
        method = plop(pseudo=pseudo, estimator=estimator, pseudo_bins=5_000, threshold_step=0.05)
        method.before_step(step_pass([logits], [labels]))
        assert method.labeller is not None
        accepted = method.labeller.label(Batch(logits, labels), logits).accepted
        predicted = logits.argmax(1)
        for c, share in enumerate(method.report()["accepted"][:OLD]):
            assert accepted[predicted == c].double().mean().item() == pytest.approx(share, abs=0.01)


def test_rules_without_thresholds_need_no_pass() -> None:
    for rule in ("threshold", "naive", "confidence"):
        method = plop(**RULES[rule])
        method.before_step(data_of())
        assert method.thresholds is None
        assert method.carried_state() == {}
        method.load_carried_state({}, same_step=True)
        assert method.uses_old_model


@pytest.mark.parametrize("estimator", ["reference", "exact"])
@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("rule", RULES)
def test_classification_is_the_cross_entropy_of_plainly_made_labels(rule: str, adaptive: bool, estimator: str) -> None:
    method = prepared(**RULES[rule], adaptive_factor=adaptive, estimator=estimator)
    batch, new, old = draw()
    probability, predicted = old.logits.softmax(1).max(1)
    background = batch.labels < OLD
    if rule == "entropy":
        assert method.thresholds is not None
        accepted = pseudo_label(old.logits, batch.labels, method.thresholds, estimator).accepted
    elif rule == "median":
        assert method.thresholds is not None
        accepted = background & (probability >= method.thresholds[predicted])
    else:
        accepted = background & (probability >= (0.7 if rule == "threshold" else 0))
    labels = batch.labels.clone()
    labels[background] = IGNORED
    labels[accepted] = predicted[accepted]

    loss = cross_entropy(new.logits, labels)
    if rule == "confidence":
        loss = loss * torch.where(background, probability, 1.0)
    if rule == "entropy" and adaptive:
        loss = loss * (accepted.sum((1, 2)) / background.sum((1, 2)))[:, None, None]
    torch.testing.assert_close(classification(method, batch, new, old), loss.mean())
    torch.testing.assert_close(method.diagnostics["accepted"], accepted.sum() / background.sum())
    assert ("adaptive_factor" in method.diagnostics) == (rule == "entropy" and adaptive)
    assert accepted.any()
    assert (accepted.sum() < background.sum()) == (rule in REJECTING)


def test_rules_differ() -> None:
    batch, new, old = draw()
    passes = a_pass()
    values = []
    for settings in RULES.values():
        method = plop(**settings)
        method.before_step(passes)
        values.append(classification(method, batch, new, old).item())
    assert len(set(values)) == len(RULES)


@pytest.mark.parametrize("rule", REJECTING)
def test_rejected_background_can_be_taught_as_any_old_class(rule: str) -> None:
    settings = {**RULES[rule], "adaptive_factor": False}
    batch, new, old = draw()
    passes = a_pass()
    ignoring, teaching = plop(**settings), plop(**settings, pseudo_rejected="unbiased")
    for method in (ignoring, teaching):
        method.before_step(passes)
    ignored, taught = (classification(method, batch, new, old) for method in (ignoring, teaching))

    assert teaching.labeller is not None
    pseudo = teaching.labeller.label(batch, old.logits)
    rejected = pseudo.background & ~pseudo.accepted
    unbiased = unbiased_cross_entropy(new.logits, torch.zeros_like(batch.labels), OLD)
    assert rejected.any()
    torch.testing.assert_close(taught - ignored, (unbiased * rejected).mean())


@pytest.mark.parametrize("rule", [*RULES, "off"])
def test_background_need_not_be_learned(rule: str) -> None:
    settings = {**RULES.get(rule, {"pseudo": "off"}), "adaptive_factor": False}
    batch, new, old = draw()
    method = prepared(**settings, learn_background=False)
    if method.labeller is None:
        labels, weights = batch.labels, None
    else:
        labels, weights = (pseudo := method.labeller.label(batch, old.logits)).labels, pseudo.weights
    assert (labels == 0).any()
    loss = cross_entropy(new.logits, labels) * (labels != 0) * (1 if weights is None else weights)
    torch.testing.assert_close(classification(method, batch, new, old), loss.mean())


def test_step_0_learns_its_background() -> None:
    batch = Batch(torch.zeros(2, 3, 16, 16), torch.zeros(2, 16, 16, dtype=torch.int64))
    new = outputs(OLD)
    method = Plop(PlopSettings(learn_background=False), StepContext(0, (OLD,)))
    assert method.losses(batch, new, None)["classification"] == cross_entropy(new.logits, batch.labels).mean()


def test_the_adaptive_factor_has_a_least_value() -> None:
    batch, new, old = draw()
    passes = a_pass()
    values = {}
    for least in (0.0, 0.9, 1.0):
        method = plop(adaptive_min_factor=least)
        method.before_step(passes)
        values[least] = (classification(method, batch, new, old), method.diagnostics["adaptive_factor"])
    unweighted = plop(adaptive_factor=False)
    unweighted.before_step(passes)
    assert values[0.0][1] < 0.9
    assert values[0.9][1] == pytest.approx(0.9)
    torch.testing.assert_close(values[1.0][0], classification(unweighted, batch, new, old))
    torch.testing.assert_close(values[0.9][0], 0.9 * values[1.0][0])


def test_thresholds_have_a_floor_or_a_cap_that_moves_with_the_steps() -> None:
    for step, floor in ((1, 0.4), (4, 0.55)):
        method = plop(step, threshold_floor=0.35, threshold_step=0.05)
        method.before_step(a_pass())
        assert method.thresholds is not None
        assert method.thresholds.min() == pytest.approx(floor)
    for step, cap in ((1, 0.65), (4, 0.5)):
        method = plop(step, pseudo="median", threshold_cap=0.7, threshold_step=-0.05)
        method.before_step(a_pass())
        assert method.thresholds is not None
        assert method.thresholds.max() == pytest.approx(cap)


@pytest.mark.parametrize("bins", [10, 200])
def test_thresholds_are_read_from_that_many_bins(bins: int) -> None:
    logits, labels = 2 * torch.randn(2, OLD, 8, 8), torch.zeros(2, 8, 8, dtype=torch.int64)
    method = plop(pseudo="median", pseudo_bins=bins, threshold_cap=1)
    method.before_step(step_pass([logits], [labels]))
    expected = class_thresholds(probability_histogram(logits, labels, OLD + NEW, bins), "reference", cap=1.0)
    assert method.thresholds is not None
    torch.testing.assert_close(method.thresholds, expected, equal_nan=True)
    default = plop(pseudo="median", threshold_cap=1)
    default.before_step(step_pass([logits], [labels]))
    assert default.thresholds is not None
    assert not torch.equal(default.thresholds, method.thresholds)


@pytest.mark.parametrize("rule", RULES)
def test_a_resumed_step_goes_on_with_its_thresholds(rule: str) -> None:
    method, resumed = prepared(**RULES[rule]), plop(**RULES[rule])
    resumed.load_carried_state(method.carried_state(), same_step=True)
    batch, new, old = draw()
    assert resumed.losses(batch, new, old) == method.losses(batch, new, old)
    assert resumed.report() == method.report()


def test_the_next_step_does_not_inherit_thresholds() -> None:
    following = Plop(PlopSettings(), StepContext(2, (OLD, NEW, 1)))
    following.load_carried_state(prepared().carried_state(), same_step=False)
    assert following.thresholds is None


def test_the_report_of_thresholds_that_are_not_finite_is_json() -> None:
    method = plop()
    state = {"thresholds": torch.tensor([math.inf, math.nan, 0.5, 0, 0, 0]), "pixels": torch.arange(6)}
    method.load_carried_state(state | {"accepted": torch.zeros(6).double() / 0}, same_step=True)
    report = json.loads(json.dumps(method.report(), allow_nan=False))
    assert report["thresholds"][:3] == ["inf", "nan", 0.5]
    assert report["accepted"] == [None] * 6


@pytest.mark.parametrize("state", [{}, {"thresholds": torch.zeros(3)}, {"thresholds": [0.1] * 6}])
@pytest.mark.parametrize("rule", ["entropy", "median"])
def test_a_state_without_fitting_thresholds_is_refused(state: dict[str, Any], rule: str) -> None:
    with pytest.raises(DataError, match="thresholds"):
        plop(**RULES[rule]).load_carried_state(state, same_step=True)


def test_the_report_names_the_rule_and_what_has_no_effect() -> None:
    reports = {rule: prepared(**settings).report() for rule, settings in RULES.items()}
    assert {rule: report["pseudo"] for rule, report in reports.items()} == {rule: rule for rule in RULES}
    assert reports["threshold"]["threshold"] == 0.7
    assert "without_effect" not in reports["entropy"]
    assert all(reports[rule]["without_effect"] == ["adaptive_factor"] for rule in RULES if rule != "entropy")
    exact = prepared(pseudo="naive", estimator="exact", adaptive_factor=False).report()
    assert exact == {"pseudo": "naive", "without_effect": ["estimator"]}
    assert plop(pseudo="off").report() == {}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"pseudo": "threshold_5"}, "confidence"),
        ({"pseudo": "threshold"}, "needs method.pseudo_threshold"),
        ({"pseudo": "threshold", "pseudo_threshold": 5}, "less than or equal to 1"),
        ({"pseudo_threshold": 0.5}, "method.pseudo_threshold belongs to method.pseudo = threshold"),
        ({"pseudo": "median", "threshold_floor": 0.1}, "method.threshold_floor belongs to method.pseudo = entropy"),
        ({"threshold_cap": 0.5}, "method.threshold_cap belongs to method.pseudo = median"),
        ({"pseudo": "naive", "threshold_step": 0.1}, "threshold_step belongs to method.pseudo = entropy or median"),
        ({"pseudo": "confidence", "pseudo_bins": 10}, "pseudo_bins belongs to"),
        ({"pseudo": "naive", "pseudo_rejected": "unbiased"}, "pseudo_rejected belongs to"),
        ({"pseudo": "naive", "adaptive_min_factor": 0.1}, "adaptive_min_factor belongs to"),
        ({"pseudo": "median", "adaptive_without_background": "one"}, "adaptive_without_background belongs to"),
        ({"adaptive_factor": False, "adaptive_min_factor": 0.1}, "needs method.adaptive_factor"),
        ({"estimator": "exact", "pseudo_bins": 999}, "at least 1000"),
        ({"pseudo_bins": 1}, "greater than or equal to 2"),
        ({"pseudo_rejected": "unbiased", "learn_background": False}, "needs learn_background = true"),
        ({"pseudo_rejected": "soft"}, "unbiased"),
        ({"estimator": "median"}, "reference"),
        ({"threshold_floor": 1.5}, "less than or equal to 1"),
        ({"adaptive_without_background": "two"}, "zero"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        PlopSettings(**wrong)


@pytest.mark.parametrize("rule", [*RULES, "off"])
@pytest.mark.parametrize("estimator", ["reference", "exact"])
def test_what_presets_set_goes_with_every_rule(rule: str, estimator: str) -> None:
    settings = RULES.get(rule, {"pseudo": "off"})
    assert PlopSettings(**settings, estimator=estimator, adaptive_factor=True).pseudo == rule


def test_without_pseudo_labels_their_settings_are_free() -> None:
    """As where steps bring domains, which switches them off."""
    given = PlopSettings(pseudo="threshold", pseudo_threshold=0.5, pseudo_rejected="unbiased")
    off = given.model_copy(update=dict(Plop.for_domains))
    assert PlopSettings.model_validate(off.model_dump()) == off
