from __future__ import annotations

import pytest
import torch
from tensors import assert_finite
from torchvision.models import mobilenet_v2

from plopcli.models.abn import NORMS
from plopcli.models.mobilenet import MobileNetV2


@pytest.fixture(scope="module")
def published():
    torch.manual_seed(0)
    network = mobilenet_v2().eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return network


def of(published, stride: int) -> MobileNetV2:
    body = MobileNetV2(NORMS["bn"], stride).eval()
    state = published.state_dict()
    body.load_state_dict({name: state[name] for name in body.state_dict()})
    return body


@pytest.mark.parametrize(("output_stride", "sides"), [(16, (24, 12, 6, 6)), (8, (24, 12, 12, 12))])
def test_maps_hold_what_the_strided_network_computes(published, output_stride, sides):
    x = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        encoder, taps = of(published, output_stride)(x, taps=True)
        plain, nothing = of(published, output_stride)(x)
        strided, wanted = x, []
        for i, block in enumerate(published.features[:18]):
            strided = block(strided)
            if i in (3, 6, 13, 17):
                wanted.append(strided)
    assert nothing == ()
    assert torch.equal(plain, encoder)
    assert taps[-1] is encoder
    for tap, side, channels, original in zip(taps, sides, (24, 32, 96, 320), wanted, strict=True):
        assert tap.shape == (2, channels, side, side)
        every = side // original.shape[-1]
        torch.testing.assert_close(tap[:, :, ::every, ::every], original, rtol=1e-4, atol=1e-5)


def test_it_trains(published):
    body = of(published, 16).train()
    encoder, taps = body(torch.randn(2, 3, 64, 64), taps=True)
    (encoder.square().mean() + sum(tap.square().mean() for tap in taps)).backward()
    gradients = {name: p.grad for name, p in body.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None] == []
    assert_finite(gradients)
