from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from parity_data import inputs

from plopcli.losses.classification import IGNORED
from plopcli.losses.pseudo_labels import (
    BINS,
    Estimator,
    PseudoLabels,
    accepted_shares,
    adaptive_factor,
    class_thresholds,
    entropy_divisor,
    entropy_histogram,
    exact_entropy,
    exact_median,
    pseudo_label,
    reference_entropy,
    reference_median,
)

GOLDEN = Path(__file__).parents[1] / "parity_data"
ESTIMATORS: list[Estimator] = ["reference", "exact"]


@pytest.mark.parity
@pytest.mark.parametrize("case", inputs.LOSS_CASES)
def test_reference_entropy(case: str) -> None:
    expected = np.load(GOLDEN / "losses.npz")[f"{case}/entropy"]
    entropy = reference_entropy(torch.from_numpy(inputs.loss_inputs(case)["old_logits"]).softmax(1)).numpy()
    np.testing.assert_allclose(entropy, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parity
@pytest.mark.parametrize("case", ["a", "b"])
def test_reference_thresholds(case: str) -> None:
    golden = np.load(GOLDEN / "median.npz")
    classes = golden[f"{case}/classes"]
    total, old = int(classes.sum()), int(classes[:-1].sum())
    if case == "b":
        assert (old, total) == (16, 21)

    batches = zip(*inputs.median_inputs(case, old, total), strict=True)
    histogram = sum(entropy_histogram(torch.from_numpy(z), torch.from_numpy(y), "reference", total) for z, y in batches)
    assert isinstance(histogram, torch.Tensor)
    thresholds = class_thresholds(histogram, "reference", 0.001).numpy()

    np.testing.assert_allclose(thresholds, golden[f"{case}/thresholds"], rtol=0, atol=1e-6 * thresholds.max())
    assert entropy_divisor("reference", total) == pytest.approx(golden[f"{case}/max_value"], rel=1e-6)


def test_exact_entropy_runs_from_certainty_to_the_uniform_distribution() -> None:
    p = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.25] * 4, [0.5, 0.5, 0.0, 0.0]])
    torch.testing.assert_close(exact_entropy(p), torch.tensor([0.0, 1.0, 0.5]))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_one_old_class_is_always_certain(estimator: Estimator) -> None:
    labels = torch.zeros(1, 4, 4, dtype=torch.int64)
    logits = torch.randn(1, 1, 4, 4)
    thresholds = class_thresholds(entropy_histogram(logits, labels, estimator, 2), estimator, 0.001)
    assert pseudo_label(logits, labels, thresholds, estimator).accepted.all()


def reference_histogram(**counts: int) -> list[int]:
    """A histogram of 100 bins: ``b3=5`` puts 5 into bin 3."""
    return [counts.get(f"b{index}", 0) for index in range(100)]


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({}, 0.0),
        ({"b0": 4, "b1": 2}, (0 + 3 / 4) / 100),
        ({"b0": 1, "b1": 3}, (1 + 2 / 3) / 100),  # the true median: 1 + 1 / 3
        ({"b0": 2, "b1": 2, "b2": 2}, (2 + 2 / 2) / 100),
        ({"b0": 4, "b1": 4, "b2": 4}, math.nan),  # half = 6 = 0 + 1 + 2 + 3, at the empty bin 4
        ({"b0": 3_000, "b1": 3_000, "b2": 3_000}, -math.inf),  # the walk ends at 0 + ... + 99 = 4,950
        ({"b0": 3_300, "b1": 3_300, "b2": 3_300}, math.nan),
        ({"b0": 3_301, "b1": 3_301, "b2": 3_301}, math.inf),
        ({"b29": 1_000}, -math.inf),  # int(29 / 100 * 100) is 28: bin 29 is never looked at
        ({"b30": 1_000}, (30 + (500 - 435) / 1_000) / 100),
    ],
)
def test_reference_median_walks_by_indices(counts: dict[str, int], expected: float) -> None:
    assert reference_median(reference_histogram(**counts)) == pytest.approx(expected, nan_ok=True)


def test_thresholds_have_a_floor_and_keep_nan() -> None:
    counts = [{}, {"b0": 3_000, "b1": 3_000, "b2": 3_000}, {"b0": 4, "b1": 4, "b2": 4}, {"b7": 1, "b0": 9}]
    counts.append({"b0": 3_301, "b1": 3_301, "b2": 3_301})
    histogram = torch.tensor([reference_histogram(**row) for row in counts])
    thresholds = class_thresholds(histogram, "reference", 0.001)
    expected = torch.tensor([0.001, 0.001, math.nan, 5 / 9 / 100, math.inf])
    torch.testing.assert_close(thresholds, expected, equal_nan=True)

    shares = accepted_shares(histogram, thresholds)
    expected = torch.tensor([math.nan, 0.1 / 3, 0.0, 0.5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(shares, expected, equal_nan=True)


@pytest.mark.parametrize("scale", [0.5, 2.0, 6.0])
def test_exact_thresholds_are_the_medians_of_the_entropies(scale: float) -> None:
    logits = scale * torch.randn(2, 5, 128, 128)
    labels = torch.from_numpy(inputs.label_maps("exact", 2, 128, [5, 6]))
    thresholds = class_thresholds(entropy_histogram(logits, labels, "exact", 7), "exact", 0.0).numpy()

    p = logits.double().softmax(1)
    entropy, predicted = (-(p * p.log()).sum(1) / math.log(5)).numpy(), p.argmax(1).numpy()
    for c in range(5):
        chosen = entropy[(predicted == c) & (labels.numpy() == 0)]
        low, high = np.quantile(chosen, [0.495, 0.505])
        assert thresholds[c] == pytest.approx(np.quantile(chosen, 0.5), abs=max(1 / BINS["exact"], high - low))
    assert (thresholds[5:] == 0).all()


def test_exact_median_of_dense_values_is_numpy_s_quantile() -> None:
    values = inputs.generator("median").beta(0.3, 4, size=200_000)  # most of them near 0, as entropies are
    counts = np.histogram(values, bins=BINS["exact"], range=(0, 1))[0]
    assert exact_median(counts.tolist()) == pytest.approx(np.quantile(values, 0.5), abs=1 / BINS["exact"])


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_histograms_of_two_processes_add_up_to_the_single_pass(estimator: Estimator) -> None:
    logits, labels = inputs.median_inputs("b", 16, 21)
    pairs = [*zip(logits, labels, strict=True), (np.concatenate(logits), np.concatenate(labels))]
    *parts, whole = (entropy_histogram(torch.from_numpy(z), torch.from_numpy(y), estimator, 21) for z, y in pairs)
    assert whole.shape == (21, BINS[estimator])
    assert torch.equal(parts[0] + (parts[1] + parts[2]), whole)
    assert whole.sum() == sum((y == 0).sum() for y in labels)


def test_only_pixels_labelled_0_are_counted_under_the_class_predicted_for_them() -> None:
    sure = 50 * torch.eye(4)[[2, 2, 1, 0, 3]].T[None, :, None]  # predicts 2, 2, 1, 0, 3
    histogram = entropy_histogram(sure, torch.tensor([[[0, 0, 0, 1, IGNORED]]]), "exact", 6)
    assert histogram[:, 0].tolist() == [0, 1, 2, 0, 0, 0]
    assert histogram.sum() == 3


def test_only_certain_background_gets_pseudo_labels() -> None:
    certain, unsure = [9.0, 0.0, 0.0], [0.0, 0.1, 0.0]
    logits = torch.tensor([[certain, unsure, certain, certain, unsure]]).permute(0, 2, 1)[:, :, None]
    labels = torch.tensor([[[0, 0, 3, IGNORED, 2]]])  # three old classes; 3 is new
    thresholds = torch.tensor([0.5, 0.5, math.nan, 0.001])

    pseudo = pseudo_label(logits, labels, thresholds, "exact")

    assert pseudo.labels.tolist() == [[[0, IGNORED, 3, IGNORED, IGNORED]]]
    assert pseudo.background.tolist() == [[[True, True, False, False, True]]]
    assert pseudo.accepted.tolist() == [[[True, False, False, False, False]]]


@pytest.mark.parametrize(("threshold", "accepted"), [(math.inf, True), (math.nan, False), (-math.inf, False)])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_infinite_and_nan_thresholds(threshold: float, accepted: bool, estimator: Estimator) -> None:
    labels = torch.zeros(1, 3, 3, dtype=torch.int64)
    pseudo = pseudo_label(torch.randn(1, 4, 3, 3), labels, torch.full((5,), threshold), estimator)
    assert pseudo.accepted.all() == accepted
    assert pseudo.accepted.any() == accepted


def test_adaptive_factor_is_the_accepted_share_of_each_image_s_background() -> None:
    background = torch.tensor([[[1, 1, 1, 1]], [[0, 1, 0, 1]], [[0, 0, 0, 0]]], dtype=torch.bool)
    accepted = torch.tensor([[[1, 0, 0, 0]], [[0, 1, 0, 1]], [[0, 0, 0, 0]]], dtype=torch.bool)
    pseudo = PseudoLabels(torch.zeros(3, 1, 4, dtype=torch.int64), background, accepted)
    torch.testing.assert_close(adaptive_factor(pseudo, "zero"), torch.tensor([0.25, 1.0, 0.0]))
    torch.testing.assert_close(adaptive_factor(pseudo, "one"), torch.tensor([0.25, 1.0, 1.0]))
