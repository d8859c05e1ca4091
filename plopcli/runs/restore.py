"""From a checkpoint back to a working network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from plopcli.errors import DataError
from plopcli.methods import get_method
from plopcli.models.classifiers import ClassifierPlan
from plopcli.models.segmenter import Segmenter, build_for
from plopcli.resolution.stored import restore_settings
from plopcli.runs.checkpoint import Checkpoint, load_checkpoint
from plopcli.runs.folder import RunFolder
from plopcli.settings.sections import ComputeSettings, RunSettings


def build_model(checkpoint: Checkpoint, settings: RunSettings) -> Segmenter:
    """The network of ``checkpoint``, holding its weights, in eval mode on the CPU.

    Raises:
        DataError: Weights and settings do not fit.
    """
    if checkpoint.network:
        model = Segmenter.restored(checkpoint.network, checkpoint.class_counts, checkpoint.model)
    else:
        model = build_for(checkpoint.model, settings.model, checkpoint.class_counts, plan_of(checkpoint, settings))
    try:
        model.load_state_dict(dict(checkpoint.model))
    except RuntimeError as error:
        raise DataError(f"The checkpoint's weights do not fit its own settings: {error}") from error
    return model.eval()


def plan_of(checkpoint: Checkpoint, settings: RunSettings) -> ClassifierPlan:
    """What the scores of a checkpoint's network mean; earlier versions stored nothing, and it was up to the method.

    Raises:
        DataError: It is not told soundly.
    """
    if checkpoint.network:
        return ClassifierPlan.restored(checkpoint.network.get("classifier", {}))
    return get_method(settings.method.name).classifier(settings.method)


def place(model: Segmenter, device: torch.device, compute: ComputeSettings) -> Segmenter:
    """Moves a network to its device, in the memory layout asked for."""
    layout = torch.channels_last if compute.channels_last else torch.contiguous_format
    model.to(device=device)
    model.to(memory_format=layout)
    return model


def checkpoint_paths(path: Path) -> list[Path]:
    """The checkpoints that ``path`` means: itself if a file, all of a run folder by step.

    Raises:
        DataError: There is none.
    """
    if path.is_file():
        return [path]
    if not path.exists():
        raise DataError(f"{path} does not exist.", "Give a checkpoint file or a run folder.")
    folder = RunFolder(path)
    found = [folder.checkpoint(step) for step in folder.steps()]
    if not found:
        raise DataError(f"{path} holds no checkpoints/step-N.pt.", "Give a checkpoint file or the folder of a run.")
    return found


def load(path: Path) -> tuple[Checkpoint, RunSettings]:
    """A checkpoint with its settings.

    Raises:
        DataError: It is missing or damaged, or its settings are none of this version.
    """
    return with_settings(load_checkpoint(path))


def with_settings(checkpoint: Checkpoint) -> tuple[Checkpoint, RunSettings]:
    """A checkpoint with its settings, and these in it complete: what an older version did not know has its default.

    Raises:
        DataError: Its settings are none of this version.
    """
    settings = restore_settings(checkpoint.settings)
    return replace(checkpoint, settings=settings.model_dump(mode="json")), settings
