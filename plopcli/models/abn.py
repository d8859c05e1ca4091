"""Batch norm and the activation that follows it, in one module.

The pretrained backbone of the continual-segmentation papers was trained with In-Place ABN (Rota Bulò et al., "In-Place
Activated BatchNorm for Memory-Optimized Training of DNNs", CVPR 2018), whose scale is |weight| + eps. `ABN` computes
that function in plain PyTorch, `BatchNormActivation` the usual one. Both keep the parameter names of
`torch.nn.BatchNorm2d`, so weights move freely between them.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from plopcli.errors import UsageError

Activation = Literal["leaky_relu", "relu", "identity"]

LEAKY_SLOPE = 0.01


def activate(x: Tensor, activation: Activation, *, in_place: bool) -> Tensor:
    """Applies the activation to a tensor of any shape; in place where nothing else reads ``x`` any more."""
    if activation == "leaky_relu":
        return F.leaky_relu(x, LEAKY_SLOPE, inplace=in_place)
    if activation == "relu":
        return F.relu(x, inplace=in_place)
    return x


class BatchNormActivation(nn.BatchNorm2d):
    """Batch norm over (B, C, H, W), then an activation; eps 1e-5, momentum 0.1.

    Args:
        channels: C.
        activation: What follows the affine map.

    Attributes:
        frozen: Keeps the norm in eval mode, whatever `train` is called with: it uses its running statistics and leaves
            them alone.
    """

    momentum: float
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, channels: int, activation: Activation = "identity") -> None:
        super().__init__(channels, eps=1e-5, momentum=0.1)
        self.activation = activation
        self.frozen = False

    def train(self, mode: bool = True) -> BatchNormActivation:
        """Sets the mode as `torch.nn.Module.train` does, but a frozen norm stays in eval mode."""
        super().train(mode and not self.frozen)
        return self

    def scale(self) -> Tensor:
        """The factor per channel, (C,)."""
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        """The normalised, activated map, of the shape of ``x``.

        Raises:
            UsageError: In training, with a single value per channel, whose variance does not exist.
        """
        if self.training:
            if x.numel() == x.shape[1]:
                raise UsageError(
                    "Batch norm cannot be trained on one value per channel: a device got a single image.",
                    "At least 2 images per device are needed in every forward pass: raise train.batch or "
                    "compute.micro_batch, or freeze the norms with --set train.first.freeze_norm=all (and "
                    "train.later.freeze_norm=all).",
                )
            self.num_batches_tracked.add_(1)
        out = F.batch_norm(
            x, self.running_mean, self.running_var, self.scale(), self.bias, self.training, self.momentum, self.eps
        )
        # The backward pass of batch norm reads its input, never its output, which may therefore be overwritten.
        return activate(out, self.activation, in_place=True)

    def extra_repr(self) -> str:
        """What `repr` shows."""
        return f"{self.num_features}, {self.activation}{', frozen' if self.frozen else ''}"


class ABN(BatchNormActivation):
    """Batch norm that scales by |weight| + eps, as In-Place ABN does, then an activation."""

    def scale(self) -> Tensor:
        """The factor per channel, (C,), always positive."""
        return self.weight.abs() + self.eps


class NormFactory(Protocol):
    """Builds the norm for a number of channels, with its activation.

    The norm may overwrite its input: the networks never use a norm's input for anything else.
    """

    def __call__(self, channels: int, activation: Activation) -> nn.Module:
        """The norm."""


#: The implementations by the name of `model.norm`; one of a compiled package is a further entry.
NORMS: dict[str, NormFactory] = {"abn": ABN, "bn": BatchNormActivation}


def freeze_statistics(module: nn.Module, affine: bool = False) -> None:
    """Makes every batch norm in ``module`` use its running statistics and leave them alone, for good.

    It holds across later calls of ``module.train()``.

    Args:
        module: A network or a part of it.
        affine: Stop training the weight and bias of those norms as well.
    """
    for norm in module.modules():
        if not isinstance(norm, nn.BatchNorm2d):
            continue
        assert isinstance(norm, BatchNormActivation), f"{norm} would ignore the freeze: build it by NORMS"
        norm.frozen = True
        norm.eval()
        if affine:
            norm.weight.requires_grad_(False)
            norm.bias.requires_grad_(False)
