from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from plopcli.errors import UsageError
from plopcli.models.abn import ABN, NORMS, BatchNormActivation, activate, freeze_statistics
from plopcli.models.segmenter import BACKBONES, build_segmenter
from plopcli.settings.sections import ModelSettings


def signed(norm: BatchNormActivation) -> BatchNormActivation:
    """Draws weights of either sign and statistics that are not the initial ones."""
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(-1, 1, norm.num_features))
        norm.bias.normal_()
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return norm


def expected(norm: BatchNormActivation, x: torch.Tensor) -> torch.Tensor:
    """The definition, written out."""
    over = (0, 2, 3)
    mean, var = (x.mean(over), x.var(over, unbiased=False)) if norm.training else (norm.running_mean, norm.running_var)
    scale = norm.weight.abs() + norm.eps if isinstance(norm, ABN) else norm.weight

    def per_channel(v: torch.Tensor) -> torch.Tensor:
        return v[None, :, None, None]

    y = (x - per_channel(mean)) / (per_channel(var) + norm.eps).sqrt() * per_channel(scale) + per_channel(norm.bias)
    slope = {"leaky_relu": 0.01, "relu": 0.0, "identity": 1.0}[norm.activation]
    return torch.where(y > 0, y, slope * y)


@pytest.mark.parametrize("name", sorted(NORMS))
@pytest.mark.parametrize("activation", ["leaky_relu", "relu", "identity"])
@pytest.mark.parametrize("training", [True, False])
def test_norm_follows_its_definition(name, activation, training):
    torch.manual_seed(0)
    norm = signed(NORMS[name](6, activation).double()).train(training)
    x = torch.randn(3, 6, 5, 4, dtype=torch.float64)
    kept = x.clone()
    torch.testing.assert_close(norm(x), expected(norm, x))
    assert torch.equal(x, kept)


@pytest.mark.parametrize("name", sorted(NORMS))
def test_gradients_match_finite_differences(name):
    torch.manual_seed(0)
    norm = signed(NORMS[name](4, "leaky_relu").double()).train()
    x = torch.randn(2, 4, 2, 2, dtype=torch.float64, requires_grad=True)

    def run(x, weight, bias):
        return torch.func.functional_call(norm, {"weight": weight, "bias": bias}, (x,))

    assert torch.autograd.gradcheck(run, (x, norm.weight, norm.bias))


def test_running_statistics_move_as_in_torch():
    torch.manual_seed(0)
    ours, theirs = ABN(5, "relu").train(), nn.BatchNorm2d(5).train()
    for _ in range(3):
        x = 2 + 3 * torch.randn(4, 5, 6, 6)
        ours(x)
        theirs(x)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    assert ours.num_batches_tracked == theirs.num_batches_tracked == 3
    assert list(ours.state_dict()) == list(theirs.state_dict())


def test_activation_spares_its_input_unless_told():
    x = torch.tensor([-1.0, 2.0])
    assert torch.equal(activate(x, "leaky_relu", in_place=False), torch.tensor([-0.01, 2.0]))
    assert torch.equal(x, torch.tensor([-1.0, 2.0]))
    activate(x, "relu", in_place=True)
    assert torch.equal(x, torch.tensor([0.0, 2.0]))


def test_one_value_per_channel_is_refused_with_the_way_out():
    norm = ABN(3, "relu")
    with pytest.raises(UsageError, match=r"2 images per device[\s\S]*train\.batch[\s\S]*freeze_norm"):
        norm(torch.randn(1, 3, 1, 1))
    norm(torch.randn(2, 3, 1, 1))
    freeze_statistics(norm)
    norm.train()(torch.randn(1, 3, 1, 1))


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v2"])
def test_frozen_statistics_survive_training_mode_and_copies(backbone):
    torch.manual_seed(0)
    model = build_segmenter(ModelSettings(backbone=backbone, head_channels=8), (3,)).train()
    freeze_statistics(model.body)
    model = copy.deepcopy(model).train().eval().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = 5 + torch.randn(2, 3, 64, 64)
    encoder, _ = model.body(x)
    assert not any(norm.training for norm in model.body.modules() if isinstance(norm, nn.BatchNorm2d))
    assert model.body.training
    assert model.head.map_bn.training
    model.head(encoder)
    after = model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(name.startswith("head.") for name in moved)
    # a frozen norm in training computes what it computes in evaluation
    torch.testing.assert_close(model.body.eval()(x)[0], encoder)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_affine_parameters_are_frozen_on_request():
    model = build_segmenter(ModelSettings(backbone="resnet18", head_channels=8), (3,))
    freeze_statistics(model, affine=True)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    norms = {name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert frozen == {f"{name}.{part}" for name in norms for part in ("weight", "bias")}


@pytest.mark.parametrize("backbone", sorted(BACKBONES))
def test_every_norm_can_be_frozen(backbone):
    with torch.device("meta"):
        model = build_segmenter(ModelSettings(backbone=backbone), (2,))
    freeze_statistics(model)
    model.train()
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._NormBase)]
    assert norms
    assert not any(norm.training for norm in norms)


def test_half_precision_input_keeps_its_type():
    norm = signed(ABN(4, "leaky_relu")).train()
    x = torch.randn(2, 4, 8, 8)
    out = norm(x.bfloat16())
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), F.leaky_relu(norm(x), 0.01), atol=0.05, rtol=0.05)
