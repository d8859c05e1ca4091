"""The estimate of `--dry-run` against what autograd really keeps."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from plopcli.engine.memory import estimate_memory
from plopcli.engine.optim import prepare_training
from plopcli.losses.classification import cross_entropy
from plopcli.methods.base import StepContext
from plopcli.methods.ft import FineTuning
from plopcli.models.abn import save_memory
from plopcli.models.encoder import checkpoint_activations
from plopcli.models.segmenter import build_segmenter
from plopcli.resolution.layers import Resolved

Make = Callable[..., Resolved]


@pytest.mark.parametrize("traits", [{}, {"in_place_norm": "true"}, {"checkpointing": "true"}], ids=str)
def test_it_counts_what_is_kept(tiny: Make, traits: dict[str, str]) -> None:
    settings = tiny(method__name="ft", **{f"compute__{name}": value for name, value in traits.items()}).settings
    estimated = estimate_memory(settings, (19,), 4, half=False)

    model = build_segmenter(settings.model, (19,)).to(memory_format=torch.channels_last)
    method = FineTuning(settings.method, StepContext(0, (19,)))
    prepare_training(model, method, settings.train.first)
    save_memory(model, settings.compute.in_place_norm)
    checkpoint_activations(model, settings.compute.checkpointing)
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    images = torch.zeros(4, 3, 48, 48).to(memory_format=torch.channels_last)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = cross_entropy(model(images).logits, torch.zeros(4, 48, 48, dtype=torch.long)).mean()
    assert loss.requires_grad
    real = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    assert estimated.activations == pytest.approx(real, rel=0.02)
    weights = sum(p.nbytes for p in model.parameters())
    assert estimated.networks == pytest.approx(3 * weights, rel=0.01), "weights, gradients, momentum"


def test_what_saves_memory_is_seen_to(tiny: Make) -> None:
    def total(half: bool = False, micro: int = 4, **traits: str) -> int:
        changes = {f"compute__{name}": value for name, value in traits.items()} | {"model__width": "64"}
        return estimate_memory(tiny(method__name="plop", **changes).settings, (19, 1), micro, half=half).activations

    plain = total()
    # Beside the maps in 16 bits, autocast keeps copies of the weights, whatever the batch.
    assert total(half=True, micro=64) < 0.8 * total(micro=64)
    assert total(in_place_norm="true") < 0.8 * plain
    assert total(checkpointing="true") < total(in_place_norm="true")
    assert total(micro=8) == pytest.approx(2 * plain, rel=0.05)


def test_it_reads_well(tiny: Make) -> None:
    told = estimate_memory(tiny(method__name="plop").settings, (19, 1), 4, half=False).describe()
    assert told.startswith("about ")
    assert " MiB (networks " in told
