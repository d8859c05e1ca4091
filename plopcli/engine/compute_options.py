"""How the network of a step computes, and whether it is still sound."""

from __future__ import annotations

from plopcli.engine.run import Run
from plopcli.errors import PlopError
from plopcli.models.abn import save_memory, synchronise_statistics
from plopcli.models.compiled_abn import use_compiled
from plopcli.models.encoder import checkpoint_activations
from plopcli.models.segmenter import Segmenter


def set_compute_options(run: Run, model: Segmenter) -> None:
    """Gives the network to train the traits of `compute` that change how it computes, not what."""
    if run.syncs_norm:
        synchronise_statistics(model)
    save_memory(model, run.settings.compute.in_place_norm)
    use_compiled(model, run.abn.implementation == "inplace_abn")
    checkpoint_activations(model, run.settings.compute.checkpointing)


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
