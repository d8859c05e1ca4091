"""The precision in which losses are computed."""

from __future__ import annotations

import torch
from torch import Tensor


def full_precision(tensor: Tensor) -> Tensor:
    """``tensor`` in float32, or in float64 where it is already.

    Networks may run in half precision under autocast; sums over hundreds of thousands of pixels must not.
    """
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
