"""From files to a normalised batch: ours against a plain loop of the original's steps, on the same files, one core.

The plain loop decodes, crops, resizes and flips with Pillow, turns the image into a float tensor, normalises it, and
renumbers labels by a Python function per pixel, as the original implementation does.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.report import Benchmark, Figures, interleaved, medians, ratios, spread, table
from plopcli.data.loading import BatchSchedule, Key, TrainingImages
from plopcli.data.samples import Sample, StepSplit
from plopcli.data.transforms import MEAN, STD, draw_window, normalise
from plopcli.scenarios.protocols import training_table
from plopcli.scenarios.tasks import Task
from plopcli.settings.sections import DataSettings

#: Sides of VOC's usual photograph.
WIDTH, HEIGHT = 500, 375
TASK = Task("15-1", (tuple(range(16)), *((label,) for label in range(16, 21))))
STEP = 1


def draw_files(folder: Path, count: int, ids: Sequence[int] = (0, 0, 0, 15, 16, 255)) -> list[Sample]:
    """Photo-like JPEGs and masks of VOC's usual size; masks are made of blocks of ``ids``."""
    rng = np.random.default_rng(0)
    samples = []
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        photo = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)).astype(np.int16)
        photo = np.clip(photo + rng.normal(0, 12, photo.shape), 0, 255).astype(np.uint8)
        blocks = Image.fromarray(rng.choice(ids, (6, 8)).astype(np.uint8))
        sample = Sample(f"{number}", folder / f"{number}.jpg", folder / f"{number}.png")
        Image.fromarray(photo).save(sample.image, quality=90)
        blocks.resize((WIDTH, HEIGHT), Image.Resampling.NEAREST).save(sample.mask)
        samples.append(sample)
    return samples


def plain_loop(samples: list[Sample], settings: DataSettings) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The original's steps, one image after another."""
    rng = np.random.default_rng(1)
    mapping = {0: 0, 255: 255, 16: 16}
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    batch = []
    for sample in samples:
        image: Image.Image = Image.open(sample.image).convert("RGB")
        mask: Image.Image = Image.open(sample.mask)
        box = draw_window(*image.size, settings.scale, settings.ratio, rng)
        window = (box.left, box.top, box.left + box.width, box.top + box.height)
        image = image.crop(window).resize((settings.crop, settings.crop), Image.Resampling.BILINEAR)
        mask = mask.crop(window).resize((settings.crop, settings.crop), Image.Resampling.NEAREST)
        if rng.random() < settings.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            mask = mask.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
        labels = torch.from_numpy(np.array(mask, dtype=np.int64))
        labels.apply_(lambda label: mapping.get(label, 0))
        batch.append(((pixels - mean) / std, labels))
    return batch


def ours(images: TrainingImages, plan: BatchSchedule) -> tuple[torch.Tensor, torch.Tensor]:
    """Our loader's work for the same files: one batch, normalised."""
    pairs = [images.augmented(Key(0, number), plan) for number in range(plan.images)]
    pixels = torch.from_numpy(np.stack([pair[0] for pair in pairs]))
    labels = torch.from_numpy(np.stack([pair[1] for pair in pairs])).long()
    return normalise(pixels), labels


def measure(chosen: argparse.Namespace) -> Figures:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    settings = DataSettings(crop=chosen.crop)
    try:
        with tempfile.TemporaryDirectory() as folder:
            samples = draw_files(Path(folder), chosen.images)
            images = TrainingImages(StepSplit(tuple(samples), training_table(TASK, STEP, "overlapped")), settings)
            plan = BatchSchedule(chosen.images, chosen.images, chosen.images, seed=1, step=STEP)
            calls = {"plain": lambda: plain_loop(samples, settings), "plop": lambda: ours(images, plan)}
            times = interleaved(calls, chosen.rounds)
    finally:
        torch.set_num_threads(threads)
    return {
        "milliseconds_per_image": {name: 1000 * value / chosen.images for name, value in medians(times).items()},
        "plain_over_plop": ratios(times, "plain", "plop"),
        "images": chosen.images,
        "rounds": chosen.rounds,
        "crop": chosen.crop,
        "all_seconds": times,
    }


def show(figures: Figures) -> str:
    rows = list(figures["milliseconds_per_image"].items())
    return (
        f"{WIDTH} x {HEIGHT} to a normalised crop of {figures['crop']}, one core\n"
        f"{table(['', 'ms an image'], rows)}\nplain / plop: {spread(figures['plain_over_plop'])}"
    )


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, default=12, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=6, help="default: %(default)s")
    parser.add_argument("--crop", type=int, default=512, help="default: %(default)s")


BENCHMARK = Benchmark(
    "from a JPEG and its mask to a normalised crop, against a plain loop of the original's steps",
    options,
    measure,
    show,
    tiny=("--images", "2", "--rounds", "3", "--crop", "64"),
)
