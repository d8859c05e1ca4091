"""Checkpoints of networks that nobody has trained, as if somebody had: every norm does something of its own."""

from __future__ import annotations

from pathlib import Path

import torch

from plopcli.data.toy import TOY_CLASSES
from plopcli.models.abn import batch_norms
from plopcli.models.segmenter import Segmenter, build_segmenter
from plopcli.resolution.layers import resolve_settings
from plopcli.runs.checkpoint import Checkpoint, save_checkpoint
from plopcli.scenarios.tasks import resolve_task

SMALL = {
    "data.dataset": "toy",
    "data.crop": 64,
    "scenario.task": "15-1",
    "method.name": "plop",
    "model.backbone": "resnet18",
    "model.pretrained": "false",
    "model.width": 8,
    "model.head_channels": 16,
    "model.output_stride": 8,
}


def stir(model: Segmenter, seed: int = 0) -> Segmenter:
    """Gives every norm statistics, scales (some negative) and offsets at random, and the classifiers some contrast."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for norm in batch_norms(model):
            norm.running_mean.normal_(0, 0.3, generator=generator)
            norm.running_var.uniform_(0.5, 2, generator=generator)
            norm.weight.normal_(0.8, 0.5, generator=generator)
            norm.bias.normal_(0, 0.3, generator=generator)
        for classifier in model.classifiers:
            classifier.weight.normal_(0, 0.5, generator=generator)
    return model


def write_checkpoint(path: Path, step: int = 1, **changes: object) -> Path:
    """A checkpoint after ``step`` of toy 15-1; keyword arguments are dotted keys with __ for the dots."""
    keys = SMALL | {key.replace("__", "."): value for key, value in changes.items()}
    settings = resolve_settings(
        {}, assignments=[f"{key}={value}" for key, value in keys.items()], environment={}
    ).settings
    task = resolve_task(settings.scenario.task, TOY_CLASSES, "toy", background=True)
    torch.manual_seed(step)
    model = stir(build_segmenter(settings.model, task.counts(step)), step)
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = Checkpoint(
        step=step,
        classes=[TOY_CLASSES[label] for label in task.seen(step)],
        class_counts=list(task.counts(step)),
        task_name=task.name,
        task_steps=[list(labels) for labels in task.steps],
        task_groups=[list(group) for group in task.groups],
        settings=settings.model_dump(mode="json"),
        model=model.state_dict(),
    )
    save_checkpoint(path, checkpoint)
    return path
