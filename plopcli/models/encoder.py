"""What every backbone offers to the segmenter."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from plopcli.models.recomputation import checkpointed


class Encoder(nn.Module):
    """An encoder with four tapped stages.

    Attributes:
        channels: Channels of the encoder output.
        checkpointing: Whether training keeps the inputs of the blocks only and computes them again in the backward
            pass; see `checkpoint_activations`.
    """

    channels: int
    checkpointing = False

    @abstractmethod
    def forward(self, images: Tensor, taps: bool = False) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Encodes images.

        Args:
            images: (B, 3, H, W).
            taps: Whether to return f_1..f_4, which costs the memory of four maps.

        Returns:
            The encoder output e (B, channels, h, w), and f_1..f_4, or nothing where not asked for.
        """

    def run(self, block: nn.Module, *arguments: object) -> Tensor:
        """The output of a block, checkpointed where that is on."""
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return checkpointed(block, *arguments)
        out: Tensor = block(*arguments)
        return out


def checkpoint_activations(model: nn.Module, enabled: bool = True) -> None:
    """Trades time for memory: in training, the blocks of the backbone run once more in the backward pass.

    Losses, gradients and running statistics stay bitwise the same. Under torch.compile it has no effect.

    Args:
        model: A segmenter or a backbone.
        enabled: Whether to do so from now on.
    """
    for module in model.modules():
        if isinstance(module, Encoder):
            module.checkpointing = enabled
