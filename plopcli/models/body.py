"""What every backbone offers to the segmenter."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn


class Body(nn.Module):
    """An encoder with four tapped stages.

    Attributes:
        channels: Channels of the encoder output.
    """

    channels: int

    @abstractmethod
    def forward(self, images: Tensor, taps: bool = False) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Encodes images.

        Args:
            images: (B, 3, H, W).
            taps: Whether to return f_1..f_4, which costs the memory of four maps.

        Returns:
            The encoder output e (B, channels, h, w), and f_1..f_4, or nothing where not asked for.
        """
