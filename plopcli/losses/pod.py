"""Local POD: distillation of pooled feature maps at several scales.

Source: Douillard et al., PLOP: Learning without Forgetting for Continual Semantic Segmentation, CVPR 2021,
section 3.2, in the form of its implementation: squared maps, no normalisation, no square root of the areas.

The loss compares embeddings, and an embedding is linear in the squared map. So the squares are subtracted first
and pooled once; and where windows of the finest scale tile the map, coarser windows are averages of finer ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from plopcli.errors import UsageError
from plopcli.losses.blocks import row_blocks
from plopcli.losses.precision import full_precision

LogitsPod = Literal["sum", "trim"]


def local_pod_embedding(features: Tensor, scales: Sequence[int] = (1, 2, 4)) -> Tensor:
    """The local POD embedding of a map, window by window: what `local_pod_distance` compares.

    For each scale, ``scale x scale`` windows of ``H // scale`` rows and ``W // scale`` columns (rows and columns that
    fill no window are left out); in each, the means over its width, then those over its height, of the squared map.

    Args:
        features: Map (B, C, H, W), not yet squared.
        scales: Windows per side.

    Returns:
        Embeddings (B, D); a window of k rows and l columns takes C (k + l) entries, windows row by row.

    Raises:
        UsageError: The map has fewer rows or columns than the largest scale.
    """
    _check_size(features, scales)
    squared = full_precision(features).square()
    parts = []
    for scale in scales:
        rows, columns = squared.shape[2] // scale, squared.shape[3] // scale
        for i in range(scale):
            for j in range(scale):
                window = squared[:, :, i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]
                parts += [window.mean(3).flatten(1), window.mean(2).flatten(1)]
    return torch.cat(parts, 1)


def local_pod_distance(new: Tensor, old: Tensor, scales: Sequence[int] = (1, 2, 4)) -> Tensor:
    """Mean over the batch of the L2 distance between two maps' local POD embeddings.

    Args:
        new: Map (B, C, H, W) of the current model.
        old: The same of the previous model; gets no gradient.
        scales: Windows per side.

    Returns:
        A scalar, at least float32. Its gradient is 0 where the embeddings are equal.

    Raises:
        UsageError: The map has fewer rows or columns than the largest scale.
    """
    assert new.shape == old.shape, f"maps of {tuple(new.shape)} and {tuple(old.shape)} cannot be compared"
    _check_size(new, scales)
    height, width = new.shape[-2:]
    finest = max(scales)
    tiled = height % finest == 0 and width % finest == 0 and all(finest % scale == 0 for scale in scales)
    if tiled:
        rows, columns = _WindowMeans.apply(new, old, finest)
    norms: list[Tensor] = []
    for scale in scales:
        if tiled:
            over_width, over_height = _coarsen(rows, 3, scale), _coarsen(columns, 2, scale)
        else:
            window = (..., slice(height // scale * scale), slice(width // scale * scale))
            over_width, over_height = _WindowMeans.apply(new[window], old[window], scale)
        norms += [torch.linalg.vector_norm(part, dim=(1, 2, 3)) for part in (over_width, over_height)]
    # vector_norm, unlike sqrt of a sum, has gradient 0 at 0.
    distances: Tensor = torch.linalg.vector_norm(torch.stack(norms), dim=0)
    return distances.mean()


def pod_terms(
    new: Sequence[Tensor], old: Sequence[Tensor], factors: Sequence[float], scales: Sequence[int] = (1, 2, 4)
) -> Tensor:
    """The layers' shares of the POD loss; their sum is ``1 / L * sum of factor * distance``.

    Args:
        new: The L maps of the current model, each (B, C, H, W).
        old: Those of the previous model.
        factors: Factor of each layer; a layer with factor 0 counts in L and is not computed.
        scales: Windows per side.

    Returns:
        Terms (L,), at least float32.

    Raises:
        UsageError: A map has fewer rows or columns than the largest scale.
    """
    terms = [
        local_pod_distance(a, b, scales) * (factor / len(factors)) if factor else full_precision(a.new_zeros(()))
        for a, b, factor in zip(new, old, factors, strict=True)
    ]
    return torch.stack(terms)


def match_logits(new: Tensor, old_classes: int, rule: LogitsPod) -> Tensor:
    """The current model's logits in the previous model's channels, so that POD can compare them.

    Args:
        new: Logits (B, C, H, W), C at least ``old_classes``.
        old_classes: Channels of the previous model's logits, background first.
        rule: ``sum`` adds the logits of the new classes to that of background; ``trim`` drops them.

    Returns:
        Logits (B, old_classes, H, W), at least float32.
    """
    new = full_precision(new)
    kept = new[:, :old_classes]
    if rule == "trim":
        return kept
    background = kept[:, :1] + new[:, old_classes:].sum(1, keepdim=True)
    return torch.cat([background, kept[:, 1:]], 1)


class _WindowMeans(torch.autograd.Function):
    """Means over the widths and heights of windows of ``new^2 - old^2``.

    Maps of stride 4 are by far the largest tensors that a loss touches. Autograd would read and write each some ten
    times (and keep a float32 copy of half-precision maps); this takes three passes and keeps the map itself.
    """

    @staticmethod
    def forward(ctx: Any, new: Tensor, old: Tensor, scale: int) -> tuple[Tensor, Tensor]:
        """Means (B, C, H, scale) over the widths, and (B, C, scale, W) over the heights; scale divides H and W."""
        ctx.save_for_backward(new)
        ctx.scale = scale
        height, width = new.shape[-2:]
        rows, columns = [], []
        window = height // scale
        for start in range(0, height, window):
            mean = new.new_zeros(())
            for block in row_blocks(new, start, start + window):
                a, b = full_precision(new[:, :, block]), full_precision(old[:, :, block])
                # Exactly 0 where the maps are equal; a fused a * a - b * b would leave its rounding, and the gradient
                # of a norm is as long for rounding as for anything else.
                difference = (a - b).mul_(a + b)
                # For channels_last maps many times faster than mean(), and not much slower for others.
                rows.append(F.avg_pool2d(difference, (1, width // scale)))
                taken = block.stop - block.start
                mean = mean + F.avg_pool2d(difference, (taken, 1)) * (taken / window)
            columns.append(mean)
        return torch.cat(rows, 2), torch.cat(columns, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, over_width: Tensor, over_height: Tensor) -> tuple[Tensor, None, None]:
        new: Tensor = ctx.saved_tensors[0]
        scale: int = ctx.scale
        height, width = new.shape[-2:]
        # Each pixel is one of width / scale in its row mean, and its square has the derivative 2 new.
        by_row = (over_width * (2 * scale / width)).unflatten(2, (scale, height // scale)).unsqueeze(5)
        by_column = (over_height * (2 * scale / height)).unflatten(3, (scale, width // scale)).unsqueeze(3)
        gradient: Tensor = torch.empty_like(new, dtype=over_width.dtype)
        windows = gradient.unflatten(3, (scale, width // scale)).unflatten(2, (scale, height // scale))
        torch.add(by_row, by_column, out=windows)
        gradient = gradient.mul_(new).to(new.dtype)
        return gradient, None, None


def _coarsen(means: Tensor, dim: int, scale: int) -> Tensor:
    windows: Tensor = means.unflatten(dim, (scale, means.shape[dim] // scale))
    return windows.mean(dim + 1)


def _check_size(features: Tensor, scales: Sequence[int]) -> None:
    height, width = features.shape[-2:]
    if min(height, width) < max(scales):
        raise UsageError(
            f"A feature map of {height} x {width} cannot be cut into {max(scales)} x {max(scales)} POD windows.",
            "Train on larger crops (data.crop), at output stride 8 (model.output_stride), or with smaller "
            "method.pod_scales.",
        )
