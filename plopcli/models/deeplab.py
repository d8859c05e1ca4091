"""The head of DeepLab v3 (Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plopcli.models.abn import LEAKY_SLOPE, Activation, NormFactory

#: Dilations of the 3 x 3 convolutions by output stride.
DILATIONS = {16: (6, 12, 18), 8: (12, 24, 32)}


class DeepLabV3Head(nn.Module):
    """Atrous spatial pyramid pooling: four convolutions at several dilations, and a branch of pooled context.

    Args:
        in_channels: Channels of the encoder output.
        channels: Channels of every branch and of the output.
        dilations: Dilations of the three 3 x 3 convolutions.
        pooling: Side of the pooling window in evaluation, in feature pixels, so that the context is that of a training
            crop; None pools over the whole map, as training does.
        norm: Builds the norms.
        activation: Of all three norms.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        dilations: tuple[int, int, int],
        pooling: int | None,
        norm: NormFactory,
        activation: Activation = "leaky_relu",
    ) -> None:
        super().__init__()
        self.pooling = pooling
        self.map_convs = nn.ModuleList([nn.Conv2d(in_channels, channels, 1, bias=False)])
        for dilation in dilations:
            self.map_convs.append(nn.Conv2d(in_channels, channels, 3, padding=dilation, dilation=dilation, bias=False))
        self.map_bn = norm(4 * channels, activation)
        self.global_pooling_conv = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.global_pooling_bn = norm(channels, activation)
        self.red_conv = nn.Conv2d(4 * channels, channels, 1, bias=False)
        self.pool_red_conv = nn.Conv2d(channels, channels, 1, bias=False)
        self.red_bn = norm(channels, activation)
        gain = nn.init.calculate_gain("leaky_relu", LEAKY_SLOPE)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_normal_(module.weight, gain)

    def forward(self, x: Tensor) -> Tensor:
        """Turns the encoder output (B, in_channels, h, w) into f_5 (B, channels, h, w).

        Raises:
            UsageError: In training on a single image (see `BatchNormActivation.forward`).
        """
        maps = torch.cat([conv(x) for conv in self.map_convs], dim=1)
        out: Tensor = self.red_conv(self.map_bn(maps))
        out += self._context(x)
        deep: Tensor = self.red_bn(out)
        return deep

    def _context(self, x: Tensor) -> Tensor:
        """The pooled branch, (B, channels, 1, 1) or (B, channels, h, w)."""
        if self.training or self.pooling is None:
            pooled = x.mean((2, 3), keepdim=True)
        else:
            # Padding could wait until after the branch, which works pixel by pixel, and cost less; but convolutions of
            # one pixel round otherwise than those of a map, and training makes much of the previous model's last bits.
            pooled = replicate_to(average_windows(x, self.pooling), x.shape[-2], x.shape[-1])
        context: Tensor = self.pool_red_conv(self.global_pooling_bn(self.global_pooling_conv(pooled)))
        return context


def average_windows(x: Tensor, side: int) -> Tensor:
    """Means over all windows of min(side, h) x min(side, w) pixels inside the map (B, C, h, w)."""
    height, width = x.shape[-2:]
    if height <= side and width <= side:
        # One window over all: as the original rounds, for the previous model's maps in training are of this kind.
        return F.avg_pool2d(x, (height, width))
    # First over the rows, then over the columns: the same means for 2 additions per pixel of the window's side
    # instead of its area.
    rows = F.avg_pool2d(x, (min(side, height), 1), stride=1)
    return F.avg_pool2d(rows, (1, min(side, width)), stride=1)


def replicate_to(x: Tensor, height: int, width: int) -> Tensor:
    """Repeats the borders of (B, C, h, w) until it has the given size; an odd pixel goes after the map."""
    down, across = height - x.shape[-2], width - x.shape[-1]
    return F.pad(x, (across // 2, across - across // 2, down // 2, down - down // 2), mode="replicate")
