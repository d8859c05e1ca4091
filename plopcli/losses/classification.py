"""Classification losses per pixel.

A method takes their *pixel mean*: the mean over all pixels of the batch, ignored ones included in the count (they
add 0). That is the scale of PLOP's and MiB's published loss factors.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from plopcli.losses.precision import full_precision

#: Label of pixels that losses and metrics ignore.
IGNORED = 255


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of every pixel.

    Args:
        logits: Scores (B, C, H, W).
        labels: Classes (B, H, W), int64 in ``[0, C)`` or `IGNORED`.

    Returns:
        Losses (B, H, W) in nats, at least float32; 0 at ignored pixels.
    """
    logits = full_precision(logits)
    if logits.is_contiguous(memory_format=torch.channels_last) and not logits.is_contiguous():
        # Over dimension 1, torch would copy channels_last logits to the other layout first, and back.
        rows = logits.permute(0, 2, 3, 1).flatten(0, 2)
        return F.cross_entropy(rows, labels.flatten(), ignore_index=IGNORED, reduction="none").view(labels.shape)
    return F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none")


def binary_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of every pixel against its one-hot label, summed over the classes.

    Args:
        logits: Scores (B, C, H, W).
        labels: Classes (B, H, W), int64 in ``[0, C)`` or `IGNORED`.

    Returns:
        Losses (B, H, W) in nats, at least float32; 0 at ignored pixels.
    """
    logits = full_precision(logits)
    ignored = labels == IGNORED
    # softplus(z) - t z would do without a tensor of one-hot targets, and round otherwise than the original.
    targets = torch.zeros_like(logits).scatter_(1, labels.masked_fill(ignored, 0)[:, None], 1.0)
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(1).masked_fill(ignored, 0)


def focal_loss(logits: Tensor, labels: Tensor, gamma: float = 2.0, first_new: int = 0) -> Tensor:
    """Focal loss of every pixel: cross-entropy, weighted down where the class is already probable.

    Source: Lin et al., Focal Loss for Dense Object Detection, ICCV 2017, equation 4.

    Args:
        logits: Scores (B, C, H, W).
        labels: Classes (B, H, W), int64 in ``[0, C)`` or `IGNORED`.
        gamma: Exponent of the weight ``(1 - p)^gamma``, at least 1 or 0.
        first_new: Labels below it keep the plain cross-entropy (variant ``new``: the number of old classes).

    Returns:
        Losses (B, H, W) in nats, at least float32; 0 at ignored pixels.
    """
    loss = cross_entropy(logits, labels)
    weighted = (1 - torch.exp(-loss)) ** gamma * loss
    return torch.where(labels >= first_new, weighted, loss)
