"""Losses that know what the background of a step hides: MiB's unbiased cross-entropy and distillation.

Source: Cermelli et al., Modeling the Background for Incremental Learning in Semantic Segmentation, CVPR 2020,
sections 3.2 and 3.3.

In a later step, background in the labels may be any old class, and background in the previous model's output may be
any new one. Both losses therefore compare sums of probabilities. All their log-sums follow from two, that of the old
classes but background and that of the new ones, so every logit is exponentiated once for both losses together.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from plopcli.losses.classification import IGNORED
from plopcli.losses.distillation import soft_targets
from plopcli.losses.precision import full_precision


class SplitLogits(NamedTuple):
    """Logits by what they stand for, at least float32.

    Attributes:
        background: (B, H, W).
        old: Old classes without background (B, C_old - 1, H, W).
        new: New classes (B, n, H, W).
        old_sum: Log of the sum of the exponentials of ``old``, (B, H, W); -inf where there is none.
        new_sum: The same of ``new``.
    """

    background: Tensor
    old: Tensor
    new: Tensor
    old_sum: Tensor
    new_sum: Tensor

    @property
    def total(self) -> Tensor:
        """Log of the sum of the exponentials of all logits (B, H, W)."""
        return torch.logaddexp(self.background_and_old, self.new_sum)

    @property
    def background_and_old(self) -> Tensor:
        """The same of background and old classes."""
        return torch.logaddexp(self.background, self.old_sum)

    @property
    def background_and_new(self) -> Tensor:
        """The same of background and new classes."""
        return torch.logaddexp(self.background, self.new_sum)


def split_logits(logits: Tensor, old_classes: int) -> SplitLogits:
    """Splits logits into background, old and new classes, and sums them up: what both losses share.

    Args:
        logits: The current model's logits (B, C, H, W).
        old_classes: C_old, background included; at least 1 and less than C.
    """
    logits = full_precision(logits)
    # split, unlike slices, does not fill a tensor of C channels with zeros for each part's gradient.
    background, old, new = logits.split([1, old_classes - 1, logits.shape[1] - old_classes], 1)
    return SplitLogits(background[:, 0], old, new, old.logsumexp(1), new.logsumexp(1))


def unbiased_cross_entropy(split: SplitLogits, labels: Tensor) -> Tensor:
    """Cross-entropy of every pixel, with the probability of background summed over background and old classes.

    Equation 5 of the paper.

    Args:
        split: The current model's logits.
        labels: Classes (B, H, W), int64 in ``[0, C)`` or `IGNORED`; old classes count as background.

    Returns:
        Losses (B, H, W) in nats, at least float32; 0 at ignored pixels.
    """
    old_classes = split.old.shape[1] + 1
    ignored = labels == IGNORED
    index = (labels - old_classes).clamp(min=0).masked_fill(ignored, 0)
    labelled = split.new.gather(1, index[:, None])[:, 0]
    chosen = torch.where(labels < old_classes, split.background_and_old, labelled)
    return (split.total - chosen).masked_fill(ignored, 0)


def unbiased_distillation(split: SplitLogits, old_logits: Tensor, alpha: float = 1.0) -> Tensor:
    """Distillation of every pixel, with the probability of background summed over background and new classes.

    Equation 8 of the paper, divided by C_old.

    Args:
        split: The current model's logits.
        old_logits: The previous model's logits (B, C_old, H, W); get no gradient.
        alpha: Factor on the previous model's logits (an inverse temperature).

    Returns:
        ``-1 / C_old * sum over old c of p_c log q_c`` (B, H, W) in nats, at least float32; pixels that the labels
        ignore count like any other.
    """
    targets = soft_targets(old_logits, alpha)
    # With targets that sum to 1, sum p_c (total - z_c) = total - sum p_c z_c.
    expected = targets[:, 0] * split.background_and_new + (targets[:, 1:] * split.old).sum(1)
    return (split.total - expected) / old_logits.shape[1]
