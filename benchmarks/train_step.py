"""A PLOP iteration of the training core against the bare cost of its model work, in interleaved pairs.

Bare: old forward with taps, new forward with taps, upsampling, cross-entropy, backward, SGD; no pseudo-labels, no POD,
no engine. Default: resnet101, 2 images of 512 on the CPU.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F

from benchmarks.report import interleaved, ratios, save
from plopcli.devices.precision import Precision
from plopcli.devices.process import Process
from plopcli.engine.optim import build_optimizer, build_schedule, prepare_training
from plopcli.engine.trainer import Trainer, read_iterations
from plopcli.methods.base import Batch, StepContext, StepPass
from plopcli.methods.plop import Plop, PlopSettings
from plopcli.models.segmenter import Segmenter, build_segmenter
from plopcli.settings.sections import ModelSettings, StepRecipe

CLASSES = (16, 1)
CPU = Process(torch.device("cpu"))


def models(settings: ModelSettings) -> tuple[Segmenter, Segmenter]:
    """A model with a new class and its frozen predecessor, channels last."""
    torch.manual_seed(0)
    old = build_segmenter(settings, CLASSES[:1]).to(memory_format=torch.channels_last)
    new = copy.deepcopy(old)
    new.add_classifier(CLASSES[1])
    return new.to(memory_format=torch.channels_last), old.eval().requires_grad_(False)


def bare_iteration(settings: ModelSettings, recipe: StepRecipe, batch: Batch) -> Callable[[], object]:
    """The model work alone."""
    model, old = models(settings)
    prepare_training(model, recipe)
    optimizer = build_optimizer(model, recipe)

    def iterate() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            old(batch.images, features=True)
        logits = model(batch.images, features=True).logits
        F.cross_entropy(logits, batch.labels, ignore_index=255).backward()
        optimizer.step()

    return iterate


def plop_iteration(settings: ModelSettings, recipe: StepRecipe, batch: Batch) -> Callable[[], object]:
    """The same through the training core, with everything that PLOP adds."""
    model, old = models(settings)
    method = Plop(PlopSettings(), StepContext(1, CLASSES))
    method.initialise(model, old)
    method.before_step(StepPass(lambda: iter([batch]), lambda images: old(images), lambda tensor: tensor))
    prepare_training(model, recipe)
    optimizer = build_optimizer(model, recipe)
    schedule = build_schedule(optimizer, recipe, 100)
    trainer = Trainer(model, old, method, optimizer, schedule, Precision("float32", CPU.device), CPU)

    def iterate() -> None:
        read_iterations([trainer.iterate([batch])], CPU)

    return iterate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="resnet101")
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--crop", type=int, default=512)
    parser.add_argument("--pairs", type=int, default=8)
    chosen = parser.parse_args()
    settings = ModelSettings(backbone=chosen.backbone)
    recipe = StepRecipe(lr=0.001)
    labels = torch.zeros(chosen.images, chosen.crop, chosen.crop, dtype=torch.long)
    labels[:, : chosen.crop // 3] = CLASSES[0]
    labels[:, :, :8] = 255
    pictures = torch.randn(chosen.images, 3, chosen.crop, chosen.crop).to(memory_format=torch.channels_last)
    batch = Batch(pictures, labels)
    candidates = {
        "plop": plop_iteration(settings, recipe, batch),
        "bare": bare_iteration(settings, recipe, batch),
    }
    times = interleaved(candidates, chosen.pairs, warmup=2)
    figures = {
        "seconds": {name: statistics.median(values) for name, values in times.items()},
        "plop_over_bare": ratios(times, "plop", "bare"),
        "all_seconds": times,
        "backbone": chosen.backbone,
        "images": chosen.images,
        "crop": chosen.crop,
        "pairs": chosen.pairs,
    }
    for name, value in figures["seconds"].items():
        print(f"{name:6s} {value:7.3f} s an iteration")
    print("plop / bare: {median:.3f} (min {min:.3f}, max {max:.3f})".format(**figures["plop_over_bare"]))
    save("train_step", figures)


if __name__ == "__main__":
    main()
