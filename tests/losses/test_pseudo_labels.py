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
    PROBABILITY_BINS,
    PseudoLabels,
    adaptive_factor,
    confidence_label,
    entropy_divisor,
    entropy_histogram,
    exact_entropy,
    most_probable,
    naive_label,
    probability_histogram,
    probable_label,
    pseudo_label,
    reference_entropy,
)
from plopcli.losses.thresholds import Estimator, class_thresholds

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


@pytest.mark.parity
def test_reference_thresholds_of_probabilities() -> None:
    golden = np.load(GOLDEN / "median.npz")
    classes = golden["c/classes"]
    total, old = int(classes.sum()), int(classes[:-1].sum())
    bins = PROBABILITY_BINS["reference"]

    batches = zip(*inputs.median_inputs("c", old, total), strict=True)
    histogram = sum(probability_histogram(torch.from_numpy(z), torch.from_numpy(y), total, bins) for z, y in batches)
    assert isinstance(histogram, torch.Tensor)
    thresholds = class_thresholds(histogram, "reference", cap=0.9).numpy()

    np.testing.assert_allclose(thresholds, golden["c/thresholds"], rtol=0, atol=1e-6 * thresholds.max())
    assert golden["c/max_value"] == 1


def test_exact_entropy_runs_from_certainty_to_the_uniform_distribution() -> None:
    p = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.25] * 4, [0.5, 0.5, 0.0, 0.0]])
    torch.testing.assert_close(exact_entropy(p), torch.tensor([0.0, 1.0, 0.5]))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_one_old_class_is_always_certain(estimator: Estimator) -> None:
    labels = torch.zeros(1, 4, 4, dtype=torch.int64)
    logits = torch.randn(1, 1, 4, 4)
    thresholds = class_thresholds(entropy_histogram(logits, labels, estimator, 2), estimator, 0.001)
    assert pseudo_label(logits, labels, thresholds, estimator).accepted.all()


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


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_most_probable_classes_and_their_probabilities(layout: torch.memory_format) -> None:
    logits = (3 * torch.randn(2, 5, 64, 48)).to(memory_format=layout)
    predicted = most_probable(logits)
    expected = logits.softmax(1).max(1)
    torch.testing.assert_close(predicted.scores, expected.values)
    assert torch.equal(predicted.classes, expected.indices)


def test_exact_thresholds_of_probabilities_are_their_medians() -> None:
    logits = 2 * torch.randn(2, 3, 128, 128)
    labels = torch.from_numpy(inputs.label_maps("probable", 2, 128, [3]))
    histogram = probability_histogram(logits, labels, 4, PROBABILITY_BINS["exact"])
    thresholds = class_thresholds(histogram, "exact").numpy()
    greatest, predicted = logits.softmax(1).max(1)
    for c in range(3):
        chosen = greatest[(predicted == c) & (labels == 0)].numpy()
        assert thresholds[c] == pytest.approx(np.quantile(chosen, 0.5), abs=1e-3)
    assert thresholds[3] == 0


@pytest.mark.parametrize("bins", [10, 100, 1_000])
def test_histograms_take_any_number_of_bins(bins: int) -> None:
    logits, labels = 3 * torch.randn(1, 4, 16, 16), torch.zeros(1, 16, 16, dtype=torch.int64)
    fine = entropy_histogram(logits, labels, "exact", 5, 1_000)
    coarse = entropy_histogram(logits, labels, "exact", 5, bins)
    assert torch.equal(fine.view(5, bins, -1).sum(2), coarse)


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


def plain_labels(logits: torch.Tensor, labels: torch.Tensor, least: dict[int, float]) -> list[int]:
    """Pixel by pixel: the most probable class where it is probable enough, in the background alone."""
    found = []
    pixels = logits.softmax(1).permute(0, 2, 3, 1).flatten(0, 2).tolist()
    for p, label in zip(pixels, labels.flatten().tolist(), strict=True):
        best = max(range(len(p)), key=p.__getitem__)
        if label >= len(p):
            found.append(label)
        else:
            found.append(IGNORED if p[best] < least[best] else best)
    return found


def test_labels_by_probability_are_those_of_a_plain_loop() -> None:
    logits = 2 * torch.randn(2, 4, 12, 12)
    labels = torch.tensor([0, 2, 4, 5, IGNORED])[torch.randint(5, (2, 12, 12))]
    of_class = torch.tensor([0.3, 0.5, 0.7, 0.9, 0.0, 0.0])

    for thresholds in (of_class, 0.6, 0.0):
        least = {c: float(thresholds[c]) if isinstance(thresholds, torch.Tensor) else thresholds for c in range(4)}
        pseudo = probable_label(logits, labels, thresholds)
        assert pseudo.labels.flatten().tolist() == plain_labels(logits, labels, least)
        assert torch.equal(pseudo.background, labels < 4)
        assert torch.equal(pseudo.accepted, (labels < 4) & (pseudo.labels != IGNORED))
        assert pseudo.weights is None


def test_naive_labels_are_those_that_any_probability_satisfies() -> None:
    logits, labels = torch.randn(2, 4, 12, 12), torch.randint(6, (2, 12, 12))
    naive, all_probable = naive_label(logits, labels), probable_label(logits, labels, 0.0)
    for ours, expected in zip(naive[:3], all_probable[:3], strict=True):
        assert torch.equal(ours, expected)


def test_confidence_weighs_background_by_the_probability_of_its_label() -> None:
    logits, labels = torch.randn(2, 4, 12, 12), torch.tensor([0, 4, IGNORED])[torch.randint(3, (2, 12, 12))]
    pseudo = confidence_label(logits, labels)
    assert torch.equal(pseudo.labels, naive_label(logits, labels).labels)
    assert pseudo.weights is not None
    assert (pseudo.weights[labels != 0] == 1).all()
    torch.testing.assert_close(pseudo.weights[labels == 0], logits.softmax(1).amax(1)[labels == 0])


@pytest.mark.parametrize(("threshold", "accepted"), [(math.inf, False), (math.nan, True), (-math.inf, True)])
def test_infinite_and_nan_thresholds_of_probabilities(threshold: float, accepted: bool) -> None:
    """The published code rejects what is less than the threshold, and nothing is less than nan."""
    labels = torch.zeros(1, 3, 3, dtype=torch.int64)
    pseudo = probable_label(torch.randn(1, 4, 3, 3), labels, torch.full((5,), threshold))
    assert pseudo.accepted.all() == accepted
    assert pseudo.accepted.any() == accepted


def test_adaptive_factor_is_the_accepted_share_of_each_image_s_background() -> None:
    background = torch.tensor([[[1, 1, 1, 1]], [[0, 1, 0, 1]], [[0, 0, 0, 0]]], dtype=torch.bool)
    accepted = torch.tensor([[[1, 0, 0, 0]], [[0, 1, 0, 1]], [[0, 0, 0, 0]]], dtype=torch.bool)
    pseudo = PseudoLabels(torch.zeros(3, 1, 4, dtype=torch.int64), background, accepted)
    torch.testing.assert_close(adaptive_factor(pseudo, "zero"), torch.tensor([0.25, 1.0, 0.0]))
    torch.testing.assert_close(adaptive_factor(pseudo, "one"), torch.tensor([0.25, 1.0, 1.0]))
    torch.testing.assert_close(adaptive_factor(pseudo, "zero", 0.4), torch.tensor([0.4, 1.0, 0.4]))
    torch.testing.assert_close(adaptive_factor(pseudo, "one", 0.2), torch.tensor([0.25, 1.0, 1.0]))
