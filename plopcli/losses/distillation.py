"""Distillation of the previous model's outputs.

Unlike classification losses, these include pixels that the labels ignore (except `icarl_disjoint`): the previous
model's output is a target with or without a label.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from plopcli.losses.classification import IGNORED
from plopcli.losses.precision import full_precision


def distillation(logits: Tensor, old_logits: Tensor, alpha: float = 1.0) -> Tensor:
    """Knowledge distillation of every pixel, over the old classes.

    Source: Li and Hoiem, Learning without Forgetting, ECCV 2016, in the scale of MiB's and PLOP's implementation:
    divided by C_old.

    Args:
        logits: The current model's logits (B, C, H, W); those beyond C_old are ignored.
        old_logits: The previous model's logits (B, C_old, H, W); get no gradient.
        alpha: Factor on the previous model's logits (an inverse temperature).

    Returns:
        ``-1 / C_old * sum over old c of p_c log q_c`` (B, H, W) in nats, at least float32.
    """
    kept = full_precision(logits)[:, : old_logits.shape[1]]
    # The gradients round as the original's, as those of the other losses here do.
    return -(kept.log_softmax(1) * soft_targets(old_logits, alpha)).mean(1)


def soft_targets(old_logits: Tensor, alpha: float = 1.0) -> Tensor:
    """Softmax (B, C_old, ...) of the previous model's logits times ``alpha``; no gradient."""
    old_logits = full_precision(old_logits.detach())
    return (old_logits if alpha == 1 else alpha * old_logits).softmax(1)


def feature_distance(new: Tensor, old: Tensor) -> Tensor:
    """Mean squared difference of two feature maps (B, c, h, w), a scalar, at least float32; ``old`` gets no gradient.

    Source: Michieli and Zanuttigh, Incremental Learning Techniques for Semantic Segmentation, ICCV Workshops 2019.
    """
    return F.mse_loss(full_precision(new), full_precision(old.detach()))


def icarl_combined(logits: Tensor, old_logits: Tensor) -> Tensor:
    """Distillation as in iCaRL: binary cross-entropy of each old class against the previous model's sigmoid.

    Source: Rebuffi et al., iCaRL: Incremental Classifier and Representation Learning, CVPR 2017, as MiB adds it to a
    binary cross-entropy on the labels.

    Args:
        logits: The current model's logits (B, C, H, W); those beyond C_old are ignored.
        old_logits: The previous model's logits (B, C_old, H, W); get no gradient.

    Returns:
        The sum over the old classes, averaged over the pixels, in nats: a scalar, at least float32.
    """
    targets = full_precision(old_logits.detach()).sigmoid()
    old = full_precision(logits)[:, : old_logits.shape[1]]
    return old_logits.shape[1] * F.binary_cross_entropy_with_logits(old, targets)


def icarl_disjoint(logits: Tensor, labels: Tensor, old_logits: Tensor, *, keep_background: bool = False) -> Tensor:
    """The single loss of iCaRL for every pixel: old classes learn from the previous model, new ones from the labels.

    Source: Rebuffi et al., iCaRL, CVPR 2017, algorithm 3.

    Args:
        logits: The current model's logits (B, C, H, W).
        labels: Classes (B, H, W), int64 in ``[0, C)`` or `IGNORED`.
        old_logits: The previous model's logits (B, C_old, H, W); get no gradient.
        keep_background: Let background learn from the labels too (variant ``bkg``).

    Returns:
        Binary cross-entropies (B, H, W) in nats, summed over all classes; at least float32. At ignored pixels old
        classes still learn from the previous model, and everything else has target 0.
    """
    logits = full_precision(logits)
    old_classes = old_logits.shape[1]
    soft = slice(1 if keep_background else 0, old_classes)
    hard = (labels >= old_classes) & (labels != IGNORED)
    if keep_background:
        hard |= labels == 0
    targets = torch.zeros_like(logits).scatter_(1, labels.masked_fill(~hard, 0)[:, None], hard[:, None].to(logits))
    targets[:, soft] = full_precision(old_logits.detach())[:, soft].sigmoid()
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(1)
