"""Interface of the backbones."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from plopcli.models.recomputation import checkpointed


class Encoder(nn.Module):
    """An encoder with four tapped stages.

    Attributes:
        channels: Channels of the encoder output.
        checkpointing: Whether training keeps only the inputs of the blocks; see `checkpoint_activations`.
    """

    channels: int
    checkpointing = False

    @abstractmethod
    def forward(self, images: Tensor, taps: bool = False) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Encodes images (B, 3, H, W).

        With ``taps``, f_1..f_4 are returned too, which costs the memory of four maps.

        Returns:
            The encoder output e (B, channels, h, w), and f_1..f_4, or nothing where not asked for.
        """

    def run(self, block: nn.Module, *arguments: object) -> Tensor:
        """The output of a block, with activation checkpointing where that is on."""
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return checkpointed(block, *arguments)
        out: Tensor = block(*arguments)
        return out


def checkpoint_activations(model: nn.Module, enabled: bool = True) -> None:
    """Turns on activation checkpointing: the blocks of the backbone run again in the backward pass, to save memory.

    Losses, gradients and running statistics stay bitwise the same. Under torch.compile it has no effect.
    """
    for module in model.modules():
        if isinstance(module, Encoder):
            module.checkpointing = enabled
