"""Models ready to segment pictures, and the pictures that a run leaves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from plopcli.console.log import RunLog
from plopcli.data.palettes import Palette
from plopcli.data.reading import mask_ids, read_image, read_mask_of
from plopcli.data.samples import Sample
from plopcli.devices.precision import Precision, choose_precision
from plopcli.devices.process import Process, planned_process
from plopcli.errors import DataError, UsageError
from plopcli.evaluation.evaluate import Changes
from plopcli.evaluation.predict import predict
from plopcli.files.atomic import naming, write_atomic
from plopcli.models.segmenter import Segmenter
from plopcli.runs.checkpoint import Checkpoint
from plopcli.runs.folder import RunFolder
from plopcli.runs.foreign import load_described, model_label
from plopcli.runs.learned import data_set_of, learned_colours
from plopcli.runs.restore import build_model, checkpoint_paths, place
from plopcli.runs.results import Results
from plopcli.scenarios.scenario import Scenario
from plopcli.settings.sections import RunSettings
from plopcli.visualization.curves import plot_miou, plot_training
from plopcli.visualization.overlay import PLAIN, Style, render_panel

Table = npt.NDArray[np.uint8]


class Picture(NamedTuple):
    """A picture to draw.

    Attributes:
        name: What it is called, and where its drawing goes below the output folder.
        image: Its file.
        sample: What it is in its data set, with its truth; None: it is a photograph of the user's own.
    """

    name: str
    image: Path
    sample: Sample | None = None

    def read(self) -> Image.Image:
        """In RGB, as viewers show it.

        Raises:
            DataError: It cannot be read.
        """
        return read_image(self.image)

    def truth(self, table: Table) -> npt.NDArray[np.uint8] | None:
        """The learned ids (H, W) of its mask, by the table of a split; None without a mask.

        Raises:
            DataError: The mask cannot be read.
        """
        return None if self.sample is None else table[mask_ids(read_mask_of(self.sample))]


@dataclass
class Drawn:
    """The outcome of drawing pictures.

    Args:
        log: Names the files and the failures as they come.
        files: The files written.
        failures: What is wrong with the pictures that could not be drawn, by picture.
    """

    log: RunLog | None = None
    files: list[Path] = field(default_factory=list)
    failures: dict[Path, DataError] = field(default_factory=dict)

    @contextmanager
    def attempt(self, picture: Picture) -> Iterator[None]:
        """Records what is wrong with a picture, so that the others are drawn."""
        try:
            yield
        except DataError as error:
            self.failures[picture.image] = error
            if self.log is not None:
                self.log.say(f"skipped: {error.message}", style="yellow")

    def save(self, page: Image.Image, path: Path) -> None:
        """Writes a PNG."""
        with self.writing(path):
            write_atomic(path, lambda file: page.save(file, "PNG"), durable=False)

    @contextmanager
    def writing(self, path: Path) -> Iterator[None]:
        """Makes the folder of a file that is then written, and records it."""
        with naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield
        self.files.append(path)
        if self.log is not None:
            self.log.say(f"  {path}")


@dataclass(frozen=True)
class Predictor:
    """A model ready to segment pictures."""

    label: str
    model: Segmenter
    checkpoint: Checkpoint
    settings: RunSettings
    process: Process
    precision: Precision

    def __call__(self, image: Any) -> npt.NDArray[np.uint8]:
        """Learned class ids (H, W) of a PIL picture."""
        return predict(self.model, image, self.settings.data.crop, self.process.device, self.precision)


def open_predictor(path: Path, changes: Changes, step: int | None = None, *, among_others: bool = False) -> Predictor:
    """The model of a checkpoint file, or of a run folder's last (or given) step.

    Args:
        path: The file or folder.
        changes: Other data root, split, device; what a checkpoint of the original implementation has learned.
        step: The step of a run folder; by default the last.
        among_others: That description may be for other files.

    Raises:
        DataError: There is no such checkpoint.
    """
    paths = checkpoint_paths(path)
    if step is not None and path.is_dir():
        paths = [RunFolder(path).checkpoint(step)]
    elif step is not None and not changes.described:
        raise UsageError(f"--step is for run folders, and {path} is a checkpoint.", "Leave --step away.")
    checkpoint, stored = load_described(paths[-1], changes.described, among_others=among_others)
    settings = changes.apply(stored)
    process = planned_process(settings.compute)
    if process.world > 1:
        raise UsageError("Pictures are made on one device.", "Use --gpus 1, or --gpus 0 for the CPU.")
    model = place(build_model(checkpoint, settings), process.device, settings.compute)
    precision = choose_precision(settings.compute, process.device)
    label = model_label(checkpoint, settings, paths[-1])
    return Predictor(label, model, checkpoint, settings, process, precision)


def fitting_style(style: Style, checkpoint: Checkpoint) -> Style:
    """``style`` for what a checkpoint has learned: whether there is a background, and which classes are old."""
    spec = data_set_of(checkpoint)
    if spec is not None and spec.domains:
        return replace(style, background=False, base=None)
    return replace(style, background=True, base=len(checkpoint.task.groups[0]))


def spread(scenario: Scenario, step: int, split: str, count: int) -> tuple[list[Picture], Table]:
    """``count`` images of an evaluation split, evenly spaced, and the table of their masks."""
    images = scenario.evaluation(step, split)
    chosen = np.unique(np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(int))
    samples = [images.samples[position] for position in chosen]
    return [Picture(sample.name, sample.image, sample) for sample in samples], images.table


def draw_run(folder: RunFolder, results: Results, scenario: Scenario, predictor: Predictor) -> None:
    """Writes curves and overlays of a finished run into its folder."""
    with naming(folder.curves):
        folder.curves.mkdir(exist_ok=True)
        if rows := folder.read_metrics():
            plot_training(rows, folder.curves / "training.png")
        plot_miou(results, folder.curves / "miou.png")
    settings, step = predictor.settings, predictor.checkpoint.step
    if settings.output.overlays:
        pictures, table = spread(scenario, step, settings.data.results_on, settings.output.overlays)
        style, colours = fitting_style(PLAIN, predictor.checkpoint), learned_colours(predictor.checkpoint)
        drawn = draw_overlays(predictor, pictures, table, folder.overlays, style, colours)
        for failure in drawn.failures.values():
            raise failure


def draw_overlays(
    predictor: Predictor,
    pictures: Sequence[Picture],
    table: Table,
    target: Path,
    style: Style,
    colours: Palette,
    log: RunLog | None = None,
) -> Drawn:
    """Draws each picture, its prediction and, where there is one, its truth into a file of its name in ``target``.

    Pictures that cannot be read are left out. ``table`` maps ids in masks to learned ids.
    """
    drawn = Drawn(log)
    for picture in pictures:
        with drawn.attempt(picture):
            image, truth = picture.read(), picture.truth(table)
            title = f"{picture.name}   ({predictor.label})"
            names = predictor.checkpoint.classes
            panel = render_panel(np.asarray(image), predictor(image), names, colours, truth, title, style)
            drawn.save(panel, target / f"{picture.name}.png")
    return drawn
