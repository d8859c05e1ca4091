from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from parity_data import inputs

from plopcli.losses.pseudo_labels import BINS
from plopcli.losses.thresholds import (
    class_thresholds,
    exact_median,
    reference_median,
    score_histogram,
    shares_below,
)


def test_scores_are_counted_by_class_in_equal_bins() -> None:
    classes = torch.tensor([[[0, 0, 2, 2, 2, 1]]])
    scores = torch.tensor([[[0.0, 0.49, 0.5, 0.999, 1.0, 0.3]]])
    histogram = score_histogram(classes, scores, torch.tensor([[[1, 1, 1, 1, 1, 0]]]).bool(), 4, 4)
    assert histogram.tolist() == [[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 2], [0, 0, 0, 0]]


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

    shares = shares_below(histogram, thresholds)
    expected = torch.tensor([math.nan, 0.1 / 3, 0.0, 0.5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(shares, expected, equal_nan=True)


def test_exact_median_of_dense_values_is_numpy_s_quantile() -> None:
    values = inputs.generator("median").beta(0.3, 4, size=200_000)  # most of them near 0, as entropies are
    counts = np.histogram(values, bins=BINS["exact"], range=(0, 1))[0]
    assert exact_median(counts.tolist()) == pytest.approx(np.quantile(values, 0.5), abs=1 / BINS["exact"])


def test_thresholds_have_a_cap_and_keep_nan() -> None:
    counts = [{}, {"b0": 3_301, "b1": 3_301, "b2": 3_301}, {"b0": 4, "b1": 4, "b2": 4}, {"b7": 1, "b0": 9}]
    histogram = torch.tensor([reference_histogram(**row) for row in counts])
    thresholds = class_thresholds(histogram, "reference", cap=0.002)
    torch.testing.assert_close(thresholds, torch.tensor([0.0, 0.002, math.nan, 0.002]), equal_nan=True)
