"""How much memory a step of training needs, found out without allocating it.

A forward pass over fake tensors, which have shapes and no content, tells what the backward pass would keep.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from plopcli.data.batches import Batch
from plopcli.devices.process import Process
from plopcli.engine.optim import prepare_training
from plopcli.engine.setup import initialise, network_to_train
from plopcli.methods import get_method
from plopcli.methods.base import StepContext, StepData
from plopcli.models.abn import save_memory
from plopcli.models.encoder import checkpoint_activations
from plopcli.models.segmenter import Segmenter, build_segmenter
from plopcli.settings.sections import RunSettings


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one device, in float32 unless computed in 16 bits.

    Args:
        networks: Weights of the network and its frozen predecessor, gradients, momentum, tables of the method.
        activations: What a forward pass keeps for the backward pass, of the losses too.
        batch: The images, labels and outputs at hand meanwhile.
    """

    networks: int
    activations: int
    batch: int

    @property
    def total(self) -> int:
        """All of it. On top come the workspaces of kernels (on GPUs, with the CUDA context, about 1 GiB) and, with
        activation checkpointing, the inside of the block that is being computed again.
        """
        return self.networks + self.activations + self.batch

    def describe(self) -> str:
        """For people: ``about 9.8 GiB (networks 0.9, activations 8.3, batch 0.6)``."""
        unit, name, digits = (2**30, "GiB", 1) if self.total >= 2**30 else (2**20, "MiB", 0)
        parts = {"networks": self.networks, "activations": self.activations, "batch": self.batch}
        shares = ", ".join(f"{part} {size / unit:.{digits}f}" for part, size in parts.items())
        return f"about {self.total / unit:.{digits}f} {name} ({shares})"


def estimate_memory(
    settings: RunSettings,
    class_counts: tuple[int, ...],
    micro_batch: int,
    half: bool,
    *,
    shared: bool = False,
    compiled_norm: bool = False,
) -> MemoryEstimate:
    """Memory of training the last of the steps in ``class_counts``.

    Args:
        settings: The run's settings.
        class_counts: Classes of each step so far.
        micro_batch: Images of a forward pass.
        half: Whether it computes in 16 bits.
        shared: It is a later step, which has the classes of the first and brings domains.
        compiled_norm: Whether the package inplace_abn computes the norms.
    """
    step = 1 if shared else len(class_counts) - 1
    context = StepContext(step, class_counts, shared)
    method = get_method(settings.method.name)(settings.method, context)
    recipe = settings.train.recipe(step)
    crop = settings.data.crop
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake:
        old: Segmenter | None = None
        if step:
            known = class_counts if shared else class_counts[:-1]
            old = build_segmenter(settings.model, known, method.classifier(settings.method))
            old.eval().requires_grad_(False)
        # Fake tensors cannot be copied: it is built anew, to the same shapes.
        model = method.expand(network_to_train(settings.model, context, method, None))
        initialise(method, model, old, Process(torch.device("cpu")))
    # Without images, so the method gets its tables, empty; what it reads out of them has to be there.
    method.before_step(StepData.empty())
    with fake, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about shapes of outputs that only fake tensors have
        prepare_training(model, method, recipe)
        # The package keeps what our norms in place keep, residual sums aside, which it does not know.
        save_memory(model, settings.compute.in_place_norm or compiled_norm, sums=not compiled_norm)
        checkpoint_activations(model, settings.compute.checkpointing)
        layout = torch.channels_last if settings.compute.channels_last else torch.contiguous_format
        images = torch.empty(micro_batch, 3, crop, crop).to(memory_format=layout)
        labels = torch.zeros(micro_batch, crop, crop, dtype=torch.long)
        maps = {name: torch.zeros(micro_batch, crop, crop, dtype=torch.uint8) for name in method.maps}
        batch = Batch(images, labels, maps, torch.zeros(micro_batch, dtype=torch.uint8))
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            before = None
            features = method.uses_features
            if old is not None and method.uses_old_model:
                with torch.no_grad():
                    before = old(batch.images, features=features)
            trained = [*model.parameters(), *method.parameters()]
            own = {tensor.untyped_storage()._cdata for tensor in (*trained, *model.buffers(), *method.buffers())}
            kept = _Kept(own)
            with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor):
                new = model(batch.images, features=features)
                terms = method.losses(batch, new, before)
            assert terms
        held: list[Tensor] = [batch.images, batch.labels, *batch.maps.values()]
        for outputs in (new, before):
            if outputs is not None:
                held += [outputs.logits, outputs.small, *outputs.features]
        alive = sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in held}.values())
        moved = sum(parameter.nbytes for parameter in trained if parameter.requires_grad)
        copies = 3 if recipe.optimizer == "adamw" else 2 if recipe.momentum else 1
        networks = _size(model) + _size(method) + (_size(old) if old is not None else 0) + moved * copies
        networks += moved * method.parameter_copies
    return MemoryEstimate(networks, kept.bytes, max(alive - kept.bytes_of(held), 0))


class _Kept:
    """Adds up the storages that autograd keeps, each once, without those of the network itself."""

    def __init__(self, ignored: set[int]) -> None:
        self._ignored = ignored
        self._sizes: dict[int, int] = {}
        self._alive: list[Tensor] = []

    def pack(self, tensor: Tensor) -> Tensor:
        """Called by autograd with whatever it keeps."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._ignored:
            self._sizes[storage._cdata] = storage.nbytes()
            self._alive.append(tensor)  # so that no other storage gets its address
        return tensor

    @property
    def bytes(self) -> int:
        """Of all that is kept."""
        return sum(self._sizes.values())

    def bytes_of(self, tensors: list[Tensor]) -> int:
        """Of those among ``tensors`` that are kept."""
        storages = {tensor.untyped_storage()._cdata for tensor in tensors}
        return sum(size for storage, size in self._sizes.items() if storage in storages)


def _size(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
