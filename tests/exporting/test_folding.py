"""The exported network computes what the trained one computes."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn
from trained_files import stir

from plopcli.exporting.folding import Affine, fold_in_place, folded_conv
from plopcli.exporting.network import InferenceNetwork
from plopcli.exporting.pooling import pool_windows
from plopcli.models.abn import ABN, BatchNormActivation, batch_norms
from plopcli.models.deeplab import average_windows, replicate_to
from plopcli.models.segmenter import build_segmenter
from plopcli.settings.sections import ModelSettings

NETWORKS = {
    "basic blocks, abn": ModelSettings(backbone="resnet18", width=8, head_channels=16, output_stride=8, pooling=4),
    "bottlenecks, abn": ModelSettings(backbone="resnet50", width=8, head_channels=16),
    "bn, relu, global": ModelSettings(
        backbone="resnet18", width=8, head_channels=16, norm="bn", activation="relu", pooling=None
    ),
    "depthwise": ModelSettings(backbone="mobilenet_v2", head_channels=16, output_stride=8, pooling=3),
}


@pytest.mark.parametrize("settings", NETWORKS.values(), ids=NETWORKS)
def test_folded_network_equals_the_trained_one(settings):
    model = stir(build_segmenter(settings, [3, 1, 2])).eval()
    before = deepcopy(model.state_dict())
    network = InferenceNetwork(model, settings.pooling, "normalised")
    assert not list(batch_norms(network))
    for size in ((2, 3, 64, 96), (1, 3, 75, 41)):
        images = torch.randn(size)
        with torch.inference_mode():
            ours, folded = model(images).logits, network(images)
        assert folded.shape == ours.shape
        assert (ours - folded).abs().max() < 1e-5 * ours.abs().max()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), "the model was changed"


def test_pixels_are_normalised_inside():
    settings = NETWORKS["basic blocks, abn"]
    model = stir(build_segmenter(settings, [3])).eval()
    pixels = torch.randint(0, 256, (2, 40, 56, 3), dtype=torch.uint8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    images = ((pixels / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.inference_mode():
        plain = model(images).logits
        inside = InferenceNetwork(model, settings.pooling)(pixels)
    assert (plain - inside).abs().max() < 1e-5 * plain.abs().max()


def test_another_pooling_is_another_function_where_windows_are_smaller_than_the_map():
    settings = NETWORKS["basic blocks, abn"]
    model = stir(build_segmenter(settings, [3])).eval()
    images = torch.randn(1, 3, 64, 64)
    trained, everywhere = (InferenceNetwork(model, pooling, "normalised") for pooling in (4, None))
    assert not torch.allclose(trained(images), everywhere(images), atol=1e-3)
    small = images[..., :32, :32]
    torch.testing.assert_close(trained(small), everywhere(small), rtol=1e-4, atol=1e-4)


def test_folding_draws_no_random_numbers():
    model = stir(build_segmenter(NETWORKS["basic blocks, abn"], [3])).eval()
    state = torch.get_rng_state()
    InferenceNetwork(model, None)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("norm", [ABN, BatchNormActivation])
@pytest.mark.parametrize("bias", [False, True])
def test_a_convolution_takes_in_its_norm(norm, bias):
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, padding=2, dilation=2, stride=2, groups=2, bias=bias).double()
    behind = norm(6, "identity").double().eval()
    nn.init.normal_(behind.weight)
    nn.init.normal_(behind.bias)
    behind.running_mean.normal_()
    behind.running_var.uniform_(0.1, 3)
    x = torch.randn(2, 4, 9, 7, dtype=torch.float64)
    torch.testing.assert_close(folded_conv(conv, Affine.of(behind))(x), behind(conv(x)), rtol=1e-12, atol=1e-12)
    # Of two convolutions that are added up, one takes the offset.
    other = folded_conv(conv, Affine.of(behind), offset=False)
    both = folded_conv(conv, Affine.of(behind))(x) + other(x)
    torch.testing.assert_close(both, behind(conv(x) + conv(x)), rtol=1e-12, atol=1e-12)


def test_a_norm_without_a_convolution_before_it_stays():
    layers = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), ABN(4, "identity"))
    fold_in_place(layers)
    assert len(list(batch_norms(layers))) == 1


@pytest.mark.parametrize("size", [(1, 1), (5, 9), (8, 8), (33, 12), (40, 47)])
@pytest.mark.parametrize("side", [1, 4, 8, 32])
def test_windows_by_sums_equal_those_by_pooling(size, side):
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    means, rows, columns = pool_windows(x, side)
    assert means.shape[-2:] == tuple(length - min(side, length) + 1 for length in size)
    expected = average_windows(x, side)
    torch.testing.assert_close(means, expected)
    assert torch.equal(means[:, :, rows][..., columns], replicate_to(means, *size))
