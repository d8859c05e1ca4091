from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from torchvision import models as torchvision_models

from plopcli.models.abn import NORMS, activate
from plopcli.models.resnet import LAYOUTS, ResNet
from plopcli.models.segmenter import build_segmenter
from plopcli.settings.sections import ModelSettings

KEYS = json.loads((Path(__file__).parents[1] / "parity_data" / "state_dict_keys.json").read_text())


@pytest.mark.parity
@pytest.mark.parametrize("norm", ["abn", "bn"])
@pytest.mark.parametrize("case", sorted(KEYS))
def test_names_and_shapes_are_those_of_the_original(case, norm):
    backbone, stride, classes = re.fullmatch(r"(\w+)-os(\d+)-classes([\d+]+)", case).groups()
    settings = ModelSettings(backbone=backbone, output_stride=int(stride), norm=norm)
    with torch.device("meta"):
        model = build_segmenter(settings, [int(count) for count in classes.split("+")])
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    assert shapes == KEYS[case]


@pytest.mark.parametrize("depth", sorted(LAYOUTS))
def test_as_many_parameters_as_the_published_networks(depth):
    with torch.device("meta"):
        ours = ResNet(depth, NORMS["abn"])
        theirs = getattr(torchvision_models, f"resnet{depth}")()
    theirs.fc = torch.nn.Identity()
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize(("stride", "sides"), [(16, (24, 12, 6, 6)), (8, (24, 12, 12, 12))])
@pytest.mark.parametrize(("depth", "channels"), [(18, (16, 32, 64, 128)), (50, (64, 128, 256, 512))])
def test_map_sizes(depth, channels, stride, sides):
    body = ResNet(depth, NORMS["bn"], output_stride=stride, width=16)
    encoder, taps = body(torch.randn(1, 3, 96, 64), taps=True)
    assert [tuple(tap.shape) for tap in taps] == [
        (1, c, side, side * 2 // 3) for c, side in zip(channels, sides, strict=True)
    ]
    assert encoder.shape == taps[-1].shape
    assert body.channels == channels[-1]


@pytest.mark.parametrize("activation", ["leaky_relu", "relu"])
def test_taps_are_the_sums_before_the_activation(activation):
    torch.manual_seed(0)
    body = ResNet(18, NORMS["abn"], activation, width=8).eval()
    x = torch.randn(2, 3, 64, 64)
    plain, nothing = body(x)
    encoder, taps = body(x, taps=True)
    assert nothing == ()
    assert torch.equal(plain, encoder)
    # Each stage run by itself on the activated tap before it gives the next tap: nothing has overwritten them.
    assert all((tap < 0).any() for tap in taps)
    assert torch.equal(activate(taps[-1], activation, in_place=False), encoder)
    for i in (1, 2, 3):
        x = activate(taps[i - 1], activation, in_place=False)
        for block in body.stages[i]:
            total = block(x)
            x = activate(total, activation, in_place=False)
        assert torch.equal(total, taps[i])


@pytest.mark.parametrize(("stride", "dilations"), [(16, (1, 1, 1, 2)), (8, (1, 1, 2, 4))])
@pytest.mark.parametrize("depth", [18, 50])
def test_a_whole_stage_is_dilated(depth, stride, dilations):
    body = ResNet(depth, NORMS["bn"], output_stride=stride, width=8)
    for stage, dilation in zip(body.stages, dilations, strict=True):
        square = [m for m in stage.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3)]
        assert {conv.dilation for conv in square} == {(dilation, dilation)}
