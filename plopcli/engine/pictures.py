"""Pictures of a step for TensorBoard: the confusion matrix, and predictions beside the truth."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from plopcli.data.colours import colours_in_order
from plopcli.data.reading import mask_ids, read_pair
from plopcli.engine.run import Run
from plopcli.evaluation.predict import predict
from plopcli.metrics.segmentation import Matrix
from plopcli.models.segmenter import Segmenter
from plopcli.visualization.confusion import confusion_picture
from plopcli.visualization.overlay import colourise

#: Images at most, and pixels of their longer side.
_IMAGES, _SIDE = 4, 320
_GAP = 4


def show_step(run: Run, step: int, model: Segmenter, confusion: Matrix, names: list[str]) -> None:
    """Hands the pictures of ``step`` to the event file of the main process, if there is one.

    The images are the same after every step, so that one sees what is forgotten; as many as are drawn at the end
    (`output.overlays`), and at most four.
    """
    if not run.events.is_on:
        return
    run.events.picture("confusion", confusion_picture(confusion, names), step)
    settings, scenario = run.settings, run.scenario
    samples = scenario.evaluation(scenario.steps - 1, settings.data.results_on).samples
    table = scenario.evaluation(step, settings.data.results_on).table
    colours = colours_in_order(settings.data.dataset, scenario.task.order, len(names))
    count = min(settings.output.overlays, _IMAGES, len(samples))
    for position in np.unique(np.linspace(0, len(samples) - 1, count).round().astype(int)):
        sample = samples[position]
        image, mask = read_pair(sample)
        truth = table[mask_ids(mask)]
        predicted = predict(model, image, settings.data.crop, run.process.device, run.precision)
        maps = [colourise(_shrunk(labels), colours) for labels in (truth, predicted)]
        shown = [_shrunk(np.asarray(image), Image.Resampling.BILINEAR), *maps]
        run.events.picture(f"predictions/{sample.name}", _side_by_side(shown), step)


def _shrunk(
    pixels: npt.NDArray[np.uint8], resampling: Image.Resampling = Image.Resampling.NEAREST
) -> npt.NDArray[np.uint8]:
    picture = Image.fromarray(pixels)
    scale = min(1.0, _SIDE / max(picture.size))
    return np.asarray(picture.resize((round(picture.width * scale), round(picture.height * scale)), resampling))


def _side_by_side(pictures: list[npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
    """Image, truth and prediction, white between them."""
    gap = np.full((pictures[0].shape[0], _GAP, 3), 255, dtype=np.uint8)
    return np.hstack([pictures[0], gap, pictures[1], gap, pictures[2]])
