"""Classification losses per pixel.

A method takes their *pixel mean*: the mean over all pixels of the batch, ignored ones included in the count (they
add 0). That is the scale of PLOP's and MiB's published loss factors.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from plopcli.losses.precision import full_precision

#: Label of pixels that no loss and no metric looks at.
IGNORED = 255


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of every pixel.

    Args:
        logits: Scores (B, C, H, W).
        labels: Classes (B, H, W), int64 in ``[0, C)`` or `IGNORED`.

    Returns:
        Losses (B, H, W) in nats, at least float32; 0 at ignored pixels.
    """
    return F.cross_entropy(full_precision(logits), labels, ignore_index=IGNORED, reduction="none")
