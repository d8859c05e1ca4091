"""The head's pooling over windows (`plopcli.models.deeplab`) as operations whose sizes may follow the input's.

Average pooling wants its window fixed when a graph is written, and here the window is the smaller of 32 and the map's
side. So sums are accumulated along each side, and those of a window are the difference of two slices.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def pool_windows(x: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Means over all windows that lie inside a map, and the way back to its size.

    Args:
        x: (B, C, h, w).
        side: Of the windows, which are clipped to the map: min(side, h) x min(side, w).

    Returns:
        The means (B, C, h', w'), and for each row (h,) and each column (w,) of the map which of theirs it takes,
        borders repeated: together what `average_windows` and `replicate_to` give.
    """
    height, width = x.shape[-2], x.shape[-1]
    high, wide = _at_most(side, height), _at_most(side, width)
    sums = F.pad(x.cumsum(2), (0, 0, 1, 0))
    means = (sums[:, :, high:] - sums[:, :, : height + 1 - high]) / high
    sums = F.pad(means.cumsum(3), (1, 0))
    means = (sums[:, :, :, wide:] - sums[:, :, :, : width + 1 - wide]) / wide
    rows = (torch.arange(height, device=x.device) - (high - 1) // 2).clamp(min=0).clamp(max=height - high)
    columns = (torch.arange(width, device=x.device) - (wide - 1) // 2).clamp(min=0).clamp(max=width - wide)
    return means, rows, columns


def _at_most(side: int, length: Any) -> Any:
    """The smaller of the two, as an operation of the graph that is written."""
    if isinstance(length, Tensor):  # what sizes are while torch.jit traces
        return length.clamp(max=side)
    return torch.sym_min(length, side)
