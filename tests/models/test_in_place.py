"""Norms that keep their output for the backward pass, against the plain ones."""

from __future__ import annotations

import copy

import pytest
import torch
from tensors import assert_same_tensors
from torch import nn

from plopcli.errors import UsageError
from plopcli.models.abn import ABN, activate, freeze_statistics, save_memory
from plopcli.models.segmenter import build_segmenter
from plopcli.settings.sections import ModelSettings

SETTINGS = ModelSettings(backbone="resnet50", width=8, head_channels=16)


def drawn(activation: str, dtype: torch.dtype = torch.float64) -> ABN:
    """A norm with weights of either sign, down to 0, and statistics that are not the initial ones."""
    torch.manual_seed(0)
    norm = ABN(7, activation)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(-1, 1, 7))
        norm.bias.normal_()
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return norm.to(dtype if dtype == torch.float64 else torch.float32)


def ran(norm: ABN, x: torch.Tensor, shortcut: torch.Tensor | None, grad: torch.Tensor) -> dict[str, torch.Tensor]:
    inputs = [x.detach().requires_grad_()]
    if shortcut is not None:
        inputs.append(shortcut.detach().requires_grad_())
    out = norm(*inputs) if shortcut is None else norm(*inputs, "leaky_relu")
    gradients = torch.autograd.grad(out, [*inputs, *norm.parameters()], grad)
    assert all(g.dtype == v.dtype for g, v in zip(gradients, [*inputs, *norm.parameters()], strict=True))
    named = {f"gradient {i}": gradient for i, gradient in enumerate(gradients)}
    return {"out": out.detach()} | named | dict(norm.named_buffers())


@pytest.mark.parametrize("layout", ["contiguous", "channels last", "transposed"])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", ["leaky_relu", "identity"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5), (torch.bfloat16, 0.02)], ids=str
)
def test_same_outputs_and_gradients(activation, training, residual, layout, dtype, tolerance):
    plain = drawn(activation, dtype).train(training)
    with torch.no_grad():
        # What a weight of 0 leaves is not to be seen beside the bias; other tests are about that.
        plain.weight[3] = 0.2
    in_place = copy.deepcopy(plain)
    save_memory(in_place)
    x, shortcut, grad = torch.randn(3, 4, 7, 6, 5).to(dtype)
    if layout == "channels last":
        x, shortcut, grad = (t.contiguous(memory_format=torch.channels_last) for t in (x, shortcut, grad))
    elif layout == "transposed":
        x = x.transpose(0, 1).contiguous().transpose(0, 1)
    kept = x.clone()
    wanted = ran(plain, x, shortcut if residual else None, grad)
    found = ran(in_place, x, shortcut if residual else None, grad)
    assert torch.equal(found["out"], wanted["out"])
    assert torch.equal(x, kept)
    if layout != "transposed":
        assert found["out"].stride() == x.stride()
    for name, value in wanted.items():
        assert (found[name] - value).abs().max() <= tolerance * value.abs().max(), name


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", ["leaky_relu", "identity"])
def test_gradients_match_finite_differences(activation, training):
    norm = drawn(activation).train(training)
    save_memory(norm)
    x, shortcut = torch.randn(2, 2, 7, 2, 2, dtype=torch.float64).requires_grad_().unbind()
    # A weight of 0 is a kink of the scale.
    weight = torch.linspace(-1, 0.9, 7, dtype=torch.float64, requires_grad=True)

    def run(x, shortcut, weight, bias):
        alone = torch.func.functional_call(norm, {"weight": weight, "bias": bias}, (x,))
        return alone, torch.func.functional_call(norm, {"weight": weight, "bias": bias}, (x, shortcut, activation))

    assert torch.autograd.gradcheck(run, (x, shortcut, weight, norm.bias))


def test_channels_without_scale_are_exact_in_single_precision():
    plain = drawn("leaky_relu", torch.float32).train()
    nn.init.constant_(plain.weight, 1e-9)
    in_place = copy.deepcopy(plain)
    save_memory(in_place)
    x, shortcut, grad = torch.randn(3, 8, 7, 16, 16)
    for s in (None, shortcut):
        wanted, found = ran(plain, x, s, grad), ran(in_place, x, s, grad)
        for name in ("out", "gradient 0"):
            torch.testing.assert_close(found[name], wanted[name], rtol=1e-4, atol=1e-7)
        # The map is inferred from its 1e-5th part, in a sum of the order of 1.
        scale = grad.square().sum((0, 2, 3)).sqrt().max()
        weight = len(found) - 5
        assert (found[f"gradient {weight}"] - wanted[f"gradient {weight}"]).abs().max() < 0.1 * scale


def test_what_rounding_hides_moves_nothing():
    """In bfloat16, bias + 1e-5 x̂ is the bias: noise must not pass for x̂, a hundred times as large."""
    norm = ABN(3, "leaky_relu").train()
    nn.init.constant_(norm.weight, 1e-9)
    nn.init.constant_(norm.bias, 0.1)
    save_memory(norm)
    x = torch.randn(4, 3, 8, 8).bfloat16().requires_grad_()
    norm(x).backward(torch.ones_like(x))
    assert norm.weight.grad.abs().max() < 1e-2
    assert x.grad.abs().max() < 1e-4
    assert (norm.bias.grad == 4 * 64).all()


def saved(model: nn.Module, images: torch.Tensor, features: bool) -> tuple[torch.Tensor, int]:
    """The loss, and the bytes that the backward pass keeps besides the parameters."""
    kept = {}
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = model(images, features=features)
        loss = sum(t.square().mean() for t in (out.logits, *out.features))
    return loss, sum(kept.values())


@pytest.mark.parametrize("features", [False, True])
@pytest.mark.parametrize("frozen", ["none", "body", "all"])
def test_a_network_learns_the_same_from_less_memory(frozen, features):
    torch.manual_seed(0)
    plain = build_segmenter(SETTINGS, (3, 2)).double().train()
    if frozen != "none":
        freeze_statistics(plain if frozen == "all" else plain.body, affine=True)
    in_place = copy.deepcopy(plain)
    save_memory(in_place)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    loss, much = saved(plain, images, features)
    same, little = saved(in_place, images, features)
    assert torch.equal(loss, same)
    # Of every bottleneck, 6 of 12 maps of a quarter of its channels are left; the taps are maps of their own.
    assert little < (0.7 if features else 0.62) * much
    loss.backward()
    same.backward()
    for (name, wanted), found in zip(plain.named_parameters(), in_place.parameters(), strict=True):
        if wanted.requires_grad:
            error = (found.grad - wanted.grad).norm() / wanted.grad.norm()
            assert error < 1e-8, name
        else:
            assert found.grad is None
    for wanted, found in zip(plain.buffers(), in_place.buffers(), strict=True):
        assert torch.equal(found, wanted)


def test_half_precision_sums_are_kept_plainly():
    """In half precision, the shortcut would hide what a norm of small scale adds to it."""
    plain = drawn("identity", torch.bfloat16).train()
    nn.init.constant_(plain.weight, 1e-3)
    in_place = copy.deepcopy(plain)
    save_memory(in_place)
    x, shortcut, grad = torch.randn(3, 4, 7, 16, 16).bfloat16()
    wanted, found = ran(plain, x, shortcut, grad), ran(in_place, x, shortcut, grad)
    assert_same_tensors(found, wanted)


def test_nothing_changes_without_gradients_or_once_off():
    torch.manual_seed(0)
    plain = build_segmenter(SETTINGS, (3,)).eval()
    in_place = copy.deepcopy(plain)
    save_memory(in_place)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(plain(images).logits, in_place(images).logits)
    save_memory(in_place, False)
    assert saved(plain, images, False)[1] == saved(in_place, images, False)[1]


@pytest.mark.parametrize("change", [{"norm": "bn"}, {"activation": "relu"}, {"backbone": "mobilenet_v2"}])
def test_norms_that_cannot_be_inverted_are_refused(change):
    settings = ModelSettings(backbone="resnet18", head_channels=16).model_copy(update=change)
    with torch.device("meta"):
        model = build_segmenter(settings, (3,))
    with pytest.raises(UsageError, match=r"model\.norm to abn[\s\S]*model\.activation to leaky_relu"):
        save_memory(model)
    save_memory(model, False)


def test_the_output_may_not_be_overwritten_unnoticed():
    norm = drawn("leaky_relu").train()
    save_memory(norm)
    x = torch.randn(2, 7, 3, 3, dtype=torch.float64, requires_grad=True)
    out = activate(norm(x), "relu", in_place=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()
