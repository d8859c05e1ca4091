from __future__ import annotations

import pytest
import torch

from plopcli.errors import PlopError
from plopcli.models.abn import NORMS, freeze_statistics
from plopcli.models.deeplab import DeepLabV3Head, average_windows, replicate_to


def build(pooling: int | None = 32, channels: int = 8, inner: int = 6) -> DeepLabV3Head:
    torch.manual_seed(0)
    head = DeepLabV3Head(channels, inner, (2, 3, 4), pooling, NORMS["abn"]).double()
    for norm in (head.map_bn, head.global_pooling_bn, head.red_bn):
        norm.running_mean.normal_(0, 0.1)
        norm.running_var.uniform_(0.5, 1.5)
    return head


def windows_by_hand(x: torch.Tensor, side: int) -> torch.Tensor:
    """Mean of the window around each place, its position clipped to where it fits into the map."""
    h, w = x.shape[-2:]
    kh, kw = min(side, h), min(side, w)
    out = torch.empty_like(x)
    for i in range(h):
        for j in range(w):
            top = min(max(i - (kh - 1) // 2, 0), h - kh)
            left = min(max(j - (kw - 1) // 2, 0), w - kw)
            out[:, :, i, j] = x[:, :, top : top + kh, left : left + kw].mean((2, 3))
    return out


@pytest.mark.parametrize("size", [(5, 5), (9, 6), (4, 11), (12, 13)])
@pytest.mark.parametrize("side", [1, 2, 4, 5, 32])
def test_pooled_windows_follow_a_plain_loop(size, side):
    torch.manual_seed(0)
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(replicate_to(average_windows(x, side), *size), windows_by_hand(x, side))


def by_hand(head: DeepLabV3Head, x: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
    """The head in the order of the paper: pool, pad to the map, then the branch's layers."""
    maps = torch.cat([conv(x) for conv in head.map_convs], 1)
    context = head.pool_red_conv(head.global_pooling_bn(head.global_pooling_conv(pooled)))
    return head.red_bn(head.red_conv(head.map_bn(maps)) + context)


@pytest.mark.parametrize("size", [(9, 6), (4, 11)])
@pytest.mark.parametrize("pooling", [4, 5, 32])
def test_evaluation_pools_windows(size, pooling):
    head = build(pooling).eval()
    x = torch.randn(2, 8, *size, dtype=torch.float64)
    torch.testing.assert_close(head(x), by_hand(head, x, windows_by_hand(x, pooling)))


@pytest.mark.parametrize("pooling", [4, None])
def test_training_pools_globally_and_evaluation_without_a_window_too(pooling):
    head = build(pooling).train()
    x = torch.randn(2, 8, 9, 6, dtype=torch.float64)
    whole = x.mean((2, 3), keepdim=True)
    torch.testing.assert_close(head(x), by_hand(head, x, whole))
    head.eval()
    assert torch.allclose(head(x), by_hand(head, x, whole)) == (pooling is None)


def test_single_training_image_is_refused_unless_frozen():
    head = build().train()
    x = torch.randn(1, 8, 6, 6, dtype=torch.float64)
    with pytest.raises(PlopError, match="2 images per device"):
        head(x)
    freeze_statistics(head)
    torch.testing.assert_close(head.train()(x), by_hand(head, x, x.mean((2, 3), keepdim=True)))


def test_convolutions_start_from_xavier_normal():
    head = build(channels=64, inner=48)
    gain = (2 / (1 + 0.01**2)) ** 0.5
    for conv in (*head.map_convs, head.global_pooling_conv, head.red_conv, head.pool_red_conv):
        fans = (conv.in_channels + conv.out_channels) * conv.kernel_size[0] ** 2
        std = gain * (2 / fans) ** 0.5
        assert conv.weight.std().item() == pytest.approx(std, rel=0.06)
        assert conv.bias is None


def test_window_means_work_in_bfloat16():
    head = build(4).float().eval()
    x = torch.randn(1, 8, 7, 9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = head(x)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), head(x), atol=0.2, rtol=0.1)
