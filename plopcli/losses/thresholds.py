"""Thresholds of pseudo-labels: per class, the median of the scores of the previous model's predictions.

Source: Douillard et al., PLOP: Learning without Forgetting for Continual Semantic Segmentation, CVPR 2021,
section 3.3. Scores in [0, 1] are counted in histograms, one row per class; two estimators compute the median of a row:

``exact``
    the median, interpolated in its bin;
``reference``
    that of the published implementation, with which its results were obtained: its loop over the bins
    adds bin indices where it should add counts.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Estimator = Literal["reference", "exact"]


def score_histogram(classes: Tensor, scores: Tensor, counted: Tensor, total: int, bins: int) -> Tensor:
    """Histogram (total, bins), int64, of the scores of the counted pixels, by class.

    Histograms of several batches, or of several processes, add up.

    Args:
        classes: Predicted classes (B, H, W), int64 below ``total``.
        scores: Scores (B, H, W) in [0, 1].
        counted: Mask (B, H, W) of the pixels that count.
        total: Number of rows.
        bins: Number of equal bins of [0, 1].
    """
    bin_index = (scores * bins).long().clamp_(0, bins - 1)
    slot = classes * bins + bin_index
    slot = torch.where(counted, slot, total * bins)  # one slot more for the pixels that do not count
    return torch.bincount(slot.flatten(), minlength=total * bins + 1)[:-1].view(total, bins)


def class_thresholds(
    histogram: Tensor, estimator: Estimator, floor: float = -math.inf, cap: float = math.inf
) -> Tensor:
    """Thresholds of all classes: the estimator's medians, clamped to [``floor``, ``cap``].

    Args:
        histogram: Counts (C, bins) over [0, 1]; classes that were never predicted have median 0.
        estimator: Which median.
        floor: Lower bound.
        cap: Upper bound.

    Returns:
        Thresholds (C,), float32 on the histogram's device. With ``reference`` they may be infinite or nan.
    """
    rows: list[list[int]] = histogram.tolist()
    median = reference_median if estimator == "reference" else exact_median
    # A comparison with nan is false: max() and min() keep a nan in its first place.
    values = [min(max(median(counts), floor), cap) for counts in rows]
    return torch.tensor(values, dtype=torch.float32, device=histogram.device)


def exact_median(counts: list[int]) -> float:
    """Median of values in [0, 1] from their histogram, interpolated in its bin; 0 for an empty histogram."""
    half = sum(counts) / 2
    below = 0
    for index, count in enumerate(counts):
        if count and below + count >= half:
            return (index + (half - below) / count) / len(counts)
        below += count
    return 0.0


def reference_median(counts: list[int]) -> float:
    """The published implementation's median of a histogram of equal bins of [0, 1].

    The loop adds the index of each bin that it passes, not the bin's count. When it overshoots, it ends at the last
    bin, mostly an empty one: the result is then infinite or nan. It is 0 for an empty histogram.
    """
    total, bins = sum(counts), len(counts)
    if total == 0:
        return 0.0
    half = total / 2
    passed = 0
    for index in range(bins):
        border = index / bins
        count = counts[int(border * bins)]  # in floating point, one bin lower for a few indices
        if passed <= half <= passed + count:
            break
        passed += index
    excess = half - passed
    if count:
        return border + excess / count / bins
    return math.copysign(math.inf, excess) if excess else math.nan  # division by an empty bin


def shares_below(histogram: Tensor, thresholds: Tensor) -> Tensor:
    """Share (C,), float64, of each class's scores below its threshold, interpolated in the threshold's bin.

    Args:
        histogram: Counts (C, bins) over [0, 1].
        thresholds: Thresholds (C,); inf is above all scores, nothing is below nan.

    Returns:
        nan for classes without scores.
    """
    bins = histogram.shape[1]
    lower = torch.arange(bins, dtype=torch.float64, device=histogram.device)
    inside = (thresholds.double()[:, None] * bins - lower).clamp(0, 1).nan_to_num(0)
    return (histogram * inside).sum(1) / histogram.sum(1)
