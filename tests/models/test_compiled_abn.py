"""The compiled package against our own norms. Without it (`make iabn`), the tests that run its kernels are skipped."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from plopcli.engine.memory import estimate_memory
from plopcli.losses.classification import cross_entropy
from plopcli.models import compiled_abn
from plopcli.models.abn import ABN, BatchNormActivation, activate, batch_norms, freeze_statistics, save_memory
from plopcli.models.compiled_abn import loading_problem, problem, state, use_compiled
from plopcli.models.encoder import checkpoint_activations
from plopcli.models.segmenter import Segmenter, build_segmenter
from plopcli.settings.sections import ModelSettings

CPU = torch.device("cpu")
MISSING = loading_problem()
built = pytest.mark.skipif(MISSING is not None, reason=f"inplace-abn: {MISSING}; `make iabn` builds it")
#: Largest difference, as a share of the largest value of the tensor.
TOLERANCE = 1e-4


def signed(module: nn.Module) -> None:
    """Draws weights of either sign and statistics that are not the initial ones."""
    with torch.no_grad():
        for norm in batch_norms(module):
            size = norm.weight.shape
            norm.weight.copy_(torch.empty(size).uniform_(0.5, 1.5) * torch.randint(0, 2, size).mul(2).sub(1))
            norm.bias.normal_(0, 0.2)
            norm.running_mean.normal_(0, 0.2)
            norm.running_var.uniform_(0.5, 1.5)


def close(found: torch.Tensor, wanted: torch.Tensor, what: str, tolerance: float = TOLERANCE) -> None:
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    assert float((found - wanted).abs().max()) <= tolerance * float(wanted.abs().max()), what


def learn(model: Segmenter, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """All outputs of a pass, all gradients after it, and all buffers, by name."""
    out = model(images, features=True)
    maps = {"logits": out.logits, "small": out.small, "encoder": out.encoder}
    maps |= {f"f_{i + 1}": tapped for i, tapped in enumerate(out.features)}
    # Every map, taps included, has a gradient of its own.
    generator = torch.Generator().manual_seed(1)
    loss = sum((t * torch.randn(t.shape, generator=generator, dtype=t.dtype)).mean() for t in maps.values())
    loss.backward()
    gradients = {f"gradient of {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: t.detach() for name, t in maps.items()} | gradients | dict(model.named_buffers())


def resnet101(frozen: str) -> Segmenter:
    torch.manual_seed(0)
    model = build_segmenter(ModelSettings(backbone="resnet101", head_channels=64), (16, 1)).train()
    signed(model)
    assert sum(int((norm.weight < 0).sum()) for norm in batch_norms(model)) > 10_000
    if frozen != "nothing":
        freeze_statistics(model.body if frozen == "body" else model)
    return model


# In training, a network as deep as this one makes anything of the rounding of float32, whoever computes it.
@built
@pytest.mark.parametrize(("frozen", "checkpointed"), [("nothing", False), ("nothing", True), ("body", False)])
def test_the_whole_resnet101_computes_the_same(frozen: str, checkpointed: bool) -> None:
    plain = resnet101(frozen).double()
    compiled = copy.deepcopy(plain)
    use_compiled(compiled)
    checkpoint_activations(compiled, checkpointed)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    wanted, found = learn(plain, images), learn(compiled, images)
    assert found.keys() == wanted.keys()
    assert len([name for name in wanted if name.startswith("gradient")]) == len(list(plain.parameters()))
    for name, value in wanted.items():
        close(found[name], value, name)


def ran(norm: BatchNormActivation, x: torch.Tensor, shortcut: torch.Tensor | None, grad: torch.Tensor) -> dict:
    inputs = [x.detach().clone().requires_grad_()]
    if shortcut is not None:
        inputs.append(shortcut.detach().clone().requires_grad_())
    # A map computed by something else, as all inputs of norms are: it may be overwritten.
    first = inputs[0] * 1
    out = norm(first) if shortcut is None else norm(first, inputs[1], "leaky_relu")
    gradients = torch.autograd.grad(out, [*inputs, *norm.parameters()], grad)
    named = {f"gradient {i}": gradient for i, gradient in enumerate(gradients)}
    return {"out": out.detach()} | named | {name: value.clone() for name, value in norm.named_buffers()}


@built
@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", ["leaky_relu", "identity"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_norm_computes_the_same(activation, training, residual, layout, dtype) -> None:
    torch.manual_seed(0)
    plain = ABN(7, activation)
    signed(plain)
    plain = plain.to(dtype).train(training)
    compiled = copy.deepcopy(plain)
    use_compiled(compiled)
    x, shortcut, grad = torch.randn(3, 4, 7, 6, 5, dtype=dtype)
    if layout == "channels last":
        x, shortcut, grad = (t.contiguous(memory_format=torch.channels_last) for t in (x, shortcut, grad))
    kept = shortcut.clone()
    for _ in range(2):
        wanted = ran(plain, x, shortcut if residual else None, grad)
        found = ran(compiled, x, shortcut if residual else None, grad)
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            if name == "num_batches_tracked":
                assert found[name] == value
            else:
                close(found[name], value, name, 1e-9 if dtype == torch.float64 else 1e-5)
    assert torch.equal(shortcut, kept)


def bytes_kept(model: nn.Module, images: torch.Tensor) -> int:
    """What the backward pass of a loss keeps, weights and statistics aside."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    labels = torch.zeros(len(images), *images.shape[2:], dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = cross_entropy(model(images).logits, labels).mean()
    assert loss.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@built
def test_it_keeps_less_and_the_dry_run_knows(tiny) -> None:
    settings = tiny(method__name="ft", model__backbone="resnet50").settings
    plain = build_segmenter(settings.model, (19,)).to(memory_format=torch.channels_last)
    compiled, in_place = copy.deepcopy(plain), copy.deepcopy(plain)
    use_compiled(compiled)
    save_memory(in_place)
    images = torch.zeros(4, 3, 48, 48).to(memory_format=torch.channels_last)
    assert bytes_kept(in_place, images) < bytes_kept(compiled, images) < 0.9 * bytes_kept(plain, images)
    estimated = estimate_memory(settings, (19,), 4, half=False, compiled_norm=True).activations
    assert estimated == pytest.approx(bytes_kept(compiled, images), rel=0.02)


@built
def test_its_output_may_not_be_overwritten_unnoticed() -> None:
    norm = ABN(7, "leaky_relu").train()
    use_compiled(norm)
    out = activate(norm(torch.randn(2, 7, 3, 3, requires_grad=True) * 1), "relu", in_place=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@built
def test_statistics_are_shared_in_training_alone(monkeypatch) -> None:
    """The group is named in every call; with running statistics nobody may wait for the others."""
    from inplace_abn import functions

    groups = []

    class Group:
        group, size = object(), 2

    def record(x, *arguments):
        groups.append(arguments[-1])
        return x * 1

    monkeypatch.setattr(functions.InPlaceABN, "apply", record)
    norm = ABN(3, "leaky_relu")
    use_compiled(norm)
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    norm.train()(x)
    norm.group = Group()
    norm.train()(x)
    norm.eval()(x)
    assert groups == [None, Group.group, None]


@built
def test_it_works_here_and_moves_no_generator() -> None:
    before = torch.get_rng_state()
    assert problem(CPU) is None
    told = state()
    assert told.works
    assert "works on the" in told.told
    assert torch.equal(torch.get_rng_state(), before)


def kernel(calls: list[str]):
    """Stands for the package where only what surrounds its kernels is tested."""

    def compute(x, weight, bias, running_mean, running_var, rule, activation):
        calls.append(activation)
        scale = weight.abs() + rule.eps
        out = torch.nn.functional.batch_norm(
            x, running_mean, running_var, scale, bias, rule.training, rule.momentum, rule.eps
        )
        return activate(out, activation, in_place=False)

    return compute


def test_it_serves_passes_that_have_a_backward_pass_alone(monkeypatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(compiled_abn, "_kernel", lambda: kernel(calls))
    torch.manual_seed(0)
    plain = build_segmenter(ModelSettings(backbone="resnet18", width=8, head_channels=16), (3,))
    model = copy.deepcopy(plain)
    use_compiled(model)
    norms = len(list(batch_norms(model)))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model.eval()(images).logits, plain.eval()(images).logits)
        copied = copy.deepcopy(model)
    assert not calls
    copied.train()(images)
    assert len(calls) == norms, "a copy computes as its original"
    assert calls.count("identity") >= 8, "sums get their activation behind them"
    assert "compiled" in repr(model.head.map_bn)
    use_compiled(model, False)
    model.train()(images)
    assert len(calls) == norms


@pytest.mark.parametrize("difference", ["scale", "gradient", "nan", "error"])
def test_a_package_that_computes_otherwise_is_not_used(monkeypatch, difference) -> None:
    right = kernel([])

    def wrong(x, *arguments):
        if difference == "error":
            raise RuntimeError("no kernel image is available\nfor execution")
        out = right(x, *arguments)
        if difference == "scale":
            return out * 1.001
        return out / 0 * 0 if difference == "nan" else out.detach() + 0.9 * (out - out.detach())

    monkeypatch.setattr(compiled_abn, "_kernel", lambda: right)
    monkeypatch.setattr(compiled_abn, "loading_problem", lambda: None)
    assert problem(CPU) is None
    monkeypatch.setattr(compiled_abn, "_kernel", lambda: wrong)
    found = problem(CPU)
    expected = (
        "fails on cpu (RuntimeError: no kernel image is available)" if difference == "error" else "something else"
    )
    assert expected in found


def test_a_package_for_another_torch_is_told(monkeypatch) -> None:
    def broken():
        raise ImportError("_backend.so: undefined symbol: _ZN2at")

    monkeypatch.setattr(compiled_abn, "_kernel", broken)
    monkeypatch.setattr(compiled_abn.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(compiled_abn.metadata, "version", lambda name: "1.1.0")
    assert "another torch (_backend.so: undefined symbol" in loading_problem()
    told = state()
    assert not told.works
    assert told.told.startswith("1.1.0, not usable")
    assert "PyTorch" in told.told


def test_a_missing_package_is_told(monkeypatch) -> None:
    monkeypatch.setattr(compiled_abn.importlib.util, "find_spec", lambda name: None)
    assert state() == (False, "not built (make iabn); ABN is computed in PyTorch")
    assert problem(CPU) == "it is not built here"
