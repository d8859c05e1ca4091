"""Distillation at the pixels of new classes, weighted by the similarity of new to old classes.

Source: Phan, Ta, Phung, Tran-Thanh, Bouzerdoum: Class Similarity Weighted Knowledge Distillation for Continual Semantic
Segmentation (REMINDER), CVPR 2022.

Learning a new class makes the network forget similar old classes first. Classes are compared by their prototypes: the
mean of the deep features f_5 over their pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from plopcli.losses.classification import IGNORED
from plopcli.losses.distillation import soft_targets
from plopcli.losses.precision import full_precision


class ClassSums(NamedTuple):
    """Features summed by class (k, c), at least float32, and the pixels (k,), int64, that were summed."""

    features: Tensor
    pixels: Tensor


def shrink_labels(labels: Tensor, height: int, width: int) -> Tensor:
    """Labels (B, H, W) resized to (B, height, width) by the nearest label at the centre of each cell.

    Small objects may vanish. No label is made up, as a mean of ids would be.
    """
    # Ids up to 255 are exact in any float type; nearest-exact is the counterpart of align_corners=False.
    small = F.interpolate(labels[:, None].float(), size=(height, width), mode="nearest-exact")
    return small[:, 0].to(labels.dtype)


def sum_by_class(features: Tensor, labels: Tensor, first: int, count: int) -> ClassSums:
    """Sums the features (B, c, h, w) of the pixels of each of ``count`` classes from ``first`` on.

    Sums of several batches, or of several processes, add up. ``labels`` are (B, h, w), int64.
    """
    rows = full_precision(features).permute(0, 2, 3, 1).flatten(0, 2)
    counted = (labels >= first) & (labels < first + count) & (labels != IGNORED)
    # One slot more for the pixels that do not count.
    slot = torch.where(counted, labels - first, count).flatten()
    sums = rows.new_zeros(count + 1, rows.shape[1]).index_add_(0, slot, rows)
    # Unlike bincount, this does not wait for the device.
    pixels = slot.new_zeros(count + 1).index_add_(0, slot, torch.ones_like(slot))
    return ClassSums(sums[:-1], pixels[:-1])


def prototypes_of(sums: ClassSums) -> Tensor:
    """Mean features (k, c) of the classes; zeros for a class without pixels, which is thereby similar to none."""
    return sums.features / sums.pixels.clamp(min=1)[:, None]


def similarity_weights(new: Tensor, old: Tensor, delta: float = 0.0) -> Tensor:
    """Similarity of each new class to each old one: softmax over the old classes of the prototypes' cosines.

    Args:
        new: Prototypes (n, c) of the new classes.
        old: Prototypes (C_old, c) of the old classes.
        delta: Weights below ``delta / C_old`` become 0: at 1, those below the mean. 0 keeps all.

    Returns:
        Weights (n, C_old), without gradient; rows sum to 1 where none was dropped. Prototypes of zeros have cosine 0.
    """
    new, old = full_precision(new.detach()), full_precision(old.detach())
    weights = F.cosine_similarity(new[:, None], old[None], dim=2).softmax(1)
    return weights.masked_fill(weights < delta / old.shape[0], 0)


def similarity_distillation(
    logits: Tensor, labels: Tensor, old_logits: Tensor, weights: Tensor, temperature: float
) -> Tensor:
    """Knowledge distillation at the pixels of new classes, each old class weighted by its similarity to the pixel's.

    Args:
        logits: The current model's logits (B, C, H, W); those beyond C_old are ignored.
        labels: Classes (B, H, W), int64 in ``[0, C)`` or `IGNORED`.
        old_logits: The previous model's logits (B, C_old, H, W); get no gradient.
        weights: Weight r (n, C_old) of every old class for every new one, from `similarity_weights`.
        temperature: Divisor T of both models' logits.

    Returns:
        The mean over the pixels labelled with a new class of ``-T^2 sum over old c of r_c p_c log q_c``, with p and q
        the previous and the current model's probabilities over the old classes, softened by T: a scalar in nats, at
        least float32; 0 where no pixel has a new class.
    """
    old_classes, new_classes = old_logits.shape[1], weights.shape[0]
    is_new = (labels >= old_classes) & (labels < old_classes + new_classes) & (labels != IGNORED)
    index = (labels - old_classes).masked_fill(~is_new, 0)
    targets = soft_targets(old_logits, 1 / temperature) * weights[index].permute(0, 3, 1, 2)
    kept = full_precision(logits)[:, :old_classes] / temperature
    loss = targets.sum(1) * kept.logsumexp(1) - (targets * kept).sum(1)
    return temperature**2 * loss.masked_fill(~is_new, 0).sum() / is_new.sum().clamp(min=1)
