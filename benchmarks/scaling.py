"""How the cost of PLOP and fine-tuning grows with classes, steps, images and their size, on a network so small that the
losses are most of it.

Times of a whole iteration through the training core, and of the method's losses and their gradients alone, with
outputs of the networks at hand. Over classes also: parts of PLOP and of the engine that classes could make expensive.
"""

from __future__ import annotations

import argparse
import gc
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.report import Benchmark, Figures, interleaved, medians, ratios, table
from benchmarks.workload import Training, Workload, build_training, compute_of
from plopcli.devices.process import Process, this_process
from plopcli.losses.classification import cross_entropy
from plopcli.losses.pod import match_logits, pod_terms
from plopcli.losses.pseudo_labels import BINS, entropy_histogram, pseudo_label
from plopcli.losses.thresholds import Estimator, class_thresholds
from plopcli.methods.plop import Plop
from plopcli.metrics.segmentation import ConfusionMatrix
from plopcli.models.segmenter import Outputs
from plopcli.settings.sections import ModelSettings

NETWORK = ModelSettings(backbone="resnet18", pretrained=False, width=16, head_channels=64)
CLASSES = (21, 51, 101, 151, 501, 1000)
STEPS = (2, 5, 10, 15, 20)
#: Growth above this power of the number of classes is called worse than linear. On a CPU a cost that is linear seems to
#: grow faster, once, where maps outgrow a cache.
LINEAR = 1.3
#: Classes of the sweeps over steps, images and crops.
USUAL_CLASSES = 101
_PER_STEP = 5


def losses_alone(training: Training) -> Callable[[], object]:
    """The method's losses and their gradients with regard to the network's outputs."""
    batch, method = training.batch, training.method
    taps = method.uses_features
    with torch.no_grad():
        new = training.model(batch.images, features=taps)
        old = training.old(batch.images, features=taps) if method.uses_old_model else None

    def call() -> None:
        outputs = _leaves(new)
        terms = method.losses(batch, outputs, old)
        _differentiate(torch.stack(list(terms.values())).sum(), outputs)

    return call


def parts_of_plop(training: Training) -> dict[str, Callable[[], object]]:
    """The parts of PLOP's losses, of its preparation, and the count of an evaluation."""
    batch, context = training.batch, training.work.context
    with torch.no_grad():
        new = training.model(batch.images, features=True)
        old = training.old(batch.images, features=True)
    assert isinstance(training.method, Plop)
    thresholds = training.method.thresholds
    assert thresholds is not None
    confusion = ConfusionMatrix(context.total, training.process.device)
    predicted = old.logits.argmax(1)

    def classification() -> None:
        outputs = _leaves(new)
        _differentiate(cross_entropy(outputs.logits, batch.labels).mean(), outputs)

    def pod() -> None:
        outputs = _leaves(new)
        maps = [*outputs.features, match_logits(outputs.small, context.old, "sum")]
        _differentiate(pod_terms(maps, [*old.features, old.small], [1.0] * len(maps)).sum(), outputs)

    calls: dict[str, Callable[[], object]] = {
        "cross-entropy": classification,
        "pod": pod,
        "pseudo-labels": lambda: pseudo_label(old.logits, batch.labels, thresholds, "reference"),
        "confusion matrix": lambda: confusion.update(batch.labels, predicted),
    }
    estimators: tuple[Estimator, ...] = ("reference", "exact")
    for estimator in estimators:
        counts = torch.ones(context.total, BINS[estimator], dtype=torch.int64, device=batch.labels.device)
        calls[f"histogram, {estimator}"] = lambda e=estimator: entropy_histogram(  # type: ignore[misc]
            old.logits, batch.labels, e, context.total
        )
        # Once a step, on the host.
        calls[f"thresholds, {estimator}"] = lambda e=estimator, c=counts: class_thresholds(c, e, 0.001)  # type: ignore[misc]
    return calls


def measure_point(work: Workload, process: Process, chosen: argparse.Namespace, *, parts: bool = False) -> Figures:
    """Median seconds of every candidate for one size."""
    calls: dict[str, Callable[[], object]] = {}
    for name in ("ft", "plop"):
        training = build_training(replace(work, method=name), process)
        calls[name] = training.iterate
        calls[f"{name}, losses"] = losses_alone(training)
        if parts and name == "plop":
            calls |= parts_of_plop(training)
    if process.device.type == "cuda":
        calls = {name: _waiting(call) for name, call in calls.items()}
    times = interleaved(calls, chosen.rounds, seconds=chosen.seconds_per_point)
    gc.collect()
    return {
        "classes": sum(work.classes),
        "steps": len(work.classes),
        "images": work.images,
        "crop": work.crop,
        "seconds": medians(times),
        "least_seconds": {name: min(values) for name, values in times.items()},
        "plop_over_ft": ratios(times, "plop", "ft"),
    }


def split_classes(total: int, steps: int) -> tuple[int, ...]:
    """``total`` classes in ``steps`` steps, `_PER_STEP` in each but the first."""
    return (total - _PER_STEP * (steps - 1), *[_PER_STEP] * (steps - 1))


def growth(points: Sequence[Figures], size: str) -> dict[str, float]:
    """By which power of the size the least times grow: a line through the logarithms, of the larger half of sizes."""
    ordered = sorted(points, key=lambda point: int(point[size]))
    upper = ordered[min(len(ordered) // 2, len(ordered) - 2) :]
    sizes = [math.log(point[size]) for point in upper]
    names = upper[0]["least_seconds"]
    return {
        name: statistics.linear_regression(sizes, [math.log(p["least_seconds"][name]) for p in upper]).slope
        for name in names
    }


def measure(chosen: argparse.Namespace) -> Figures:
    compute = compute_of(chosen.device)

    def work(classes: tuple[int, ...], images: int = chosen.images, crop: int = chosen.crop) -> Workload:
        return Workload("plop", NETWORK, compute, images, crop, classes)

    usual = (chosen.usual_classes - 1, 1)
    with this_process(compute) as process:
        figures: dict[str, Any] = {
            "classes": [measure_point(work((n - 1, 1)), process, chosen, parts=True) for n in chosen.classes],
            "steps": [
                measure_point(work(split_classes(chosen.usual_classes, n)), process, chosen) for n in chosen.steps
            ],
            "images": [measure_point(work(usual, images=n), process, chosen) for n in chosen.batches],
            "crop": [measure_point(work(usual, crop=n), process, chosen) for n in chosen.crops],
        }
        figures["threads"] = torch.get_num_threads()
    figures["growth"] = {sweep: growth(figures[sweep], sweep) for sweep in ("classes", "steps", "images", "crop")}
    figures["worse_than_linear"] = [name for name, power in figures["growth"]["classes"].items() if power > LINEAR]
    if chosen.plot is not None:
        # matplotlib takes seconds to import.
        from benchmarks.scaling_plot import draw

        draw(figures, chosen.plot)
    return figures


def show(figures: Figures) -> str:
    texts = []
    for sweep in ("classes", "steps", "images", "crop"):
        names = list(figures[sweep][0]["seconds"])
        main = [name for name in names if name.startswith(("ft", "plop"))]
        rows = [
            [point[sweep], *(1000 * point["seconds"][name] for name in main), point["plop_over_ft"]["median"]]
            for point in figures[sweep]
        ]
        texts.append(table([f"ms, by {sweep}", *main, "plop / ft"], rows))
        if len(names) > len(main):
            rest = [name for name in names if name not in main]
            rows = [[name, *(1000 * point["seconds"][name] for point in figures[sweep])] for name in rest]
            texts.append(table(["ms, by classes", *(str(point["classes"]) for point in figures[sweep])], rows))
    powers = figures["growth"]["classes"].items()
    texts.append("grows with classes to the power of: " + ", ".join(f"{name} {power:.2f}" for name, power in powers))
    texts.append("worse than linear in classes: " + (", ".join(figures["worse_than_linear"]) or "nothing"))
    return "\n\n".join(texts)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--classes", type=int, nargs="+", default=CLASSES, metavar="N")
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS, metavar="N")
    parser.add_argument("--batches", type=int, nargs="+", default=(2, 4, 8), metavar="N", help="images of a batch")
    parser.add_argument("--crops", type=int, nargs="+", default=(64, 128, 256), metavar="PIXELS")
    parser.add_argument("--images", type=int, default=2, help="where the batch does not vary; default: %(default)s")
    parser.add_argument("--crop", type=int, default=128, help="where it does not vary; default: %(default)s")
    parser.add_argument("--usual-classes", type=int, default=USUAL_CLASSES, help="where they do not vary")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds-per-point", type=float, default=20.0, help="begin no further round after that long")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw it")


BENCHMARK = Benchmark(
    "how the cost of PLOP and FT grows with classes, steps, images and crop",
    options,
    measure,
    show,
    brief=("--rounds", "3", "--seconds-per-point", "4"),
    tiny=(
        *("--classes", "6", "12", "--steps", "2", "3", "--batches", "2", "3", "--crops", "64", "80"),
        *("--images", "2", "--crop", "64", "--usual-classes", "11", "--rounds", "3"),
    ),
)


def _leaves(outputs: Outputs) -> Outputs:
    """The same values, as if they had been computed by a network that waits for their gradients."""

    def leaf(tensor: Tensor) -> Tensor:
        return tensor.detach().requires_grad_()

    encoder = None if outputs.encoder is None else leaf(outputs.encoder)
    return Outputs(leaf(outputs.logits), leaf(outputs.small), tuple(map(leaf, outputs.features)), encoder)


def _differentiate(loss: Tensor, outputs: Outputs) -> None:
    """The gradients, handed on as they are: a leaf's own gradient would be one more large tensor."""
    torch.autograd.grad(loss, [outputs.logits, outputs.small, *outputs.features], allow_unused=True)


def _waiting(call: Callable[[], object]) -> Callable[[], object]:
    def wait() -> None:
        call()
        torch.cuda.synchronize()

    return wait
