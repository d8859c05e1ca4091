"""Entropy pseudo-labels: the previous model's predictions, where it is certain, label the background.

Source: Douillard et al., PLOP: Learning without Forgetting for Continual Semantic Segmentation, CVPR 2021,
section 3.3. Two estimators of the per-class thresholds:

``exact``
    the paper's text: entropy in [0, 1], threshold = median of the entropies of the class;
``reference``
    the published implementation, with which its results were obtained. Its entropy is a mean over the classes where
    the paper has a sum, divided by the logarithms of the numbers of old and of all classes; on this scale values fill
    a few of 100 bins only, and the search for the median adds bin indices where it should add counts.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from plopcli.losses.blocks import row_blocks
from plopcli.losses.classification import IGNORED
from plopcli.losses.precision import full_precision

Estimator = Literal["reference", "exact"]
#: Bins of the histogram from which each estimator reads its medians.
BINS: dict[Estimator, int] = {"reference": 100, "exact": 10_000}


class Predictions(NamedTuple):
    """Most probable class (B, H, W), int64, and entropy (B, H, W) on the estimator's scale."""

    classes: Tensor
    entropy: Tensor


class PseudoLabels(NamedTuple):
    """Labels (B, H, W) to train on, and masks: ``background`` pixels, and those whose prediction was ``accepted``."""

    labels: Tensor
    background: Tensor
    accepted: Tensor


def reference_entropy(probabilities: Tensor, dim: int = 1) -> Tensor:
    """The implementation's entropy: ``-mean_c(p_c log(p_c + 1e-8)) / log C``, at most 1 / C.

    Args:
        probabilities: (B, C, ...), C at least 2.
        dim: Where the classes are.

    Returns:
        Entropies (B, ...).
    """
    classes = probabilities.shape[dim]
    summed = (probabilities + 1e-8).log_().mul_(probabilities).sum(dim)
    return summed.div_(-classes * _log_classes(classes))


def exact_entropy(probabilities: Tensor, dim: int = 1) -> Tensor:
    """Entropy ``-sum_c(p_c log p_c) / log C``, in [0, 1].

    Args:
        probabilities: (B, C, ...).
        dim: Where the classes are.

    Returns:
        Entropies (B, ...).
    """
    smallest = torch.finfo(probabilities.dtype).tiny  # 0 log 0 := 0
    summed = probabilities.clamp_min(smallest).log_().mul_(probabilities).sum(dim)
    return summed.div_(-_log_classes(probabilities.shape[dim])).clamp_(0, 1)


def entropy_divisor(estimator: Estimator, total: int) -> float:
    """What the entropy is divided by before it meets bins and thresholds: the reference's log of all classes, or 1."""
    return _log_classes(total) if estimator == "reference" else 1.0


@torch.no_grad()
def predict(old_logits: Tensor, estimator: Estimator, total: int) -> Predictions:
    """Classes and entropies that the previous model predicts.

    Args:
        old_logits: Its logits (B, C_old, H, W).
        estimator: Which entropy.
        total: All classes seen, new ones included (C).

    Returns:
        Predictions on the estimator's scale.
    """
    entropy_of = reference_entropy if estimator == "reference" else exact_entropy
    classes, entropies = [], []
    for block in row_blocks(old_logits):
        logits = full_precision(old_logits[:, :, block])
        if logits.stride(1) == 1 < logits.shape[1]:  # channels_last: pixels one after another, many times faster
            probabilities, dim = logits.permute(0, 2, 3, 1).softmax(3), 3
        else:
            probabilities, dim = logits.softmax(1), 1
        classes.append(probabilities.max(dim).indices)
        entropies.append(entropy_of(probabilities, dim))
    return Predictions(torch.cat(classes, 1), torch.cat(entropies, 1).div_(entropy_divisor(estimator, total)))


def entropy_histogram(old_logits: Tensor, labels: Tensor, estimator: Estimator, total: int) -> Tensor:
    """Entropies of the pixels labelled 0, counted by predicted class.

    Histograms of several batches, or of several processes, add up.

    Args:
        old_logits: The previous model's logits (B, C_old, H, W).
        labels: Labels (B, H, W) of the step.
        estimator: Which entropy, and how many bins.
        total: All classes seen, new ones included (C).

    Returns:
        Counts (C, `BINS`), int64, of entropies in [0, 1]; classes that the previous model lacks have none.
    """
    bins = BINS[estimator]
    predicted = predict(old_logits, estimator, total)
    bin_index = (predicted.entropy * bins).long().clamp_(0, bins - 1)
    slot = predicted.classes * bins + bin_index
    slot = torch.where(labels == 0, slot, total * bins)  # one slot more for the pixels that do not count
    return torch.bincount(slot.flatten(), minlength=total * bins + 1)[:-1].view(total, bins)


def class_thresholds(histogram: Tensor, estimator: Estimator, floor: float) -> Tensor:
    """The thresholds of all classes: the estimator's medians, raised to ``floor``.

    Args:
        histogram: Counts (C, bins) over [0, 1].
        estimator: Which median.
        floor: Least threshold; also that of classes that were never predicted.

    Returns:
        Thresholds (C,), float32 on the histogram's device. With ``reference`` they may be inf, which accepts every
        pixel, or nan, which accepts none.
    """
    rows: list[list[int]] = histogram.tolist()
    median = reference_median if estimator == "reference" else exact_median
    # A comparison with nan is false: max() keeps a nan in its first place.
    values = [max(median(counts), floor) for counts in rows]
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
    """What the published implementation reads off a histogram of [0, 1] as its median.

    The walk adds the index of each bin that it passes, not the bin's count. When it overshoots, it ends at the last
    bin, mostly an empty one: the result is then infinite or nan.

    Args:
        counts: Counts of equal bins.

    Returns:
        The "median", possibly inf, -inf or nan; 0 for an empty histogram.
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


def accepted_shares(histogram: Tensor, thresholds: Tensor) -> Tensor:
    """Which share of each class's predictions lies below its threshold, interpolated in the threshold's bin.

    Args:
        histogram: Counts (C, bins) over [0, 1].
        thresholds: Thresholds (C,); inf accepts all, nan none.

    Returns:
        Shares (C,), float64; nan for classes without predictions.
    """
    bins = histogram.shape[1]
    lower = torch.arange(bins, dtype=torch.float64, device=histogram.device)
    inside = (thresholds.double()[:, None] * bins - lower).clamp(0, 1).nan_to_num(0)
    return (histogram * inside).sum(1) / histogram.sum(1)


def pseudo_label(old_logits: Tensor, labels: Tensor, thresholds: Tensor, estimator: Estimator) -> PseudoLabels:
    """Labels background pixels with the previous model's prediction where its entropy is below the threshold.

    Args:
        old_logits: The previous model's logits (B, C_old, H, W).
        labels: Labels (B, H, W); background is whatever is below C_old.
        thresholds: Thresholds (C,) of all classes seen.
        estimator: Which entropy.

    Returns:
        Labels with accepted predictions in the background and `IGNORED` in the rest of it, and both masks.
    """
    predicted = predict(old_logits, estimator, thresholds.numel())
    background = labels < old_logits.shape[1]
    accepted = background & (predicted.entropy < thresholds[predicted.classes])
    pseudo = torch.where(accepted, predicted.classes, IGNORED)
    return PseudoLabels(torch.where(background, pseudo, labels), background, accepted)


def adaptive_factor(pseudo: PseudoLabels, without_background: Literal["zero", "one"]) -> Tensor:
    """Share of each image's background pixels that got a pseudo-label: its classification loss is weighted by it.

    Args:
        pseudo: Pseudo-labels of a batch.
        without_background: Factor of images that have no background pixel.

    Returns:
        Factors (B,), float32, in [0, 1].
    """
    background = pseudo.background.flatten(1).sum(1)
    factor = pseudo.accepted.flatten(1).sum(1) / (background + 1e-6)
    return factor if without_background == "zero" else torch.where(background == 0, 1.0, factor)


def _log_classes(classes: int) -> float:
    # A single class has entropy 0, not 0 / 0.
    return math.log(max(classes, 2))
