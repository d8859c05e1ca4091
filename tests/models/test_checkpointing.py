"""Blocks that are computed again in the backward pass, against those that are computed once."""

from __future__ import annotations

import copy
import threading

import pytest
import torch

from plopcli.errors import UsageError
from plopcli.models import recomputation
from plopcli.models.abn import freeze_statistics, save_memory
from plopcli.models.encoder import checkpoint_activations
from plopcli.models.segmenter import Segmenter, build_segmenter
from plopcli.settings.sections import ModelSettings

RESNET = ModelSettings(backbone="resnet50", width=8, head_channels=16)
MOBILE = ModelSettings(backbone="mobilenet_v2", head_channels=16)


def build(settings: ModelSettings, in_place: bool = False) -> Segmenter:
    torch.manual_seed(0)
    model = build_segmenter(settings, (3, 2)).train()
    if in_place:
        save_memory(model)
    return model


def iterate(model: Segmenter, features: bool, iterations: int) -> tuple[list[torch.Tensor], list[int]]:
    """Trains; gives losses and last gradients, and the bytes that every backward pass found kept."""
    torch.manual_seed(1)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01, momentum=0.9)
    seen, bytes_kept = [], []
    for _ in range(iterations):
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor, kept: dict[int, int] = kept) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        images = torch.randn(2, 3, 64, 64)
        optimizer.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = model(images, features=features)
            loss = sum(t.square().mean() for t in (out.logits, *out.features))
        loss.backward()
        optimizer.step()
        seen.append(loss.detach())
        bytes_kept.append(sum(kept.values()))
    return [*seen, *(p.grad for p in model.parameters() if p.grad is not None)], bytes_kept


@pytest.mark.parametrize("features", [False, True])
@pytest.mark.parametrize("kind", ["resnet", "in-place", "mobilenet", "frozen"])
def test_training_stays_bitwise_the_same(kind, features):
    model = build(MOBILE if kind == "mobilenet" else RESNET, kind == "in-place")
    if kind == "frozen":
        freeze_statistics(model.body, affine=True)
    again = copy.deepcopy(model)
    checkpoint_activations(again)
    wanted, much = iterate(model, features, 3)
    found, little = iterate(again, features, 3)
    assert len(wanted) == len(found) > 3
    assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))
    state = again.state_dict()
    assert {name for name, value in model.state_dict().items() if not torch.equal(value, state[name])} == set()
    counts = {int(value) for name, value in state.items() if name.endswith("num_batches_tracked")}
    assert counts == ({0, 3} if kind == "frozen" else {3})
    # Parameters are counted as well.
    assert all(a < 0.8 * b for a, b in zip(little, much, strict=True))


@pytest.mark.parametrize("in_place", [False, True])
def test_less_is_kept_than_by_norms_in_place(in_place):
    model = build(RESNET, in_place)
    _, much = iterate(model, False, 1)
    checkpoint_activations(model)
    _, little = iterate(model, False, 1)
    assert little < much
    checkpoint_activations(model.body, False)
    assert iterate(model, False, 1)[1] == much


def test_only_training_with_gradients_is_checkpointed(monkeypatch):
    calls = []

    def counted(block, *arguments):
        calls.append(block)
        return block(*arguments)

    monkeypatch.setattr("plopcli.models.encoder.checkpointed", counted)
    model = build(RESNET)
    checkpoint_activations(model)
    images = torch.randn(2, 3, 64, 64)
    model.eval()(images)
    with torch.no_grad():
        model.train()(images)
    assert calls == []
    model(images)
    assert len(calls) == 1 + 3 + 4 + 6 + 3


def test_a_recomputation_is_seen_in_its_own_thread_only():
    model = build(RESNET)
    checkpoint_activations(model)
    seen = []

    def backward(loss):
        loss.backward()
        seen.append(recomputation.recomputing())

    def watched(*_):
        other = threading.Thread(target=lambda: elsewhere.append(recomputation.recomputing()))
        other.start()
        other.join()
        here.append(recomputation.recomputing())

    here, elsewhere = [], []
    model.body.mod4.block1.convs.bn1.register_forward_hook(watched)
    loss = model(torch.randn(2, 3, 64, 64)).logits.square().mean()
    thread = threading.Thread(target=backward, args=(loss,))
    thread.start()
    thread.join()
    assert here == [False, True]
    assert elsewhere == [False, False]
    assert seen == [False]
    assert int(model.body.mod4.block1.convs.bn1.num_batches_tracked) == 1


def test_the_backward_pass_leaves_no_trace_if_it_fails():
    model = build(RESNET)
    checkpoint_activations(model)
    loss = model(torch.randn(2, 3, 64, 64)).logits.square().mean()

    def fail(*_):
        raise UsageError("stopped here")

    model.body.mod2.block2.convs.conv2.register_forward_hook(fail)
    with pytest.raises(UsageError, match="stopped here"):
        loss.backward()
    assert not recomputation.recomputing()
