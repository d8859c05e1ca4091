"""Evaluation images with the predictions after every step in a row, which shows forgetting."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from plopcli.data.palettes import VOID, Palette
from plopcli.data.reading import mask_ids, read_pair
from plopcli.data.samples import Sample
from plopcli.evaluation.evaluate import Changes, scenario_of
from plopcli.runs.folder import RunFolder
from plopcli.runs.learned import learned_colours
from plopcli.scenarios.scenario import Scenario
from plopcli.visualization.overlay import Labels, Photo, colourise, fitted_size, resize_labels
from plopcli.visualization.predictions import open_predictor

#: Range of the longer side of the pictures, in pixels.
_SIDES = (1, 240)
#: Share of an image from which on a class counts as shown: a few pixels are not seen.
_VISIBLE = 0.01


class GalleryRow(NamedTuple):
    """One image.

    Attributes:
        name: Its name.
        image: The photograph (h, w, 3), reduced.
        truth: Its classes in their colours, all that the run learns.
        predictions: The same as predicted after each step.
    """

    name: str
    image: Photo
    truth: Photo
    predictions: tuple[Photo, ...]


class Gallery(NamedTuple):
    """Rows, the steps of their predictions, and names and colours of the classes that they show."""

    rows: tuple[GalleryRow, ...]
    steps: tuple[int, ...]
    legend: tuple[tuple[str, tuple[int, int, int]], ...]


def make_gallery(
    folder: RunFolder, changes: Changes, count: int, progress: Callable[[int, int], None] | None = None
) -> Gallery:
    """Predicts the same ``count`` images with the model of every step of a run that has at least one checkpoint.

    ``progress`` is called with (steps done, steps).

    Raises:
        DataError: A checkpoint is damaged, or the data set is missing or another.
    """
    steps = folder.steps()
    last = open_predictor(folder.checkpoint(steps[-1]), changes)
    scenario = scenario_of(last.checkpoint, last.settings)
    split = scenario.evaluation(last.checkpoint.step, last.settings.data.results_on)
    samples = choose_samples(scenario, split.samples, last.settings.data.results_on, count)
    pairs = [read_pair(sample) for sample in samples]
    images = [image for image, _ in pairs]
    sizes = [fitted_size((image.height, image.width), _SIDES) for image in images]
    truths = [resize_labels(split.table[mask_ids(mask)], size) for (_, mask), size in zip(pairs, sizes, strict=True)]
    shown: list[list[Labels]] = [[] for _ in samples]
    for done, step in enumerate(steps, start=1):
        predictor = last if step == steps[-1] else open_predictor(folder.checkpoint(step), changes)
        for place, (image, size) in enumerate(zip(images, sizes, strict=True)):
            shown[place].append(resize_labels(predictor(image), size))
        if progress is not None:
            progress(done, len(steps))
    colours = learned_colours(last.checkpoint)
    rows = [
        GalleryRow(
            sample.name,
            np.asarray(image.resize(size, Image.Resampling.BICUBIC)),
            colourise(truth, colours),
            tuple(colourise(labels, colours) for labels in predicted),
        )
        for sample, image, size, truth, predicted in zip(samples, images, sizes, truths, shown, strict=True)
    ]
    return Gallery(tuple(rows), tuple(steps), _legend(last.checkpoint.classes, colours, [*truths, *chain(*shown)]))


def choose_samples(scenario: Scenario, samples: tuple[Sample, ...], split: str, count: int) -> list[Sample]:
    """``count`` of the images that together show as many classes as possible, those with old and new classes first.

    The choice depends on the data set and the classes alone, so that all runs of a task show the same images. Where
    steps bring domains, these take the place of classes.
    """
    shown = _shown(scenario, samples, split)
    # No domain counts more than another.
    young = np.arange(shown.shape[1]) >= (scenario.base_classes or shown.shape[1])
    mixed = shown[:, young].any(axis=1) & shown[:, ~young].any(axis=1)
    seen = np.zeros(shown.shape[1])
    left = np.ones(len(samples), dtype=np.bool_)
    chosen: list[int] = []
    while len(chosen) < min(count, len(samples)):
        # A class that is shown already is worth half, then a quarter; a new one as much as two old ones.
        worth = (shown * np.where(young, 2.0, 1.0) * 0.5**seen).sum(axis=1) * np.where(mixed, 1.5, 1.0)
        best = int(np.where(left, worth, -1.0).argmax())
        chosen.append(best)
        left[best] = False
        seen += shown[best]
    return [samples[place] for place in chosen]


def _shown(scenario: Scenario, samples: tuple[Sample, ...], split: str) -> npt.NDArray[np.bool_]:
    """Which class (background aside) or domain each image shows: (images, classes in learned order)."""
    if scenario.shares_classes:
        domains = [name for step in range(scenario.steps) for name in scenario.learned(step)]
        return np.array([[sample.domain == name for name in domains] for sample in samples], dtype=np.bool_)
    source = "train" if split == "val" and scenario.val_fraction > 0 else split
    place = {sample: row for row, sample in enumerate(scenario.data.splits[source])}
    counts = scenario.index.counts[source][[place[sample] for sample in samples]]
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    order = list(scenario.task.order)
    shown: npt.NDArray[np.bool_] = shares[:, order] >= _VISIBLE
    shown[:, 0] = False
    return shown


def _legend(names: list[str], colours: Palette, maps: list[Labels]) -> tuple[tuple[str, tuple[int, int, int]], ...]:
    present = sorted({int(label) for labels in maps for label in np.unique(labels) if label != VOID})
    return tuple((names[label], tuple(int(part) for part in colours[label])) for label in present)  # type: ignore[misc]
