"""The networks of a step: the one to train and its frozen predecessor."""

from __future__ import annotations

import copy

import numpy as np
import torch

from plopcli.engine.checks import weights_path
from plopcli.engine.run import Run
from plopcli.errors import PlopError
from plopcli.methods.base import StepContext
from plopcli.models.abn import save_memory, synchronise_statistics
from plopcli.models.body import checkpoint_activations
from plopcli.models.compiled_abn import use_compiled
from plopcli.models.segmenter import Segmenter, build_segmenter
from plopcli.models.weights import load_backbone_weights
from plopcli.runs.checkpoint import Checkpoint
from plopcli.runs.restore import build_model, place


def build_models(run: Run, context: StepContext, previous: Checkpoint | None) -> tuple[Segmenter, Segmenter | None]:
    """The model to train, holding the previous weights and, for new classes, a fresh classifier; the frozen previous
    model.
    """
    torch.manual_seed(int(np.random.SeedSequence((run.settings.seed, context.step)).generate_state(1)[0]))
    settings = run.settings.model
    if previous is None:
        model = build_segmenter(settings, context.classes)
        if (path := weights_path(run.settings)) is not None:
            load_backbone_weights(model, path)
        return place(model, run.process.device, run.settings.compute), None
    model = build_model(previous, run.settings)
    old_model = place(copy.deepcopy(model), run.process.device, run.settings.compute)
    if not context.shared:
        model.add_classifier(context.new)
    return place(model, run.process.device, run.settings.compute), old_model.eval().requires_grad_(False)


def apply_traits(run: Run, model: Segmenter) -> None:
    """Gives the network to train the traits of `compute` that change how it computes, not what."""
    if run.together:
        synchronise_statistics(model)
    save_memory(model, run.settings.compute.in_place_norm)
    use_compiled(model, run.abn.implementation == "inplace_abn")
    checkpoint_activations(model, run.settings.compute.checkpointing)


def average_statistics(run: Run, model: Segmenter) -> None:
    """Where every process kept running statistics of its own, all get the mean."""
    if run.process.world > 1 and not run.together:
        run.process.average_statistics(model)


def check_weights(model: Segmenter, where: str) -> None:
    """Keeps a model that diverged in its very last iterations from passing for a trained one.

    Raises:
        PlopError: A weight is not finite.
    """
    bad = [name for name, tensor in model.state_dict().items() if not bool(tensor.isfinite().all())]
    if bad:
        raise PlopError(
            f"After {where} the weights are not finite ({bad[0]} and {len(bad) - 1} more).",
            "Use a lower learning rate (--lr, --lr-later); what was saved before is intact.",
        )
