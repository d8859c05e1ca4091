"""Batch norm beyond `torch.nn.functional.batch_norm`: statistics over several processes, and in place.

Two autograd functions, made of torch's own kernels so that they run wherever those do. Both rest on one fact: with the
normalised map x̂ = (x - mean) / std and y = scale x̂ + bias, the backward pass of batch norm needs x only to get x̂,
and any affine image of x̂ does as well. One function takes the input for that image, the other one the output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

#: Makes x̂ vanish that cannot be inferred: a power of 2, by which float32 and wider types multiply exactly.
UNSEEN = 2.0**20

#: Gradients of a norm's input, scale and bias; None for one that is not needed.
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


class StatisticsGroup:
    """The processes (None for all) whose batches make up one batch for the statistics.

    `copy.deepcopy` of a network returns the same object, since the copy belongs to the same processes.
    """

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self.group = dist.distributed_c10d._get_default_group() if group is None else group
        self.size = dist.get_world_size(self.group)

    def __deepcopy__(self, memo: dict[int, Any]) -> StatisticsGroup:
        return self

    def gather(self, tensor: Tensor) -> Tensor:
        """``tensor`` of every process, stacked; all must have the same shape."""
        every = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(every, tensor, group=self.group)
        return torch.stack(every)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the processes, in place."""
        dist.all_reduce(tensor, group=self.group)
        return tensor


class NormRule(NamedTuple):
    """Parameters of a norm besides its tensors.

    Attributes:
        training: Whether to normalise by the statistics of the batch, or by the running ones.
        momentum: Weight of the new statistics in the running ones.
        eps: Added to the variance.
        group: The processes that share the statistics of a batch; None for this one alone.
    """

    training: bool
    momentum: float
    eps: float
    group: StatisticsGroup | None = None


class SynchronisedBatchNorm(torch.autograd.Function):
    """Batch norm by the statistics of a batch that is spread over processes, on any device.

    Gradients of scale and bias are those of this process's images, for `DistributedDataParallel` to average, as with
    `torch.nn.SyncBatchNorm`, which does the same on CUDA only.
    """

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        rule: NormRule,
    ) -> Tensor:
        out, mean, invstd, total = _normalise(x, scale, bias, running_mean, running_var, rule)
        ctx.rule = rule
        ctx.save_for_backward(x, scale, mean, invstd, total)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        x, scale, mean, invstd, total = ctx.saved_tensors
        gradients = _gradients(grad, x, mean, 1 / invstd, scale * invstd, ctx.rule, total, ctx.needs_input_grad[:3])
        return (*gradients, None, None, None)


class InPlaceBatchNorm(torch.autograd.Function):
    """``leaky_relu(batch_norm(x) [+ shortcut])``, which keeps its output for the backward pass instead of its input.

    Rota Bulò et al., "In-Place Activated BatchNorm for Memory-Optimized Training of DNNs", CVPR 2018: the convolution
    that follows keeps that output anyway, so it takes no more memory. The backward pass inverts the activation and
    computes the normalised map from the affine one, for which scale must not be 0. The sum with the shortcut of a
    residual block goes beyond the paper: the shortcut is subtracted again, and its map is kept by other modules anyway.

    The buffer of x is not overwritten, though it could be: it is freed after this call, when memory is far below
    its peak (the beginning of the backward pass).
    """

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        x: Tensor,
        shortcut: Tensor | None,
        scale: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        rule: NormRule,
        slope: float,
    ) -> Tensor:
        out, _, invstd, total = _normalise(x, scale, bias, running_mean, running_var, rule)
        if shortcut is not None:
            out += shortcut
        if slope != 1:
            F.leaky_relu(out, slope, inplace=True)
        ctx.rule = rule
        ctx.slope = slope
        ctx.save_for_backward(out, shortcut, scale, bias, invstd, total)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        out, shortcut, scale, bias, invstd, total = ctx.saved_tensors
        needs_x, needs_shortcut, *needs_affine = ctx.needs_input_grad[:4]
        affine = out
        if ctx.slope != 1:
            grad = torch.ops.aten.leaky_relu_backward(grad, out, ctx.slope, True)
            affine = F.leaky_relu(out, 1 / ctx.slope)
        if shortcut is not None:
            affine = affine - shortcut
        # Where the type of the output cannot tell the affine map from the bias, nothing of x̂ is seen: it counts as 0.
        seen = scale > torch.finfo(out.dtype).eps * bias.abs()
        spread = torch.where(seen, scale, UNSEEN * scale)
        x, *of_affine = _gradients(
            grad, affine, bias, spread, scale * invstd, ctx.rule, total, (needs_x, *needs_affine)
        )
        return (x, grad if needs_shortcut else None, *of_affine, None, None, None, None)


def _normalise(
    x: Tensor, scale: Tensor, bias: Tensor, running_mean: Tensor, running_var: Tensor, rule: NormRule
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Normalises x (B, C, H, W), and updates the running statistics in training.

    Returns:
        The map; mean and 1 / sqrt(var + eps) that it was normalised by, (C,) each; and the number of values per channel
        over all processes, a scalar, None where the statistics are this process's own.
    """
    total = None
    by_batch = rule.training
    if rule.training and rule.group is not None:
        mean, var, total = _shared_statistics(x, rule.group)
        running_mean.lerp_(mean.to(running_mean.dtype), rule.momentum)
        running_var.lerp_((var * (total / (total - 1))).to(running_var.dtype), rule.momentum)
        running_mean, running_var, by_batch = mean, var, False
    out, mean, invstd = torch.native_batch_norm(
        x, scale, bias, running_mean, running_var, by_batch, rule.momentum, rule.eps
    )
    if not by_batch:
        # What the kernel leaves here in evaluation differs from device to device.
        mean, invstd = running_mean, torch.rsqrt(running_var + rule.eps)
    return out, mean, invstd, total


def _shared_statistics(x: Tensor, group: StatisticsGroup) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance per channel, (C,) each, over the maps of all processes, and the values per channel.

    The squared deviations of each share are taken from its own mean and then moved to the common one (Chan et al.,
    "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979), which loses no digits where the
    mean is large.
    """
    channels = x.shape[1]
    count = x.numel() // channels
    unused = torch.zeros(2, channels, dtype=_wide(x), device=x.device)
    mean, var = torch.batch_norm_update_stats(x, unused[0], unused[1], 0.0)
    every = group.gather(torch.cat([mean, var * count, mean.new_full((1,), count)]))
    means, deviations, counts = every.split([channels, channels, 1], dim=1)
    total = counts.sum()
    mean = (means * counts).sum(0) / total
    deviation = (deviations + (means - mean).square() * counts).sum(0)
    return mean, deviation / total, total


def _gradients(
    grad: Tensor,
    image: Tensor,
    centre: Tensor,
    spread: Tensor,
    gain: Tensor,
    rule: NormRule,
    total: Tensor | None,
    needed: tuple[bool, bool, bool],
) -> Gradients:
    """Gradients of a norm's input, scale and bias.

    Args:
        grad: That of the affine map, (B, C, H, W).
        image: Of the same shape; x̂ = (image - centre) / spread.
        centre: (C,).
        spread: (C,), positive.
        gain: scale / std, (C,).
        rule: Of the forward pass.
        total: Values per channel over all processes; None where the statistics are this process's own.
        needed: Which of the three are needed.
    """
    backward: Callable[..., Gradients] = torch.ops.aten.native_batch_norm_backward
    # The kernel's own std is spread here, and its factor weight / std must come to the gain.
    weight = gain * spread
    if rule.training and total is None:
        return backward(grad, image, weight, None, None, centre, 1 / spread, True, 0.0, needed)
    # In evaluation the kernel reads centre and spread as running statistics, unless it finds some of a batch.
    none = centre.new_empty(0)
    fixed = (centre, spread.square(), none, none, False, 0.0)
    if total is None:
        return backward(grad, image, weight, *fixed, needed)
    _, of_scale, of_bias = backward(grad, image, weight, *fixed, (False, True, True))
    x = None
    if needed[0]:
        assert rule.group is not None
        assert of_scale is not None
        assert of_bias is not None
        along, constant = rule.group.sum(torch.stack([of_scale, of_bias])) / total
        # gain (grad - mean(grad) - x̂ mean(grad x̂))
        deviation = image - _per_channel(centre)
        x = torch.addcmul(_per_channel(-gain * constant), deviation, _per_channel(-gain * along / spread))
        x = x.addcmul_(grad, _per_channel(gain)).to(grad.dtype)
    return x, of_scale if needed[1] else None, of_bias if needed[2] else None


def _per_channel(vector: Tensor) -> Tensor:
    return vector[:, None, None]


def _wide(x: Tensor) -> torch.dtype:
    """The type of the statistics of x."""
    return torch.promote_types(x.dtype, torch.float32)
