"""Files of the original implementation turned into ours, and ours into theirs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from plopcli.errors import DataError, UsageError
from plopcli.files.atomic import write_atomic
from plopcli.files.disk import writing
from plopcli.methods import get_method
from plopcli.methods.ewc import EwcSettings
from plopcli.methods.pi import PiSettings
from plopcli.methods.regularised import Regularised
from plopcli.methods.rw import RwSettings
from plopcli.models.deeplab import DILATIONS
from plopcli.models.resnet import LAYOUTS
from plopcli.models.segmenter import norm_of
from plopcli.resolution.stored import restore_settings
from plopcli.runs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from plopcli.runs.foreign import Description, adopt
from plopcli.runs.original import PREFIX, SOURCE, OriginalCheckpointError, carried_tables, original_content
from plopcli.runs.restore import with_settings
from plopcli.settings.sections import MethodSettings, ModelSettings, RunSettings

Direction = Literal["plop", "original"]


@dataclass(frozen=True)
class Conversion:
    """What was converted.

    Args:
        checkpoint: The model, as plop sees it.
        notes: What the user should know about what the other side cannot hold.
    """

    checkpoint: Checkpoint
    notes: tuple[str, ...]


def convert(source: Path, target: Path, to: Direction, description: Description) -> Conversion:
    """Turns ``source`` into a file of the other kind; the network's tensors keep every bit.

    Args:
        source: A checkpoint of the original, or one of plop.
        target: The file to write, which must not exist.
        to: What it shall be.
        description: What a checkpoint of the original has learned.

    Raises:
        DataError: ``source`` is missing, damaged, something else, or does not fit the description.
        UsageError: ``target`` exists, or there is nothing to convert.
        MachineError: ``target`` cannot be written.
    """
    if target.is_dir():
        raise UsageError(f"{target} is a folder.", f"Give the name of a file in it: {target / source.name}")
    if target.exists():
        raise UsageError(f"{target} exists; nothing is overwritten.", "Choose another name, or remove it first.")
    if source.is_dir():
        raise UsageError(f"{source} is a folder.", f"Give one checkpoint: {source}/checkpoints/step-N.pt")
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    return _to_plop(source, target, description) if to == "plop" else _to_original(source, target, description)


def _to_plop(source: Path, target: Path, description: Description) -> Conversion:
    try:
        load_checkpoint(source)
    except OriginalCheckpointError as error:
        if description.dataset and description.task and description.method is None:
            raise UsageError(
                "--method is missing: a checkpoint of plop says by which method it was trained.",
                "For example: --method plop   (`plop methods` lists them)",
            ) from error
        checkpoint = adopt(error.content, source, description)
    else:
        raise UsageError(f"{source} is a checkpoint of plop already.", "The other direction is --to original.")
    save_checkpoint(target, checkpoint)
    notes = ["the states of its optimizer and schedule are left out: plop starts each step with fresh ones"]
    method = restore_settings(checkpoint.settings).method.name
    if dropped := checkpoint.made_with.get("dropped"):
        notes.append(f"its state of {dropped} is left out: it is not one that {method} can go on from")
    if checkpoint.method:
        notes.append(f"what {method} carries to the next step is in it, so that train-step goes on from it")
    return Conversion(checkpoint, tuple(notes))


def _to_original(source: Path, target: Path, description: Description) -> Conversion:
    if description:
        raise UsageError(
            "--dataset, --task, --method, --step and --set are for the direction to plop.",
            "Leave them away: a checkpoint of plop knows all that.",
        )
    try:
        checkpoint, settings = with_settings(load_checkpoint(source))
    except OriginalCheckpointError as error:
        raise UsageError(
            f"{source} is a checkpoint of {SOURCE} already.",
            "The other direction is --to plop --dataset NAME --task NAME --method NAME.",
        ) from error
    if settings.model.backbone not in {f"resnet{depth}" for depth in LAYOUTS}:
        raise DataError(
            f"{source} holds a {settings.model.backbone}, which {SOURCE} does not have.", "It has ResNets alone."
        )
    content = original_content(
        checkpoint.model,
        _regulariser(checkpoint, settings.method),
        _epoch(checkpoint, settings),
        score if isinstance(score := checkpoint.made_with.get("best_score"), float) else 0.0,
    )
    size = sum(tensor.untyped_storage().nbytes() for tensor in checkpoint.model.values())
    with writing(target, size):
        write_atomic(target, lambda file: torch.save(content, file))
    notes = [
        "without states of optimizer and schedule: for testing and as the previous step, not for going on in its own",
        "data set, task and settings have no place in it: note them down",
        *_differences(settings.model),
    ]
    return Conversion(checkpoint, tuple(notes))


def _epoch(checkpoint: Checkpoint, settings: RunSettings) -> int:
    """The last epoch, counted from 0: of the original file where the weights come from one."""
    stored = checkpoint.made_with.get("epoch")
    return stored if isinstance(stored, int) else settings.train.recipe(checkpoint.step).epochs - 1


def _regulariser(checkpoint: Checkpoint, method: MethodSettings) -> dict[str, Any] | None:
    """The state of EWC, PI or RW in the original's words; what its own step counts starts anew."""
    kind, state, model = get_method(method.name), checkpoint.method.get("carried"), checkpoint.model
    if not issubclass(kind, Regularised) or not isinstance(state, Mapping):
        return None
    shapes = {name: tensor.shape for name, tensor in model.items()}
    state = {**state, "name": checkpoint.method.get("method")}
    carried = carried_tables(state, method.name, kind.carries, shapes)
    if carried is None:
        return None
    tables: dict[str, Any] = {
        table: {PREFIX + name: tensor for name, tensor in tensors.items()} for table, tensors in carried.items()
    }
    if isinstance(method, PiSettings):
        names = carried["score"]
        tables["delta"] = {PREFIX + name: torch.zeros_like(model[name]) for name in names}
        tables["starting_model"] = {PREFIX + name: model[name] for name in names}
    elif isinstance(method, EwcSettings | RwSettings):
        tables["alpha"] = method.alpha
    if isinstance(method, RwSettings):
        tables["iteration"] = 0
    return {"name": method.name, **tables}


def _differences(model: ModelSettings) -> list[str]:
    """Where the original's program would build or compute another network than the one that was trained."""
    theirs: dict[str, tuple[object, object]] = {
        "norm": (norm_of(model), "abn"),
        "activation": (model.activation, "leaky_relu"),
        "width": (model.width, 64),
        "head_channels": (model.head_channels, 256),
        "head_dilations": (model.head_dilations or DILATIONS[model.output_stride], DILATIONS[model.output_stride]),
    }
    return [
        f"model.{key} is {ours}, and {SOURCE} has {fixed}: it would compute something else, or refuse the file"
        for key, (ours, fixed) in theirs.items()
        if ours != fixed
    ]
