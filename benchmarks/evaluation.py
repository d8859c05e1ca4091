"""Evaluation of images that are in memory already: `measure` against forward pass and argmax alone."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from benchmarks.report import Benchmark, Figures, interleaved, medians, ratios, spread, table
from benchmarks.workload import TINY_OPTIONS, Workload, add_workload_options, compute_of, network_of, networks
from plopcli.data.loading import EvaluationImages, Example
from plopcli.data.samples import Sample, StepSplit
from plopcli.data.transforms import normalise
from plopcli.devices.precision import choose_precision
from plopcli.devices.process import this_process
from plopcli.evaluation.measure import measure as measure_model
from plopcli.settings.sections import DataSettings

#: Sides of VOC's photographs.
WHOLE = (375, 500)


class ImagesInMemory(EvaluationImages):
    """Drawn pixels and labels in the place of files."""

    def __init__(self, count: int, sides: tuple[int, int], classes: int, settings: DataSettings) -> None:
        nowhere = Sample("drawn", Path("drawn"), Path("drawn"))
        super().__init__(StepSplit((nowhere,) * count, np.arange(256, dtype=np.uint8)), settings)
        rng = np.random.default_rng(0)
        self.pixels = rng.integers(0, 256, (count, *sides, 3), dtype=np.uint8)
        self.labels = rng.integers(0, classes, (count, *sides), dtype=np.uint8)

    def __getitem__(self, index: int) -> Example:
        return Example(self.pixels[index], self.labels[index])


def measure(chosen: argparse.Namespace) -> Figures:
    work = Workload(
        network=network_of(chosen),
        compute=compute_of(chosen.device, precision=chosen.precision),
        crop=chosen.crop,
    )
    settings = DataSettings(crop=chosen.crop, evaluation=chosen.evaluation, workers=0)
    sides = (chosen.crop, chosen.crop) if chosen.evaluation == "crop" else WHOLE
    size = chosen.batch if chosen.evaluation == "crop" else 1
    images = ImagesInMemory(chosen.images, sides, sum(work.classes), settings)
    with this_process(work.compute) as process:
        model, _ = networks(work, process.device)
        model.eval()
        precision = choose_precision(work.compute, process.device)
        pixels = torch.from_numpy(images.pixels).to(process.device).split(size)
        pictures = [normalise(part, channels_last=work.compute.channels_last) for part in pixels]

        def bare() -> None:
            with torch.no_grad(), precision.autocast():
                for part in pictures:
                    found = model(part).logits.argmax(dim=1)
            found.cpu()

        def ours() -> None:
            measure_model(model, images, size, process, precision)

        times = interleaved({"measure": ours, "bare": bare}, chosen.pairs, chosen.warmup, chosen.seconds)
    return {
        "backbone": chosen.backbone,
        "evaluation": chosen.evaluation,
        "sides": sides,
        "images": chosen.images,
        "batch": size,
        "precision": chosen.precision,
        "pairs": len(times["bare"]),
        "images_per_second": {name: chosen.images / value for name, value in medians(times).items()},
        "measure_over_bare": ratios(times, "measure", "bare"),
        "all_seconds": times,
    }


def show(figures: Figures) -> str:
    height, width = figures["sides"]
    rows = [[name, value] for name, value in figures["images_per_second"].items()]
    return (
        f"{figures['backbone']}, {height} x {width}, {figures['batch']} at a time, {figures['precision']}\n"
        f"{table(['', 'images/s'], rows)}\n"
        f"time of measure / bare: {spread(figures['measure_over_bare'])}, {figures['pairs']} pairs"
    )


def options(parser: argparse.ArgumentParser) -> None:
    add_workload_options(parser, images=4)
    parser.add_argument("--batch", type=int, default=4, help="images per forward pass of crops; default: %(default)s")
    parser.add_argument("--evaluation", choices=("crop", "full"), default="crop")
    parser.add_argument("--precision", choices=("float32", "bf16", "fp16"), default="float32")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--seconds", type=float, help="begin no further round after that long; at least 3 are made")


BENCHMARK = Benchmark(
    "images per second in evaluation, and what it adds to forward pass and argmax",
    options,
    measure,
    show,
    brief=("--seconds", "40"),
    tiny=(*TINY_OPTIONS, "--batch", "2", "--pairs", "3"),
)
