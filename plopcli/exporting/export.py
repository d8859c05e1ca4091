"""`plop export`: a trained model as a file for other programs, checked against the model."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from plopcli.data.datasets import DATASETS
from plopcli.data.reading import read_image
from plopcli.data.transforms import MEAN, STD
from plopcli.errors import UsageError
from plopcli.evaluation.predict import scaled
from plopcli.exporting.check import ExportCheck, Pixels, compare, logits_of, noise
from plopcli.exporting.facts import Facts
from plopcli.exporting.formats import FORMATS, choose_format, open_exported
from plopcli.exporting.network import InferenceNetwork, InputKind
from plopcli.files.atomic import rename_durably, write_atomic
from plopcli.files.disk import writing
from plopcli.models.deeplab import DeepLabV3Head
from plopcli.models.segmenter import Segmenter
from plopcli.runs.checkpoint import Checkpoint
from plopcli.runs.folder import RunFolder
from plopcli.runs.foreign import Description, load_described
from plopcli.runs.learned import learned_colours
from plopcli.runs.restore import build_model, checkpoint_paths
from plopcli.settings.sections import RunSettings

Pooling = Literal["trained", "global"]


@dataclass(frozen=True)
class ExportOptions:
    """The options of an export.

    Args:
        format: The kind of file; None: by the suffix.
        takes: Input of the exported model.
        pooling: The head's pooling: as trained, or over the whole map.
        check: Pictures to check the file on; empty: generated ones; None: no check.
        overwrite: Whether a file may be replaced.
        step: The step of a run folder; None: the last.
        described: What a checkpoint of the original implementation has learned.
    """

    format: str | None = None
    takes: InputKind = "pixels"
    pooling: Pooling = "trained"
    check: Sequence[Path] | None = ()
    overwrite: bool = False
    step: int | None = None
    described: Description | None = None


@dataclass(frozen=True)
class Exported:
    """A written file: its format, metadata, bytes, and the result of the check (None without one)."""

    path: Path
    format: str
    facts: Facts
    size: int
    checked: ExportCheck | None


def export(source: Path, target: Path | None, plan: ExportOptions) -> Exported:
    """Writes a model for other programs, and compares the file's outputs with the model's.

    Args:
        source: A checkpoint, or a run folder.
        target: The file; None: named after ``source``, in the current folder.
        plan: What to write, and how to check it.

    Raises:
        UsageError: The format is not given, or the file exists.
        DataError: There is no such checkpoint, or a picture to check on is broken.
        MachineError: A package is missing, or the file cannot be written.
        PlopError: The outputs differ; a former file at ``target`` is intact.
    """
    name = choose_format(plan.format, target)
    path = model_path(source, plan.step, plan.described)
    if target is None:
        target = Path((f"{source.resolve().name}-" if source.is_dir() else "") + path.stem + FORMATS[name].suffixes[0])
    if target.is_dir() or (target.exists() and not plan.overwrite):
        raise UsageError(
            f"{target} {'is a folder' if target.is_dir() else 'exists'}.", "Choose another name, or say --overwrite."
        )
    checkpoint, settings = load_described(path, plan.described)
    model = build_model(checkpoint, settings)
    facts = facts_of(checkpoint, settings, model, plan.takes, plan.pooling)
    pictures = None
    if plan.check is not None:
        shorter = facts.shorter_side
        pictures = [scaled(read_image(each), shorter) for each in plan.check] or noise(shorter)

    content = FORMATS[name].write(InferenceNetwork(model, facts.pooling, plan.takes), facts)
    # It gets its name when it has been found to be right.
    unchecked = target.with_name(f"unchecked-{target.name}")
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with writing(unchecked, len(content)):
            write_atomic(unchecked, content)
        checked = None if pictures is None else _checked(unchecked, name, model, facts, pictures)
        with writing(target):
            rename_durably(unchecked, target)
    finally:
        unchecked.unlink(missing_ok=True)
    return Exported(target, name, facts, len(content), checked)


def _checked(path: Path, name: str, model: Segmenter, facts: Facts, pictures: Sequence[Pixels]) -> ExportCheck:
    """Compares a file with a model, whose pooling becomes that of the file."""
    file, _ = open_exported(path, name, torch.device("cpu"))
    trained = None
    if isinstance(model.head, DeepLabV3Head) and facts.pooling != model.head.pooling:
        trained = logits_of(deepcopy(model))
        model.head.pooling = facts.pooling
    checked = compare(logits_of(model), file, pictures, trained)
    checked.verify()
    return checked


def facts_of(
    checkpoint: Checkpoint,
    settings: RunSettings,
    model: Segmenter,
    takes: InputKind = "pixels",
    pooling: Pooling = "trained",
) -> Facts:
    """The metadata of the model in a checkpoint."""
    spec = DATASETS.get(settings.data.dataset)
    return Facts(
        classes=list(checkpoint.classes),
        palette=learned_colours(checkpoint)[: len(checkpoint.classes)].tolist(),
        background=spec is None or not spec.domains,
        dataset=settings.data.dataset,
        task=checkpoint.task_name,
        step=checkpoint.step,
        method="unknown" if "method" in checkpoint.made_with.get("unknown", ()) else settings.method.name,
        backbone=model.settings.backbone,
        input=takes,
        shorter_side=settings.data.crop,
        output_stride=model.settings.output_stride,
        pooling=None if pooling == "global" else model.settings.pooling,
        # The backbone's weights file is a path of this machine, and of no more use.
        network=model.settings.model_copy(update={"weights": None}).model_dump(mode="json"),
        classifier=model.plan.stored(),
        class_counts=list(model.class_counts),
        mean=list(MEAN),
        std=list(STD),
    )


def model_path(path: Path, step: int | None, described: Description | None = None) -> Path:
    """The checkpoint to use: ``path`` itself, or of a run folder that of ``step``, by default the last.

    Raises:
        DataError: There is none.
        UsageError: A step was asked of a file.
    """
    paths = checkpoint_paths(path)
    if step is None:
        return paths[-1]
    if path.is_dir():
        wanted = RunFolder(path).checkpoint(step)
        if wanted not in paths:
            steps = ", ".join(file.stem.removeprefix("step-") for file in paths)
            raise UsageError(f"{path} has no step {step}.", f"Its steps are {steps}.")
        return wanted
    if not described:
        raise UsageError(f"A step is for run folders, and {path} is a checkpoint.", "Leave it away.")
    return path
