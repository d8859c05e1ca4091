"""MiB's unbiased cross-entropy and distillation, which account for what the background of a step hides.

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
    total = logits.logsumexp(1)
    # split, unlike slices, does not fill a tensor of C channels with zeros for each part's gradient.
    old, new = logits.split([old_classes, logits.shape[1] - old_classes], 1)
    ignored = labels == IGNORED
    index = (labels - old_classes).clamp(min=0).masked_fill(ignored, 0)
    labelled = new.gather(1, index[:, None])[:, 0]
    return (total - torch.where(labels < old_classes, old.logsumexp(1), labelled)).masked_fill(ignored, 0)


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
    background, others, new = logits.split([1, old_classes - 1, logits.shape[1] - old_classes], 1)
    log_background = torch.cat([background, new], 1).logsumexp(1) - total
    log_others = others - total[:, None]
    loss: Tensor = -(targets[:, 0] * log_background + (targets[:, 1:] * log_others).sum(1)) / old_classes
    return loss
