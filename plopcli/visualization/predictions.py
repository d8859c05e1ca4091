"""Pictures of what models predict: overlays, and sheets that compare several models on the same images."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console

from plopcli.data.colours import class_palette
from plopcli.data.datasets import DATASETS, IMAGE_SUFFIXES, DatasetSpec, Sample
from plopcli.data.reading import mask_ids, read_image, read_mask
from plopcli.devices.precision import Precision, choose_precision
from plopcli.devices.process import Process, planned_process
from plopcli.errors import DataError, UsageError
from plopcli.evaluation.evaluate import Changes, scenario_of
from plopcli.evaluation.predict import predict
from plopcli.models.segmenter import Segmenter
from plopcli.runs.checkpoint import Checkpoint
from plopcli.runs.folder import RunFolder, RunLog, naming
from plopcli.runs.restore import build_model, checkpoint_paths, place
from plopcli.runs.translation import how_it_was_read, load_described, model_label
from plopcli.scenarios.scenario import Scenario
from plopcli.settings.sections import RunSettings
from plopcli.visualization.curves import plot_miou, plot_training
from plopcli.visualization.overlay import SheetRow, prediction_sheet, render_panel
from plopcli.visualization.palette import Palette, class_colours


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


def _spec(checkpoint: Checkpoint) -> DatasetSpec | None:
    """The data set that a checkpoint has learned from, where it is one of the registry."""
    return DATASETS.get(checkpoint.settings["data"]["dataset"])


def learned_colours(checkpoint: Checkpoint) -> Palette:
    """Colours of the classes in learned order: a class keeps the colour of its label, whatever the task.

    Data sets that come with colours are drawn in these.
    """
    spec = _spec(checkpoint)
    base = None if spec is None else class_palette(spec.palette)
    if spec is not None and spec.domains:
        return class_colours(len(checkpoint.classes), base)
    order = list(checkpoint.task.order)
    if base is not None and spec is not None and spec.classes == len(base) + 1:
        base = np.concatenate([np.zeros((1, 3), dtype=np.uint8), base])  # a background that was put before the classes
    colours: Palette = class_colours(max(order) + 1, base)[order]
    return colours


def _has_background(checkpoint: Checkpoint) -> bool:
    spec = _spec(checkpoint)
    return spec is None or not spec.domains


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


def visualize_paths(
    paths: Sequence[Path],
    *,
    inputs: Sequence[str],
    output: Path | None,
    count: int,
    changes: Changes,
    console: Console,
    step: int | None = None,
) -> list[Path]:
    """Draws overlays of one model, or one sheet that compares several.

    Args:
        paths: Checkpoint files or run folders.
        inputs: Pictures, folders or globs; empty: images of the results split.
        output: Folder to write to; by default `overlays` in the run folder, or beside the checkpoint.
        count: Number of evaluation images where ``inputs`` is empty.
        changes: Other data root, split, device.
        console: Where to tell.
        step: Step of run folders; by default the last.

    Returns:
        The files written.
    """
    predictors = [open_predictor(path, changes, step, among_others=len(paths) > 1) for path in paths]
    first = predictors[0]
    if any(p.checkpoint.classes != first.checkpoint.classes for p in predictors):
        raise UsageError("The models have learned different classes.", "Compare models of the same task and step.")
    target = output or _default_output(paths[0])
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"Cannot write to {target}: {error.strerror}.", "Choose another folder with --output."
        ) from error
    if inputs:
        pictures: list[tuple[str, Path, Path | None]] = [(p.stem, p, None) for p in picture_files(inputs)]
        table = np.arange(256, dtype=np.uint8)
    else:
        scenario = scenario_of(first.checkpoint, first.settings)
        samples, table = _spread(scenario, first.checkpoint.step, first.settings.data.results_on, count)
        pictures = [(sample.name, sample.image, sample.mask) for sample in samples]
    log = RunLog(console)
    for path, predictor in zip(paths, predictors, strict=True):
        for line in how_it_was_read(predictor.checkpoint, path):
            log.say(line)
    if len(predictors) == 1:
        return _overlays(first, pictures, table, target, log)
    return [_comparison(predictors, pictures, table, target / "comparison.png", log)]


def draw_run(folder: RunFolder, results: Mapping[str, Any], scenario: Scenario, predictor: Predictor) -> None:
    """Curves and overlays of a finished run, into its folder."""
    with naming(folder.curves):
        folder.curves.mkdir(exist_ok=True)
        if rows := folder.read_metrics():
            plot_training(rows, folder.curves / "training.png")
        plot_miou(results, folder.curves / "miou.png")
    settings = predictor.settings
    if settings.output.overlays:
        folder.overlays.mkdir(exist_ok=True)
        samples, table = _spread(
            scenario, predictor.checkpoint.step, settings.data.results_on, settings.output.overlays
        )
        pictures = [(sample.name, sample.image, sample.mask) for sample in samples]
        _overlays(predictor, pictures, table, folder.overlays, None)


def picture_files(inputs: Sequence[str]) -> list[Path]:
    """The pictures that files, folders and globs name, in order, each once.

    Raises:
        DataError: One of them names nothing.
    """
    found: dict[Path, None] = {}
    for entry in inputs:
        path = Path(entry)
        if path.is_dir():
            files = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        elif path.is_file():
            files = [path]
        else:
            files = sorted(p for p in map(Path, glob.glob(entry, recursive=True)) if p.is_file())  # noqa: PTH207
        if not files:
            raise DataError(f"--input {entry} names no picture.", f"Pictures end in {', '.join(IMAGE_SUFFIXES)}.")
        found |= dict.fromkeys(files)
    return list(found)


def _default_output(path: Path) -> Path:
    return (path if path.is_dir() else path.parent) / "overlays"


def _spread(scenario: Scenario, step: int, split: str, count: int) -> tuple[list[Sample], npt.NDArray[np.uint8]]:
    """``count`` samples of an evaluation split, evenly spread over it."""
    images = scenario.evaluation(step, split)
    chosen = np.unique(np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(int))
    return [images.samples[position] for position in chosen], images.table


def _overlays(
    predictor: Predictor,
    pictures: Sequence[tuple[str, Path, Path | None]],
    table: npt.NDArray[np.uint8],
    target: Path,
    log: RunLog | None,
) -> list[Path]:
    names, colours = predictor.checkpoint.classes, learned_colours(predictor.checkpoint)
    written: list[Path] = []
    taken: set[str] = set()
    for name, image_path, mask_path in pictures:
        image = read_image(image_path)
        truth = None if mask_path is None else table[mask_ids(read_mask(mask_path))]
        panel = render_panel(
            np.asarray(image),
            predictor(image),
            names,
            colours,
            truth,
            f"{name}   ({predictor.label})",
            background=_has_background(predictor.checkpoint),
        )
        # Two folders may hold pictures of the same name.
        stem = name if name not in taken else f"{name}-{len(written)}"
        taken.add(stem)
        path = target / f"{stem}.png"
        with naming(path):
            panel.save(path)
        written.append(path)
        if log is not None:
            log.say(f"  {path}")
    return written


def _comparison(
    predictors: Sequence[Predictor],
    pictures: Sequence[tuple[str, Path, Path | None]],
    table: npt.NDArray[np.uint8],
    path: Path,
    log: RunLog,
) -> Path:
    labels = [predictor.label for predictor in predictors]
    if len(set(labels)) < len(labels):
        labels = [f"{label} ({number})" for number, label in enumerate(labels, start=1)]
    rows = []
    for name, image_path, mask_path in pictures:
        image = read_image(image_path)
        shown = [(label, predictor(image)) for label, predictor in zip(labels, predictors, strict=True)]
        truth = None if mask_path is None else table[mask_ids(read_mask(mask_path))]
        rows.append(SheetRow(name, np.asarray(image), truth, shown))
    first = predictors[0].checkpoint
    with naming(path):
        prediction_sheet(rows, first.classes, learned_colours(first)).save(path)
    log.say(f"  {path}")
    return path
