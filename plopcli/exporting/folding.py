"""Batch norm folded into the convolutions before it.

In eval mode a norm is an affine map per channel, y = a x + b with a = scale / sqrt(variance + eps), where the scale of
an ABN is |weight| + eps. Behind a convolution, a goes into its weights and b is its bias: the same function with one
pass over the map less. A norm behind a concatenation is dealt out to the convolutions before it by slices of channels;
behind a sum, each convolution takes a, and one of them b. Computed in float64, so that rounding happens once.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from plopcli.models.abn import Activation, BatchNormActivation, activate
from plopcli.models.resnet import Block


class Affine(NamedTuple):
    """A norm in eval mode: x * factor + offset per channel, each (C,) in float64."""

    factor: Tensor
    offset: Tensor

    @classmethod
    def of(cls, norm: BatchNormActivation) -> Affine:
        """That of ``norm``."""
        # The scale in the norm's own precision, as it computes it.
        factor = norm.scale().detach().double() / (norm.running_var.double() + norm.eps).sqrt()
        return cls(factor, norm.bias.detach().double() - norm.running_mean.double() * factor)

    def slices(self, sizes: Sequence[int]) -> list[Affine]:
        """One for each of several maps whose channels were concatenated."""
        return [Affine(*part) for part in zip(self.factor.split(sizes), self.offset.split(sizes), strict=True)]


class FoldedNorm(nn.Module):
    """The rest of a folded norm: the sum with a shortcut, and the activation. Called as `BatchNormActivation` is."""

    def __init__(self, activation: Activation) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor, shortcut: Tensor | None = None, activation: Activation | None = None) -> Tensor:
        """Activates (B, C, H, W), after adding ``shortcut``."""
        total = x if shortcut is None else x + shortcut
        return activate(total, activation or self.activation, in_place=False)


def folded_conv(conv: nn.Conv2d, affine: Affine, *, offset: bool = True) -> nn.Conv2d:
    """``conv`` and then ``affine`` as one convolution, without gradients.

    ``offset`` is False where another convolution of the same sum adds the offset.
    """
    weight = conv.weight.detach().double() * affine.factor.view(-1, 1, 1, 1)
    bias = torch.zeros_like(affine.offset) if conv.bias is None else conv.bias.detach().double() * affine.factor
    if offset:
        bias = bias + affine.offset
    # Built without touching the random numbers of anyone.
    folded = nn.utils.skip_init(
        nn.Conv2d,
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        stride=conv.stride,
        padding=conv.padding,
        dilation=conv.dilation,
        groups=conv.groups,
        bias=offset or conv.bias is not None,
        dtype=conv.weight.dtype,
    )
    folded.weight.data.copy_(weight)
    if folded.bias is not None:
        folded.bias.data.copy_(bias)
    assert isinstance(folded, nn.Conv2d)
    return folded.requires_grad_(False)


def fold_in_place(module: nn.Module) -> None:
    """Folds every norm that directly follows a convolution: in sequences, and in the projections of residual blocks.

    Other norms stay, and compute the same in eval mode.
    """
    for part in module.modules():
        if isinstance(part, nn.Sequential):
            for (conv_name, conv), (norm_name, norm) in pairwise(list(part.named_children())):
                _fold_pair(part, conv_name, conv, norm_name, norm)
        if isinstance(part, Block) and part.proj_conv is not None:
            _fold_pair(part, "proj_conv", part.proj_conv, "proj_bn", part.proj_bn)


def _fold_pair(parent: nn.Module, conv_name: str, conv: nn.Module, norm_name: str, norm: nn.Module) -> None:
    if isinstance(conv, nn.Conv2d) and isinstance(norm, BatchNormActivation):
        setattr(parent, conv_name, folded_conv(conv, Affine.of(norm)))
        setattr(parent, norm_name, FoldedNorm(norm.activation))
