"""The compiled network against the one that is not."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn

from plopcli.models.abn import ABN, save_memory
from plopcli.models.batch_norm import StatisticsGroup
from plopcli.models.encoder import checkpoint_activations
from plopcli.models.segmenter import Outputs, build_segmenter
from plopcli.settings.sections import ModelSettings

SETTINGS = ModelSettings(backbone="resnet18", width=16, head_channels=16)


def compare(backend: str, features: bool, frugal: bool, tolerance: float) -> None:
    """Two forward and backward passes of one graph without breaks."""
    torch.manual_seed(0)
    model = build_segmenter(SETTINGS, (3, 2)).train()
    other = copy.deepcopy(model)
    if frugal:
        save_memory(other)
        checkpoint_activations(other)
    torch._dynamo.reset()
    compiled = torch.compile(other, backend=backend, fullgraph=True)
    for _ in range(2):
        images = torch.randn(2, 3, 64, 64)
        outputs: list[Outputs] = []
        for network in (model, compiled):
            out = network(images, features=features)
            sum(t.square().mean() for t in (out.logits, *out.features)).backward()
            outputs.append(out)
        wanted, found = ((out.logits, out.small, *out.features, out.encoder) for out in outputs)
        torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
    assert (outputs[1].encoder is not None) == features
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        assert (p.grad - q.grad).norm() <= 10 * tolerance * p.grad.norm(), name
    for (name, p), q in zip(model.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(q, p, rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize(("features", "frugal"), [(False, False), (True, False), (True, True)])
def test_compiled_training_is_the_same(features, frugal):
    compare("aot_eager", features, frugal, 1e-5)


# torch's own, where a graph breaks off
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_a_compiler_leaves_synchronised_norms_alone(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Conv2d(3, 6, 3), ABN(6, "leaky_relu"), nn.Conv2d(6, 2, 3)).double()
        other = copy.deepcopy(layers)
        other[1].group = StatisticsGroup(None)
        x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
        outputs = [layers(x), torch.compile(other, backend="aot_eager")(x)]
        for out in outputs:
            out.square().sum().backward()
    finally:
        dist.destroy_process_group()
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(dict(other.named_buffers()), dict(layers.named_buffers()))
    for p, q in zip(layers.parameters(), other.parameters(), strict=True):
        assert p.grad is not None
        torch.testing.assert_close(q.grad, p.grad)


@pytest.mark.slow
@pytest.mark.parametrize("features", [False, True])
def test_compiled_training_is_the_same_with_generated_code(features):
    compare("inductor", features, False, 1e-3)
