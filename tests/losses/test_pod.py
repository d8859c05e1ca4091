from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from parity_data import inputs
from torch import Tensor

from plopcli.errors import UsageError
from plopcli.losses.pod import (
    PodMode,
    Preparation,
    global_pod_distance,
    local_pod_distance,
    local_pod_embedding,
    match_logits,
    pod_distance,
    pod_terms,
    spatial_pod_distance,
)

GOLDEN = Path(__file__).parents[1] / "parity_data" / "losses.npz"
SIZES = [(4, 4), (16, 8), (10, 10), (12, 9), (9, 12), (5, 7)]
MODES: list[PodMode] = ["local", "global", "spatial"]
PREPARATIONS: dict[Preparation, Callable[[Tensor], Tensor]] = {
    "pow": lambda x: x**2,
    "none": lambda x: x,
    "abs": lambda x: torch.where(x < 0, -x, x),
    "relu": lambda x: x * (x > 0),
}


def plain_distance(
    new: Tensor, old: Tensor, scales: tuple[int, ...], prepare: Callable[[Tensor], Tensor] = torch.square
) -> Tensor:
    """The definition, window by window and image by image, with a plain square root."""
    distances = []
    for a, b in zip(prepare(new), prepare(old), strict=True):
        total = a.new_zeros(())
        for scale in scales:
            k, m = a.shape[1] // scale, a.shape[2] // scale
            for top in range(0, k * scale, k):
                for left in range(0, m * scale, m):
                    window = (slice(None), slice(top, top + k), slice(left, left + m))
                    difference = a[window] - b[window]
                    total = total + (difference.sum(2) / m).pow(2).sum() + (difference.sum(1) / k).pow(2).sum()
        distances.append(total.sqrt())
    return torch.stack(distances).mean()


def plain_global_distance(
    new: Tensor, old: Tensor, scales: tuple[int, ...], prepare: Callable[[Tensor], Tensor] = torch.square
) -> Tensor:
    """Means of squares of pixels one by one, then sums over the columns and the rows of these squares."""
    distances = []
    for a, b in zip(prepare(new), prepare(old), strict=True):
        total = a.new_zeros(())
        for scale in scales:
            k = a.shape[2] // scale
            starts = [range(0, side - k + 1, k) for side in a.shape[1:]]
            difference = a - b
            cells = [[difference[:, i : i + k, j : j + k].sum((1, 2)) / k**2 for j in starts[1]] for i in starts[0]]
            total = total + sum((sum(row) ** 2).sum() for row in cells)
            total = total + sum((sum(column) ** 2).sum() for column in zip(*cells, strict=True))
        distances.append(total.sqrt())
    return torch.stack(distances).mean()


def plain_spatial_distance(
    new: Tensor, old: Tensor, scales: tuple[int, ...], prepare: Callable[[Tensor], Tensor] = torch.square
) -> Tensor:
    """Sums over rows and columns, with loops over these."""
    distances = []
    for a, b in zip(prepare(new), prepare(old), strict=True):
        total = a.new_zeros(())
        for i in range(a.shape[1]):
            total = total + ((a[:, i].sum(1) - b[:, i].sum(1)) ** 2).sum()
        for j in range(a.shape[2]):
            total = total + ((a[:, :, j].sum(1) - b[:, :, j].sum(1)) ** 2).sum()
        distances.append(total.sqrt())
    return torch.stack(distances).mean()


PLAIN = {"local": plain_distance, "global": plain_global_distance, "spatial": plain_spatial_distance}


@pytest.mark.parity
@pytest.mark.parametrize("case", inputs.LOSS_CASES)
def test_embedding_is_the_reference_s_entry_by_entry(case: str) -> None:
    golden = np.load(GOLDEN)
    for i, features in enumerate(inputs.loss_inputs(case)["old_features"]):
        embedding = local_pod_embedding(torch.from_numpy(features))[:, :256].numpy()
        expected = golden[f"{case}/local_pod_embedding_of_squares/{i}"]
        np.testing.assert_allclose(embedding, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scales", [(1, 2, 4), (1, 2, 3), (4,), (2, 1)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_distance_and_gradient_are_those_of_a_plain_loop(
    size: tuple[int, int], scales: tuple[int, ...], layout: torch.memory_format
) -> None:
    new = torch.randn(2, 3, *size, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    old = torch.randn(2, 3, *size, dtype=torch.float64).to(memory_format=layout)

    distance = local_pod_distance(new, old, scales)
    expected = plain_distance(new, old, scales)

    torch.testing.assert_close(distance, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, new)[0] for loss in (distance, expected)))


@pytest.mark.parametrize("size", SIZES)
def test_distance_compares_embeddings(size: tuple[int, int]) -> None:
    new, old = torch.randn(3, 4, *size), torch.randn(3, 4, *size)
    norms = (local_pod_embedding(new) - local_pod_embedding(old)).norm(dim=1)
    torch.testing.assert_close(local_pod_distance(new, old), norms.mean())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("preparation", PREPARATIONS)
@pytest.mark.parametrize("size", [(8, 8), (10, 10), (12, 9), (7, 5)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_every_mode_and_preparation_is_that_of_a_plain_loop(
    mode: PodMode, preparation: Preparation, size: tuple[int, int], layout: torch.memory_format
) -> None:
    new = torch.randn(2, 3, *size, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    old = torch.randn(2, 3, *size, dtype=torch.float64).to(memory_format=layout).requires_grad_()

    distance = pod_distance(new, old, (1, 2, 4), mode, preparation)
    expected = PLAIN[mode](new, old.detach(), (1, 2, 4), PREPARATIONS[preparation])

    torch.testing.assert_close(distance, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, new)[0] for loss in (distance, expected)))
    assert torch.autograd.grad(pod_distance(new, old, (1, 2), mode, preparation), old, allow_unused=True)[0] is None


@pytest.mark.parametrize("scales", [(1,), (2, 4), (1, 3)])
def test_global_distance_at_other_scales(scales: tuple[int, ...]) -> None:
    new, old = torch.randn(2, 3, 14, 13, dtype=torch.float64), torch.randn(2, 3, 14, 13, dtype=torch.float64)
    torch.testing.assert_close(global_pod_distance(new, old, scales), plain_global_distance(new, old, scales))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("preparation", PREPARATIONS)
@pytest.mark.parametrize("size", [(8, 8), (10, 9)])
def test_equal_maps_are_at_distance_zero_with_gradient_zero(
    mode: PodMode, preparation: Preparation, size: tuple[int, int]
) -> None:
    new = torch.randn(2, 3, *size, requires_grad=True)
    distance = pod_distance(new, new.detach().clone(), (1, 2, 4), mode, preparation)
    distance.backward()
    assert distance == 0
    assert new.grad is not None
    assert (new.grad == 0).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("preparation", ["pow", "none"])
def test_one_equal_image_in_a_batch_leaves_the_gradient_finite(mode: PodMode, preparation: Preparation) -> None:
    new, old = torch.randn(2, 3, 8, 8, requires_grad=True), torch.randn(2, 3, 8, 8)
    old[0] = new[0].detach()
    pod_distance(new, old, (1, 2, 4), mode, preparation).backward()
    assert new.grad is not None
    assert (new.grad[0] == 0).all()
    assert (new.grad[1] != 0).all()
    assert new.grad.isfinite().all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("preparation", PREPARATIONS)
def test_maps_of_one_pixel_can_be_compared_at_scale_1(mode: PodMode, preparation: Preparation) -> None:
    new, old = torch.randn(2, 3, 1, 1, requires_grad=True), torch.randn(2, 3, 1, 1)
    distance = pod_distance(new, old, (1,), mode, preparation)
    distance.backward()
    prepare = PREPARATIONS[preparation]
    torch.testing.assert_close(distance, math.sqrt(2) * (prepare(new) - prepare(old)).flatten(1).norm(dim=1).mean())
    assert new.grad is not None
    assert new.grad.isfinite().all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_maps_are_squared_and_summed_in_single_precision(mode: PodMode, dtype: torch.dtype) -> None:
    new = (400 * torch.rand(1, 8, 8, 8)).to(dtype).requires_grad_()  # 400^2 overflows float16
    old = (400 * torch.rand(1, 8, 8, 8)).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        distance = pod_distance(new, old, mode=mode)
    distance.backward()

    assert distance.dtype == torch.float32
    torch.testing.assert_close(distance, PLAIN[mode](new.float(), old.float(), (1, 2, 4)))
    assert new.grad is not None
    assert new.grad.dtype == dtype
    assert new.grad.isfinite().all()


def test_maps_smaller_than_the_largest_scale_are_refused() -> None:
    small = torch.zeros(1, 2, 3, 8)
    calls = (local_pod_distance, global_pod_distance, lambda new, old: local_pod_embedding(new))
    for call in calls:
        with pytest.raises(UsageError, match="3 x 8"):
            call(small, small)
    assert spatial_pod_distance(small, small) == 0  # it has no windows


def test_global_squares_wider_than_the_map_is_high_are_refused() -> None:
    flat = torch.zeros(1, 2, 9, 12)
    with pytest.raises(UsageError, match="squares of 12 x 12"):
        global_pod_distance(flat, flat)
    assert global_pod_distance(flat, flat, (2, 4)) == 0


def test_terms_are_averaged_over_all_layers_also_those_of_factor_zero() -> None:
    new, old = torch.randn(3, 2, 4, 8, 8), torch.randn(3, 2, 4, 8, 8)
    terms = pod_terms(list(new), list(old), [0.5, 0.0, 2.0])
    expected = [0.5 * local_pod_distance(new[0], old[0]) / 3, 0.0, 2.0 * local_pod_distance(new[2], old[2]) / 3]
    torch.testing.assert_close(terms, torch.tensor(expected))


@pytest.mark.parametrize("mode", MODES)
def test_terms_follow_mode_scales_and_preparation(mode: PodMode) -> None:
    new, old = torch.randn(2, 2, 4, 8, 8), torch.randn(2, 2, 4, 8, 8)
    terms = pod_terms(list(new), list(old), [1.0, 3.0], (2, 4), mode, "abs")
    expected = [
        factor / 2 * PLAIN[mode](a, b, (2, 4), torch.abs) for a, b, factor in zip(new, old, (1, 3), strict=True)
    ]
    torch.testing.assert_close(terms, torch.stack(expected))


def test_new_logits_are_added_to_the_background_or_trimmed() -> None:
    logits = torch.tensor([1.0, 2.0, 4.0, 8.0]).view(1, 4, 1, 1)
    assert match_logits(logits, 2, "sum").flatten().tolist() == [13, 2]
    assert match_logits(logits, 2, "trim").flatten().tolist() == [1, 2]
    assert math.prod(match_logits(logits.half(), 4, "sum").shape) == 4
