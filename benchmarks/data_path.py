"""From files to a normalised batch: ours against a plain loop of the original's steps, on the same files, one core.

The plain loop decodes, crops, resizes and flips with Pillow, turns the image into a float tensor, normalises it, and
renumbers labels by a Python function per pixel, as the original implementation does.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.report import interleaved, ratios, save
from plopcli.data.datasets import Sample
from plopcli.data.loading import Key, Plan, TrainingImages
from plopcli.data.transforms import MEAN, STD, draw_window, normalise
from plopcli.scenarios.protocols import training_table
from plopcli.scenarios.scenario import StepSplit
from plopcli.scenarios.tasks import Task
from plopcli.settings.sections import DataSettings

IMAGES, ROUNDS, CROP = 12, 6, 512
TASK = Task("15-1", (tuple(range(16)), *((label,) for label in range(16, 21))))
STEP = 1


def draw_files(folder: Path) -> list[Sample]:
    """Photo-like JPEGs and masks of VOC's usual size, 500 x 375."""
    rng = np.random.default_rng(0)
    samples = []
    for number in range(IMAGES):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        photo = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC)).astype(np.int16)
        photo = np.clip(photo + rng.normal(0, 12, photo.shape), 0, 255).astype(np.uint8)
        blocks = Image.fromarray(rng.choice([0, 0, 0, 15, 16, 255], (6, 8)).astype(np.uint8))
        sample = Sample(f"{number}", folder / f"{number}.jpg", folder / f"{number}.png")
        Image.fromarray(photo).save(sample.image, quality=90)
        blocks.resize((500, 375), Image.Resampling.NEAREST).save(sample.mask)
        samples.append(sample)
    return samples


def plain_loop(samples: list[Sample], settings: DataSettings) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The original's steps, one image after another."""
    rng = np.random.default_rng(1)
    mapping = {0: 0, 255: 255, 16: 16}
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    batch = []
    for sample in samples:
        image, mask = Image.open(sample.image).convert("RGB"), Image.open(sample.mask)
        box = draw_window(*image.size, settings.scale, settings.ratio, rng)
        window = (box.left, box.top, box.left + box.width, box.top + box.height)
        image = image.crop(window).resize((CROP, CROP), Image.Resampling.BILINEAR)
        mask = mask.crop(window).resize((CROP, CROP), Image.Resampling.NEAREST)
        if rng.random() < settings.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            mask = mask.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
        labels = torch.from_numpy(np.array(mask, dtype=np.int64))
        labels.apply_(lambda label: mapping.get(label, 0))
        batch.append(((pixels - mean) / std, labels))
    return batch


def ours(images: TrainingImages, plan: Plan) -> tuple[torch.Tensor, torch.Tensor]:
    """Our loader's work for the same files: one batch, normalised."""
    pairs = [images.augmented(Key(0, number), plan) for number in range(IMAGES)]
    pixels = torch.from_numpy(np.stack([pair[0] for pair in pairs]))
    labels = torch.from_numpy(np.stack([pair[1] for pair in pairs])).long()
    return normalise(pixels), labels


def main() -> None:
    torch.set_num_threads(1)
    settings = DataSettings(crop=CROP)
    with tempfile.TemporaryDirectory() as folder:
        samples = draw_files(Path(folder))
        images = TrainingImages(StepSplit(tuple(samples), training_table(TASK, STEP, "overlapped")), settings)
        plan = Plan(IMAGES, IMAGES, IMAGES, seed=1, step=STEP)
        candidates = {"plain": lambda: plain_loop(samples, settings), "plop": lambda: ours(images, plan)}
        times = interleaved(candidates, ROUNDS)
    figures = {
        "milliseconds_per_image": {name: 1000 * statistics.median(t) / IMAGES for name, t in times.items()},
        "plain_over_plop": ratios(times, "plain", "plop"),
        "images": IMAGES,
        "rounds": ROUNDS,
        "crop": CROP,
    }
    for name, value in figures["milliseconds_per_image"].items():
        print(f"{name:6s} {value:6.1f} ms an image, one core")
    print("plain / plop: {median:.1f} (min {min:.1f}, max {max:.1f})".format(**figures["plain_over_plop"]))
    save("data_path", figures)


if __name__ == "__main__":
    main()
