"""POD: distillation of pooled feature maps.

Source: Douillard et al., PLOP: Learning without Forgetting for Continual Semantic Segmentation, CVPR 2021,
section 3.2, in the form of its implementation: squared maps, no normalisation, no square root of the areas. Three
ways of pooling a prepared (by default: squared) map to an embedding:

``local``
    the paper's: means over the widths and over the heights of windows, at several scales;
``global``
    sums over the width and over the height of the map, after average pooling, at several scales;
``spatial``
    sums over the width and over the height of the map: POD as PODNet (Douillard et al., ECCV 2020) has it.

The loss compares embeddings, and an embedding is linear in the prepared map. So prepared maps are subtracted first
and pooled once; and where windows of the finest scale tile the map, coarser windows are averages of finer ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from plopcli.errors import UsageError
from plopcli.losses.blocks import row_blocks
from plopcli.losses.precision import full_precision

LogitsPod = Literal["sum", "trim"]
PodMode = Literal["local", "global", "spatial"]
#: What a map is replaced by before pooling: its square, nothing, its absolute value, its positive part.
Preparation = Literal["pow", "none", "abs", "relu"]


def local_pod_embedding(features: Tensor, scales: Sequence[int] = (1, 2, 4)) -> Tensor:
    """The local POD embedding of a map, window by window: what `local_pod_distance` compares.

    For each scale, ``scale x scale`` windows of ``H // scale`` rows and ``W // scale`` columns (the remaining rows and
    columns are ignored); in each, the means over its width, then those over its height, of the squared map.

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


def pod_distance(
    new: Tensor,
    old: Tensor,
    scales: Sequence[int] = (1, 2, 4),
    mode: PodMode = "local",
    preparation: Preparation = "pow",
) -> Tensor:
    """Mean over the batch of the L2 distance between two maps' POD embeddings.

    Args:
        new: Map (B, C, H, W) of the current model.
        old: The same of the previous model; gets no gradient.
        scales: Windows per side; ignored in mode ``spatial``.
        mode: How maps are pooled.
        preparation: Applied to the maps first.

    Returns:
        A scalar, at least float32. Its gradient is 0 where the embeddings are equal.

    Raises:
        UsageError: The map is too small for the scales.
    """
    if mode == "local":
        return local_pod_distance(new, old, scales, preparation)
    if mode == "global":
        return global_pod_distance(new, old, scales, preparation)
    return spatial_pod_distance(new, old, preparation)


def local_pod_distance(
    new: Tensor, old: Tensor, scales: Sequence[int] = (1, 2, 4), preparation: Preparation = "pow"
) -> Tensor:
    """`pod_distance` between local embeddings, those of `local_pod_embedding`.

    Raises:
        UsageError: The map has fewer rows or columns than the largest scale.
    """
    _check_size(new, scales)
    height, width = new.shape[-2:]
    finest = max(scales)
    tiled = height % finest == 0 and width % finest == 0 and all(finest % scale == 0 for scale in scales)
    if tiled:
        rows, columns = _window_means(new, old, finest, preparation)
    parts: list[Tensor] = []
    for scale in scales:
        if tiled:
            over_width, over_height = _coarsen(rows, 3, scale), _coarsen(columns, 2, scale)
        else:
            window = (..., slice(height // scale * scale), slice(width // scale * scale))
            over_width, over_height = _window_means(new[window], old[window], scale, preparation)
        parts += [over_width, over_height]
    return _mean_length(parts)


def global_pod_distance(
    new: Tensor, old: Tensor, scales: Sequence[int] = (1, 2, 4), preparation: Preparation = "pow"
) -> Tensor:
    """`pod_distance` between global embeddings.

    For each scale, averages over squares of ``W // scale`` pixels a side (the remaining rows and columns are ignored);
    of these, the sums over the width, (B, C * rows), and over the height, (B, C * columns).

    Raises:
        UsageError: The map has fewer rows or columns than the largest scale, or fewer rows than a square.
    """
    _check_size(new, scales)
    height, width = new.shape[-2:]
    sides = [width // scale for scale in scales]
    if max(sides) > height:
        raise UsageError(
            f"Global POD cannot cut a feature map of {height} x {width} into squares of {max(sides)} x {max(sides)}.",
            "Train on square crops, or choose method.pod = local.",
        )
    pooled: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
    parts: list[Tensor] = []
    for side in sides:
        rows, columns = height // side, width // side
        covered = (rows * side, columns * side)
        if covered not in pooled:  # squares that fill the map at one scale mostly do so at the others
            window = (..., slice(covered[0]), slice(covered[1]))
            pooled[covered] = _window_means(new[window], old[window], 1, preparation)
        over_width, over_height = pooled[covered]
        parts += [_coarsen(over_width, 2, rows) * columns, _coarsen(over_height, 3, columns) * rows]
    return _mean_length(parts)


def spatial_pod_distance(new: Tensor, old: Tensor, preparation: Preparation = "pow") -> Tensor:
    """`pod_distance` between spatial embeddings: sums over the width, (B, C * H), and over the height, (B, C * W)."""
    height, width = new.shape[-2:]
    over_width, over_height = _window_means(new, old, 1, preparation)
    return _mean_length([over_width * width, over_height * height])


def pod_terms(
    new: Sequence[Tensor],
    old: Sequence[Tensor],
    factors: Sequence[float],
    scales: Sequence[int] = (1, 2, 4),
    mode: PodMode = "local",
    preparation: Preparation = "pow",
) -> Tensor:
    """The POD loss by layer; the sum of the terms is ``1 / L * sum of factor * distance``.

    ``new`` and ``old`` are the L maps of both models, each (B, C, H, W). A layer with factor 0 counts in L and is not
    computed. The other arguments are those of `pod_distance`.

    Returns:
        Terms (L,), at least float32.

    Raises:
        UsageError: A map is too small for the scales.
    """
    terms = [
        pod_distance(a, b, scales, mode, preparation) * (factor / len(factors))
        if factor
        else full_precision(a.new_zeros(()))
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


def _window_means(new: Tensor, old: Tensor, scale: int, preparation: Preparation) -> tuple[Tensor, Tensor]:
    """Means of the difference of the prepared maps in ``scale x scale`` windows; ``scale`` divides H and W.

    Returns:
        Means over the widths (B, C, H, scale), and over the heights (B, C, scale, W).
    """
    assert new.shape == old.shape, f"maps of {tuple(new.shape)} and {tuple(old.shape)} cannot be compared"
    if preparation == "pow":
        means: tuple[Tensor, Tensor] = _WindowMeans.apply(new, old, scale)
        return means
    prepare = _PREPARATIONS[preparation]
    difference = prepare(full_precision(new)) - prepare(full_precision(old.detach()))
    height, width = new.shape[-2:]
    return F.avg_pool2d(difference, (1, width // scale)), F.avg_pool2d(difference, (height // scale, 1))


_PREPARATIONS: dict[Preparation, Callable[[Tensor], Tensor]] = {
    "none": lambda maps: maps,
    "abs": torch.abs,
    "relu": torch.relu,
}


class _WindowMeans(torch.autograd.Function):
    """Means over the widths and heights of windows of ``new^2 - old^2``.

    Maps of stride 4 are by far the largest tensors of a loss. Autograd would read and write each some ten
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


def _mean_length(parts: Sequence[Tensor]) -> Tensor:
    """Mean over the batch of the L2 norm of the vectors whose parts (B, ., ., .) are given."""
    norms = [torch.linalg.vector_norm(part, dim=(1, 2, 3)) for part in parts]
    # vector_norm, unlike sqrt of a sum, has gradient 0 at 0.
    lengths: Tensor = torch.linalg.vector_norm(torch.stack(norms), dim=0)
    return lengths.mean()


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
