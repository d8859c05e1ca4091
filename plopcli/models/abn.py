"""Batch norm and the activation that follows it, in one module.

The pretrained backbone of the continual-segmentation papers was trained with In-Place ABN (Rota Bulò et al., "In-Place
Activated BatchNorm for Memory-Optimized Training of DNNs", CVPR 2018), whose scale is |weight| + eps. `ABN` computes
that function in plain PyTorch, `BatchNormActivation` the usual one. Both keep the parameter names of
`torch.nn.BatchNorm2d`, so weights move freely between them. `synchronise_statistics`, `save_memory` and
`compiled_abn.use_compiled` change how the norms of a network compute, not what.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Protocol

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules._functions import SyncBatchNorm

from plopcli.errors import UsageError
from plopcli.models.batch_norm import InPlaceBatchNorm, NormRule, StatisticsGroup, SynchronisedBatchNorm
from plopcli.models.recomputation import recomputing

Activation = Literal["leaky_relu", "relu", "identity"]

LEAKY_SLOPE = 0.01


def activate(x: Tensor, activation: Activation, *, in_place: bool) -> Tensor:
    """Applies the activation to a tensor of any shape; ``in_place`` overwrites ``x``."""
    if activation == "leaky_relu":
        return F.leaky_relu(x, LEAKY_SLOPE, inplace=in_place)
    if activation == "relu":
        return F.relu(x, inplace=in_place)
    return x


class NormKernel(Protocol):
    """Computes a norm that scales by |weight| + eps, and its activation; keeps its output for the backward pass."""

    def __call__(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        rule: NormRule,
        activation: Activation,
        /,
    ) -> Tensor:
        """The normalised, activated map; it may overwrite ``x``, which nothing else reads."""


class BatchNormActivation(nn.BatchNorm2d):
    """Batch norm over (B, C, H, W), then an activation; eps 1e-5, momentum 0.1.

    Attributes:
        frozen: Keeps the norm in eval mode, whatever `train` is called with: it normalises by its running statistics
            and does not update them.
        group: The processes that share the statistics of a batch in training; None for this one alone.
        in_place: Whether the backward pass works from the output; see `save_memory`.
        in_place_sums: Whether it does so where the norm adds a shortcut as well.
        kernel: Computes passes that have a backward pass, in place of torch's kernels.
    """

    momentum: float
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, channels: int, activation: Activation = "identity") -> None:
        super().__init__(channels, eps=1e-5, momentum=0.1)
        self.activation = activation
        self.frozen = False
        self.group: StatisticsGroup | None = None
        self.in_place = False
        self.in_place_sums = True
        self.kernel: NormKernel | None = None

    def train(self, mode: bool = True) -> BatchNormActivation:
        """Sets the mode as `torch.nn.Module.train` does, but a frozen norm stays in eval mode."""
        super().train(mode and not self.frozen)
        return self

    def scale(self) -> Tensor:
        """The factor per channel, (C,)."""
        return self.weight

    def forward(self, x: Tensor, shortcut: Tensor | None = None, activation: Activation | None = None) -> Tensor:
        """Normalises and activates x (B, C, H, W).

        Args:
            x: The input.
            shortcut: Added to the normalised map before the activation.
            activation: Overrides the norm's own one.

        Raises:
            UsageError: In training, with a single value per channel, whose variance does not exist.
        """
        activation = activation or self.activation
        fresh = self.training and not recomputing()
        if self.training and self.group is None and x.numel() == x.shape[1]:
            raise UsageError(
                "Batch norm cannot be trained on one value per channel: a device got a single image.",
                "At least 2 images per device are needed in every forward pass: raise train.batch or "
                "compute.micro_batch, or freeze the norms with --set train.first.freeze_norm=all (and "
                "train.later.freeze_norm=all).",
            )
        if fresh:
            self.num_batches_tracked.add_(1)
        running = (self.running_mean, self.running_var)
        if self.training and not fresh:
            # These have moved already; copies because the backward pass wants to find as many tensors as before.
            running = (self.running_mean.clone(), self.running_var.clone())
        rule = NormRule(self.training, self.momentum, self.eps, self.group)
        if self.kernel is not None and self._has_backward():
            # The kernel keeps its output for the backward pass, which therefore must not be overwritten by the sum.
            own = activation if shortcut is None else "identity"
            out = self.kernel(x, self.weight, self.bias, *running, rule, own)
            return out if shortcut is None else activate(out + shortcut, activation, in_place=True)
        if self._keeps_output(x, shortcut):
            slope = {"leaky_relu": LEAKY_SLOPE, "identity": 1.0}[activation]
            in_place: Tensor = InPlaceBatchNorm.apply(x, shortcut, self.scale(), self.bias, *running, rule, slope)
            return in_place
        if self.training and self.group is not None:
            # The processes must meet in the same order, which a compiler knows nothing of. To say so ahead, by a
            # decorator, would import the compiler everywhere.
            affine = torch.compiler.disable(_synchronised) if torch.compiler.is_compiling() else _synchronised
            out = affine(x, self.scale(), self.bias, *running, rule)
        else:
            out = F.batch_norm(x, *running, self.scale(), self.bias, self.training, self.momentum, self.eps)
        if shortcut is not None:
            out += shortcut
        # The backward pass of batch norm reads its input, never its output, which may therefore be overwritten.
        return activate(out, activation, in_place=True)

    def _keeps_output(self, x: Tensor, shortcut: Tensor | None) -> bool:
        """Whether this call works in place."""
        if not self.in_place or not self._has_backward():
            return False
        # In half precision, a small scale drowns in the rounding of a sum with a shortcut.
        return shortcut is None or (self.in_place_sums and x.dtype not in (torch.bfloat16, torch.float16))

    def _has_backward(self) -> bool:
        """Whether this module decides what the call keeps for its backward pass."""
        # A compiler decides that itself, and gets the plain form.
        return torch.is_grad_enabled() and not torch.compiler.is_compiling()

    def extra_repr(self) -> str:
        """For `repr`."""
        states = {
            "frozen": self.frozen,
            "synchronised": self.group is not None,
            "in place": self.in_place,
            "compiled": self.kernel is not None,
        }
        return ", ".join([str(self.num_features), self.activation, *(name for name, on in states.items() if on)])


def _synchronised(
    x: Tensor, scale: Tensor, bias: Tensor, running_mean: Tensor, running_var: Tensor, rule: NormRule
) -> Tensor:
    """Batch norm by the statistics of all processes."""
    group = rule.group
    assert group is not None
    if x.is_cuda:
        torchs: Tensor = SyncBatchNorm.apply(
            x, scale, bias, running_mean, running_var, rule.eps, rule.momentum, group.group, group.size
        )
        return torchs
    ours: Tensor = SynchronisedBatchNorm.apply(x, scale, bias, running_mean, running_var, rule)
    return ours


class ABN(BatchNormActivation):
    """Batch norm that scales by |weight| + eps, as In-Place ABN does, then an activation."""

    def scale(self) -> Tensor:
        """The factor per channel, (C,), always positive."""
        return self.weight.abs() + self.eps


class NormFactory(Protocol):
    """Builds the norm for a number of channels, with its activation.

    The norm may overwrite its input: the networks never use a norm's input for anything else.
    """

    def __call__(self, channels: int, activation: Activation) -> BatchNormActivation:
        """The norm."""


#: The implementations by the name of `model.norm`.
NORMS: dict[str, NormFactory] = {"abn": ABN, "bn": BatchNormActivation}


def freeze_statistics(module: nn.Module, affine: bool = False) -> None:
    """Makes every batch norm in ``module`` normalise by its running statistics, without updating them, for good.

    It holds across later calls of ``module.train()``. With ``affine``, weight and bias of the norms are frozen as well.
    """
    for norm in batch_norms(module):
        norm.frozen = True
        norm.eval()
        if affine:
            norm.weight.requires_grad_(False)
            norm.bias.requires_grad_(False)


def synchronise_statistics(module: nn.Module, group: dist.ProcessGroup | None = None) -> None:
    """Makes every batch norm in ``module`` compute its training statistics over the batches of several processes.

    All processes must then run the same norms in the same order, each on at least one image; their numbers may differ.
    Norms in eval mode, frozen ones too, never wait for the others. Gradients of weight and bias stay those of this
    process's images, as with `torch.nn.SyncBatchNorm`: `DistributedDataParallel` averages them.

    ``group`` is the processes, None for all of them; a single process computes as before.
    """
    processes = StatisticsGroup(group)
    for norm in batch_norms(module):
        norm.group = processes if processes.size > 1 else None


def save_memory(module: nn.Module, enabled: bool = True, *, sums: bool = True) -> None:
    """Makes the norms in ``module`` keep their output for the backward pass instead of their input.

    The next convolution keeps that output anyway (Rota Bulò et al., CVPR 2018). Outputs are the same; gradients too, up
    to the rounding of the output, from which the input is inferred. In 16 bits, that rounding is too coarse for the
    sums of residual blocks: their last norms keep the input. Under torch.compile all norms do.

    Args:
        module: A network or a part of it.
        enabled: Whether to do so from now on.
        sums: Whether norms that add a shortcut do so too.

    Raises:
        UsageError: A norm cannot infer its input: it is no `ABN`, whose scale is never 0, or it is followed by ReLU.
    """
    norms = list(batch_norms(module))
    if enabled and not all(isinstance(norm, ABN) and norm.activation != "relu" for norm in norms):
        raise UsageError(
            "Norms can save memory only where their input follows from their output: this network has norms whose "
            "scale may be 0, or ReLU, which discards half of the values.",
            "Set model.norm to abn (a ResNet) and model.activation to leaky_relu.",
        )
    for norm in norms:
        norm.in_place, norm.in_place_sums = enabled, sums


def batch_norms(module: nn.Module) -> Iterator[BatchNormActivation]:
    """Every batch norm in ``module``."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            assert isinstance(norm, BatchNormActivation), f"{norm} would ignore its switches: build it by NORMS"
            yield norm
