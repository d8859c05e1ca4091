"""Pseudo-labels: the previous model's predictions label the background, where a rule accepts them.

Source: Douillard et al., PLOP: Learning without Forgetting for Continual Semantic Segmentation, CVPR 2021,
section 3.3, and the rules that its published implementation offers beside the paper's:

``entropy``
    the paper's: the entropy of the prediction is below its class's threshold;
``median``
    the greatest probability is not below its class's threshold;
``threshold``
    the same with one threshold for all classes;
``naive``
    every prediction is accepted;
``confidence``
    every prediction is accepted, and the loss of its pixel is weighted by the greatest probability.

Entropies exist on two scales. ``exact`` is the paper's text, in [0, 1]; ``reference`` is the published implementation's
mean over the classes where the paper has a sum, divided by the logarithms of the numbers of old and of all classes: at
most 1 / (C_old log C). Thresholds are computed in `losses.thresholds`.

In the functions below, ``old_logits`` are the previous model's logits (B, C_old, H, W), ``labels`` those of the step
(B, H, W), in which background is whatever is below C_old, and ``total`` is the number of all classes seen, new ones
included (C).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from plopcli.losses.blocks import row_blocks
from plopcli.losses.classification import IGNORED
from plopcli.losses.precision import full_precision
from plopcli.losses.thresholds import Estimator, score_histogram

#: Bins of the histogram of entropies from which each estimator reads its medians.
BINS: dict[Estimator, int] = {"reference": 100, "exact": 10_000}
#: Bins of the histogram of greatest probabilities.
PROBABILITY_BINS: dict[Estimator, int] = {"reference": 20, "exact": 10_000}


class Predictions(NamedTuple):
    """Most probable class (B, H, W), int64, and its score (B, H, W): an entropy, or the class's probability."""

    classes: Tensor
    scores: Tensor


class PseudoLabels(NamedTuple):
    """Labels to train on.

    Attributes:
        labels: (B, H, W): accepted predictions in the background, `IGNORED` in the rest of it.
        background: Mask (B, H, W) of the pixels that were labelled background or an old class.
        accepted: Mask (B, H, W) of those whose prediction is accepted.
        weights: Factors (B, H, W) on the pixels' losses, float32 at least; None: 1.
    """

    labels: Tensor
    background: Tensor
    accepted: Tensor
    weights: Tensor | None = None


def reference_entropy(probabilities: Tensor, dim: int = 1) -> Tensor:
    """The implementation's entropy: ``-mean_c(p_c log(p_c + 1e-8)) / log C``, at most 1 / C, along ``dim``."""
    classes = probabilities.shape[dim]
    summed = (probabilities + 1e-8).log_().mul_(probabilities).sum(dim)
    return summed.div_(-classes * _log_classes(classes))


def exact_entropy(probabilities: Tensor, dim: int = 1) -> Tensor:
    """Entropy ``-sum_c(p_c log p_c) / log C``, in [0, 1], along ``dim``."""
    smallest = torch.finfo(probabilities.dtype).tiny  # 0 log 0 := 0
    summed = probabilities.clamp_min(smallest).log_().mul_(probabilities).sum(dim)
    return summed.div_(-_log_classes(probabilities.shape[dim])).clamp_(0, 1)


def entropy_divisor(estimator: Estimator, total: int) -> float:
    """Divisor of entropies before they are compared with bins and thresholds: log C for ``reference``, else 1."""
    return _log_classes(total) if estimator == "reference" else 1.0


@torch.no_grad()
def predict(old_logits: Tensor, estimator: Estimator, total: int) -> Predictions:
    """Classes that the previous model predicts, and the entropies of its predictions on the estimator's scale."""
    entropy_of = reference_entropy if estimator == "reference" else exact_entropy
    classes, entropies = [], []
    for probabilities, dim in _probabilities(old_logits):
        classes.append(probabilities.max(dim).indices)
        entropies.append(entropy_of(probabilities, dim))
    return Predictions(torch.cat(classes, 1), torch.cat(entropies, 1).div_(entropy_divisor(estimator, total)))


@torch.no_grad()
def most_probable(old_logits: Tensor) -> Predictions:
    """Classes that the previous model predicts, and their probabilities."""
    found = [probabilities.max(dim) for probabilities, dim in _probabilities(old_logits)]
    return Predictions(torch.cat([each.indices for each in found], 1), torch.cat([each.values for each in found], 1))


def entropy_histogram(
    old_logits: Tensor, labels: Tensor, estimator: Estimator, total: int, bins: int | None = None
) -> Tensor:
    """Histogram (C, bins), int64, of the entropies in [0, 1] of the pixels labelled 0, by predicted class.

    Histograms of several batches, or of several processes, add up. ``bins`` are by default the estimator's, `BINS`.
    """
    predicted = predict(old_logits, estimator, total)
    return score_histogram(*predicted, labels == 0, total, BINS[estimator] if bins is None else bins)


def probability_histogram(old_logits: Tensor, labels: Tensor, total: int, bins: int) -> Tensor:
    """Histogram (C, bins), int64, of the greatest probabilities of the pixels labelled 0, by predicted class.

    Histograms of several batches, or of several processes, add up.
    """
    return score_histogram(*most_probable(old_logits), labels == 0, total, bins)


def pseudo_label(old_logits: Tensor, labels: Tensor, thresholds: Tensor, estimator: Estimator) -> PseudoLabels:
    """Rule ``entropy``: accepts predictions whose entropy is below the threshold of their class.

    ``thresholds`` (C,) are those of all classes seen; inf accepts every pixel, nan none.
    """
    predicted = predict(old_logits, estimator, thresholds.numel())
    background = labels < old_logits.shape[1]
    accepted = background & (predicted.scores < thresholds[predicted.classes])
    return _labelled(labels, background, accepted, predicted.classes)


def probable_label(old_logits: Tensor, labels: Tensor, thresholds: Tensor | float) -> PseudoLabels:
    """Rules ``median`` and ``threshold``: rejects predictions less probable than the threshold.

    ``thresholds`` are those (C,) of all classes seen, or one for all of them. As in the published implementation,
    nothing is less than nan, which thereby accepts every pixel.
    """
    predicted = most_probable(old_logits)
    least = thresholds[predicted.classes] if isinstance(thresholds, Tensor) else thresholds
    background = labels < old_logits.shape[1]
    return _labelled(labels, background, background & ~(predicted.scores < least), predicted.classes)


def naive_label(old_logits: Tensor, labels: Tensor) -> PseudoLabels:
    """Rule ``naive``: accepts every prediction."""
    background = labels < old_logits.shape[1]
    return _labelled(labels, background, background, old_logits.argmax(1))


def confidence_label(old_logits: Tensor, labels: Tensor) -> PseudoLabels:
    """Rule ``confidence``: accepts every prediction, and weights the pixel's loss by the probability of its class.

    The weights are 1 outside the background.
    """
    predicted = most_probable(old_logits)
    background = labels < old_logits.shape[1]
    pseudo = _labelled(labels, background, background, predicted.classes)
    return pseudo._replace(weights=torch.where(background, predicted.scores, 1.0))


def adaptive_factor(
    pseudo: PseudoLabels,
    without_background: Literal["zero", "one"],
    least: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Share (B,) of each image's background pixels that got a pseudo-label: the factor on its classification loss.

    Args:
        pseudo: Pseudo-labels of a batch.
        without_background: Factor of images that have no background pixel.
        least: Lower bound of the factors.
        dtype: Of the factors: that of the loss.
    """
    background, accepted = (mask.flatten(1).sum(1).to(dtype) for mask in (pseudo.background, pseudo.accepted))
    factor = accepted / (background + 1e-6)
    factor = factor if without_background == "zero" else torch.where(background == 0, 1.0, factor)
    return factor.clamp_min(least) if least else factor


def _labelled(labels: Tensor, background: Tensor, accepted: Tensor, classes: Tensor) -> PseudoLabels:
    pseudo = torch.where(accepted, classes, IGNORED)
    return PseudoLabels(torch.where(background, pseudo, labels), background, accepted)


def _probabilities(logits: Tensor) -> Iterator[tuple[Tensor, int]]:
    """Blocks of rows of the softmax, and the dimension of their classes."""
    for block in row_blocks(logits):
        rows = full_precision(logits[:, :, block])
        if rows.stride(1) == 1 < rows.shape[1]:  # channels_last: pixels one after another, many times faster
            yield rows.permute(0, 2, 3, 1).softmax(3), 3
        else:
            yield rows.softmax(1), 1


def _log_classes(classes: int) -> float:
    # A single class has entropy 0, not 0 / 0.
    return math.log(max(classes, 2))
