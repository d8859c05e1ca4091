"""Losses that know what the background of a step hides: MiB's unbiased cross-entropy and distillation.

Source: Cermelli et al., Modeling the Background for Incremental Learning in Semantic Segmentation, CVPR 2020,
sections 3.2 and 3.3.

In a later step, background in the labels may be any old class, and background in the previous model's output may be
any new one. Both losses therefore compare sums of probabilities. The sums could be shared and every logit exponentiated
once; they are not, so that values and gradients round as the original's do.
"""

from __future__ import annotations

import torch
from torch import Tensor

from plopcli.losses.classification import IGNORED
from plopcli.losses.distillation import soft_targets
from plopcli.losses.precision import full_precision


def unbiased_cross_entropy(logits: Tensor, labels: Tensor, old_classes: int) -> Tensor:
    """Cross-entropy of every pixel, with the probability of background summed over background and old classes.

    Equation 5 of the paper.

    Args:
        logits: The current model's logits (B, C, H, W).
        labels: Classes (B, H, W), int64 in ``[0, C)`` or `IGNORED`; old classes count as background.
        old_classes: C_old, background included; at least 1 and less than C.

    Returns:
        Losses (B, H, W) in nats, at least float32; 0 at ignored pixels.
    """
    logits = full_precision(logits)
    total, background = logits.logsumexp(1), logits[:, :old_classes].logsumexp(1)
    ignored = labels == IGNORED
    index = labels.clamp(min=old_classes).masked_fill(ignored, old_classes)
    labelled = logits.gather(1, index[:, None])[:, 0]
    return (total - torch.where(labels < old_classes, background, labelled)).masked_fill(ignored, 0)


def unbiased_distillation(logits: Tensor, old_logits: Tensor, alpha: float = 1.0) -> Tensor:
    """Distillation of every pixel, with the probability of background summed over background and new classes.

    Equation 8 of the paper, divided by C_old.

    Args:
        logits: The current model's logits (B, C, H, W).
        old_logits: The previous model's logits (B, C_old, H, W); get no gradient.
        alpha: Factor on the previous model's logits (an inverse temperature).

    Returns:
        ``-1 / C_old * sum over old c of p_c log q_c`` (B, H, W) in nats, at least float32; pixels that the labels
        ignore count like any other.
    """
    logits, old_classes = full_precision(logits), old_logits.shape[1]
    targets, total = soft_targets(old_logits, alpha), logits.logsumexp(1)
    background = torch.cat([logits[:, :1], logits[:, old_classes:]], 1).logsumexp(1) - total
    others = logits[:, 1:old_classes] - total[:, None]
    return -(targets[:, 0] * background + (targets[:, 1:] * others).sum(1)) / old_classes
