"""Predictions as files: index PNGs with the ids of the data set's masks, at the size of the images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from plopcli.data.datasets import Sample
from plopcli.data.palettes import voc_palette
from plopcli.data.reading import read_image
from plopcli.data.samples import IGNORED, SegmentationData, StepSplit
from plopcli.data.transforms import normalise
from plopcli.devices.precision import Precision
from plopcli.devices.process import Process
from plopcli.evaluation.augmentation import Augmentation, probabilities
from plopcli.evaluation.measure import Keep, Progress
from plopcli.evaluation.predict import class_map, scaled
from plopcli.files.atomic import write_atomic
from plopcli.models.classifiers import PLAIN
from plopcli.models.segmenter import Segmenter
from plopcli.runs.checkpoint import Checkpoint
from plopcli.runs.learned import data_set_of, learned_colours

Table = npt.NDArray[np.uint8]


def mask_ids_of(checkpoint: Checkpoint, data: SegmentationData) -> Table:
    """The table (classes,) from learned ids to the ids in the masks of the data set.

    255, which is ignored, for a background that the masks do not have.
    """
    labels = range(len(checkpoint.classes)) if data.domains else checkpoint.task.order[: len(checkpoint.classes)]
    first = {int(label): number for number, label in reversed(list(enumerate(data.label_table))) if label != IGNORED}
    return np.array([first.get(int(label), IGNORED) for label in labels], dtype=np.uint8)


class PredictionFiles:
    """Writes predictions to ``FOLDER/NAME.png``, NAME being that of the image; files of these names are replaced."""

    def __init__(self, folder: Path, checkpoint: Checkpoint, data: SegmentationData) -> None:
        self._folder = folder
        self._ids = mask_ids_of(checkpoint, data)
        palette = voc_palette()  # which the masks of VOC hold; it serves where a data set has no colours of its own
        spec = data_set_of(checkpoint)
        if spec is not None and spec.palette not in (None, "voc"):
            palette[self._ids] = learned_colours(checkpoint)[: len(self._ids)]
            palette[IGNORED] = voc_palette()[IGNORED]
        self._palette = palette.tobytes()

    def __call__(self, sample: Sample, learned: npt.NDArray[np.uint8]) -> None:
        """Writes the prediction of one image, given as learned ids (H, W)."""
        picture = Image.fromarray(self._ids[learned])
        picture.putpalette(self._palette)
        path = self._folder / f"{sample.name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, lambda file: picture.save(file, "PNG"), durable=False)


def predict_split(
    model: Segmenter,
    split: StepSplit,
    crop: int,
    process: Process,
    precision: Precision,
    augmentation: Augmentation,
    keep: Keep,
    progress: Progress | None = None,
) -> None:
    """Predicts whole images of a split, whose shorter side is resized to ``crop`` as for central crops.

    Images are dealt out to the ranks in turn. ``keep`` gets the learned ids at the size of each image; ``progress`` is
    called with (images done, images).
    """
    model.eval()
    layout = next(model.parameters()).is_contiguous(memory_format=torch.channels_last)
    own = range(process.rank, len(split), process.world)
    for done, position in enumerate(own, start=1):
        sample = split.samples[position]
        image = read_image(sample.image)
        pixels = torch.from_numpy(scaled(image, crop).copy()).unsqueeze(0)
        pictures = normalise(pixels.to(process.device), channels_last=layout)
        with torch.no_grad(), precision.autocast():
            if augmentation.is_plain:
                scores, plan = model(pictures).small_scores, model.plan
            else:
                looks = probabilities(lambda images: model(images).small_scores, model.plan, pictures, augmentation)
                scores, plan = model.plan.ranked(looks), PLAIN
        keep(sample, class_map(scores.float(), plan, image.height, image.width))
        if progress is not None:
            progress(done, len(own))
