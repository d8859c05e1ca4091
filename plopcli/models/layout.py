"""The memory layout of a network: channels_last, unless its processor cannot be trusted with that."""

from __future__ import annotations

import torch
from torch import nn

#: oneDNN (3.13, AVX-512) writes out of bounds in the backward pass of a 1 x 1 convolution with a stride whose input has
#: fewer channels than this, in channels_last: uxlfoundation/oneDNN#6035. Large maps end in a crash, small ones may not.
_CHANNELS = 16


def memory_layout(model: nn.Module, device: torch.device, channels_last: bool) -> torch.memory_format:
    """The layout for ``model`` on ``device``: channels_last where that is asked for and sound."""
    unsound = device.type == "cpu" and any(_is_struck(module) for module in model.modules())
    return torch.channels_last if channels_last and not unsound else torch.contiguous_format


def is_channels_last(model: nn.Module) -> bool:
    """Whether images for ``model`` should be in channels_last, as its weights are."""
    return next(model.parameters()).is_contiguous(memory_format=torch.channels_last)


def _is_struck(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Conv2d)
        and max(module.kernel_size) == 1
        and max(module.stride) > 1
        and module.in_channels < _CHANNELS
    )
