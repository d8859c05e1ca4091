"""`plop visualize`: overlays of one model, sheets that compare several, and what runs see after each of their steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console

from plopcli.console.log import RunLog
from plopcli.data.datasets import known_names
from plopcli.data.palettes import Palette
from plopcli.data.pictures import output_names, picture_paths
from plopcli.errors import UsageError
from plopcli.evaluation.evaluate import Changes, scenario_of
from plopcli.files.atomic import refuse_links
from plopcli.runs.checkpoint import Checkpoint
from plopcli.runs.folder import RunFolder
from plopcli.runs.foreign import how_it_was_read
from plopcli.runs.restore import checkpoint_paths
from plopcli.visualization.animation import write_gif
from plopcli.visualization.chosen import chosen_colours
from plopcli.visualization.overlay import PLAIN, SheetRow, Style, fitted_size, prediction_sheet, resize_labels
from plopcli.visualization.predictions import (
    Drawn,
    Picture,
    Predictor,
    Table,
    draw_overlays,
    fitting_style,
    open_predictor,
    spread,
)
from plopcli.visualization.steps import Steps, step_caption, step_frames, step_sheet

Labels = npt.NDArray[np.uint8]

#: Images of one comparison sheet; more are continued on another.
_ROWS = 24
#: Longer side of the label maps that are kept until all steps have predicted; no sheet shows more of them.
_KEPT_SIDES = (1, 640)
_ENDINGS = (".png", "-steps.png", ".gif")
_SAME_IDS: Table = np.arange(256, dtype=np.uint8)


@dataclass(frozen=True)
class Wanted:
    """What to draw.

    Args:
        inputs: Pictures, folders or globs of the user's own; empty: images of the results split.
        output: Folder to write to; by default `overlays` in the run folder, or beside the checkpoint.
        count: Number of evaluation images where there are no ``inputs``.
        step: Step of run folders; by default the last.
        sheets: A sheet per image with a column for every step of the runs.
        gif: An animation per image over the steps of the runs.
        style: How label maps are drawn.
        palette: As `chosen_colours` takes it.
    """

    inputs: Sequence[str] = ()
    output: Path | None = None
    count: int = 16
    step: int | None = None
    sheets: bool = False
    gif: bool = False
    style: Style = PLAIN
    palette: str | None = None

    @property
    def over_steps(self) -> bool:
        """Whether every step of the runs is looked at."""
        return self.sheets or self.gif


def visualize_paths(paths: Sequence[Path], wanted: Wanted, changes: Changes, console: Console) -> Drawn:
    """Draws overlays of one model, or sheets that compare several, or pictures over the steps of runs.

    ``paths`` are checkpoint files or run folders.

    Returns:
        The files written, and what is wrong with pictures that could not be drawn.

    Raises:
        UsageError: The models have learned different classes, or options contradict each other.
        DataError: There is no such checkpoint, data set or picture.
    """
    if wanted.inputs and wanted.style.errors:
        raise UsageError(
            "--errors needs ground truth, and pictures of --input have none.",
            "Leave --input away: images of the data set are drawn. For masks of your own: docs/own-data.md",
        )
    log = RunLog(console)
    target = wanted.output or (paths[0] if paths[0].is_dir() else paths[0].parent) / "overlays"
    if wanted.output is None:
        refuse_links([target])
    if wanted.over_steps:
        return _over_steps(paths, wanted, changes, target, log)
    predictors = [open_predictor(path, changes, wanted.step, among_others=len(paths) > 1) for path in paths]
    first = predictors[0]
    if any(p.checkpoint.classes != first.checkpoint.classes for p in predictors):
        raise UsageError("The models have learned different classes.", "Compare models of the same task and step.")
    pictures, table = _pictures(wanted, first, target)
    for path, predictor in zip(paths, predictors, strict=True):
        for line in how_it_was_read(predictor.checkpoint, path):
            log.say(line)
    style = fitting_style(wanted.style, first.checkpoint)
    colours = chosen_colours(first.checkpoint, wanted.palette)
    if len(predictors) == 1:
        return draw_overlays(first, pictures, table, target, style, colours, log)
    return _comparison(predictors, pictures, table, target, style, colours, log)


def _pictures(wanted: Wanted, predictor: Predictor, target: Path) -> tuple[list[Picture], Table]:
    """The pictures to draw, and the table from ids in their masks to learned ids.

    Raises:
        UsageError: The folder cannot be written to, or pictures of the user's own would be overwritten.
        DataError: There is nothing to draw.
    """
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"Cannot write to {target}: {error.strerror}.", "Choose another folder with --output."
        ) from error
    if not wanted.inputs:
        scenario = scenario_of(predictor.checkpoint, predictor.settings)
        return spread(scenario, predictor.checkpoint.step, predictor.settings.data.results_on, wanted.count)
    names = output_names(picture_paths(wanted.inputs, target))
    theirs = {path.resolve() for path in names}
    for path in (target / f"{name}{ending}" for name in names.values() for ending in _ENDINGS):
        if path.resolve() in theirs:
            raise UsageError(
                f"{path} is one of the pictures, and its drawing would take its place.",
                "Give another folder with --output.",
            )
    return [Picture(str(name), path) for path, name in names.items()], _SAME_IDS


def _comparison(
    predictors: Sequence[Predictor],
    pictures: Sequence[Picture],
    table: Table,
    target: Path,
    style: Style,
    colours: Palette,
    log: RunLog,
) -> Drawn:
    labels = _distinct([predictor.label for predictor in predictors])
    names = predictors[0].checkpoint.classes
    drawn = Drawn(log)
    rows: list[SheetRow] = []
    for picture in pictures:
        with drawn.attempt(picture):
            image, truth = picture.read(), picture.truth(table)
            size = fitted_size((image.height, image.width), _KEPT_SIDES)
            shown = [
                (label, resize_labels(predictor(image), size))
                for label, predictor in zip(labels, predictors, strict=True)
            ]
            kept = None if truth is None else resize_labels(truth, size)
            rows.append(SheetRow(picture.name, np.asarray(image.resize(size)), kept, shown))
    sheets = [rows[start : start + _ROWS] for start in range(0, len(rows), _ROWS)]
    for number, some in enumerate(sheets, start=1):
        name = "comparison.png" if len(sheets) == 1 else f"comparison-{number}.png"
        drawn.save(prediction_sheet(some, names, colours, style), target / name)
    return drawn


def _over_steps(paths: Sequence[Path], wanted: Wanted, changes: Changes, target: Path, log: RunLog) -> Drawn:
    """A sheet, an animation or both of each picture: the predictions of the runs after every step that all have."""
    steps = _common_steps(paths, log)
    last = open_predictor(paths[0], changes, steps[-1])
    pictures, _ = _pictures(wanted, last, target)
    drawn = Drawn(log)
    truths: dict[Picture, list[Labels] | None] = {}
    tables = [] if wanted.inputs else _tables(last, steps)
    for picture in pictures:
        with drawn.attempt(picture):
            truths[picture] = _truths(picture, tables)
    names, maps = _predictions(paths, steps, list(truths), changes, last.checkpoint, log)
    style = fitting_style(wanted.style, last.checkpoint)
    colours = chosen_colours(last.checkpoint, wanted.palette)
    captions = [_caption(last.checkpoint, step) for step in steps]
    for number, (picture, truth) in enumerate(truths.items()):
        image = picture.read()
        photo = np.asarray(image.resize(fitted_size((image.height, image.width), _KEPT_SIDES)))
        runs = [(name, of_run[number]) for name, of_run in zip(names, maps, strict=True)]
        shown = Steps(picture.name, photo, truth, captions, runs)
        if wanted.sheets:
            sheet = step_sheet(shown, last.checkpoint.classes, colours, style)
            drawn.save(sheet, target / f"{picture.name}-steps.png")
        if wanted.gif:
            path = target / f"{picture.name}.gif"
            with drawn.writing(path):
                write_gif(step_frames(shown, last.checkpoint.classes, colours, style), path)
    return drawn


def _common_steps(paths: Sequence[Path], log: RunLog) -> list[int]:
    """The steps that all run folders have.

    Raises:
        UsageError: A path is no run folder, or none has a step of all others.
        DataError: There is no checkpoint in it.
    """
    for path in paths:
        if path.is_file():
            raise UsageError(
                f"{path} is a checkpoint, and --steps and --gif need all steps of a run.", "Give the run's folder."
            )
        checkpoint_paths(path)
    of_runs = [set(RunFolder(path).steps()) for path in paths]
    common = sorted(set.intersection(*of_runs))
    if not common:
        raise UsageError("The runs have no step in common.", "Give runs that have got as far.")
    if len(common) < max(map(len, of_runs)):
        log.say(f"steps that all runs have: {', '.join(map(str, common))}")
    return common


def _tables(last: Predictor, steps: Sequence[int]) -> list[Table]:
    """Tables of masks after each step: classes of later steps are background."""
    scenario = scenario_of(last.checkpoint, last.settings)
    return [scenario.evaluation(step, last.settings.data.results_on).table for step in steps]


def _truths(picture: Picture, tables: Sequence[Table]) -> list[Labels] | None:
    """The truth, reduced, that the model of each step is measured on; None for a picture without a mask.

    Raises:
        DataError: Picture or mask cannot be read.
    """
    image, found = picture.read(), [picture.truth(table) for table in tables]
    size = fitted_size((image.height, image.width), _KEPT_SIDES)
    truths = [resize_labels(truth, size).astype(np.uint8) for truth in found if truth is not None]
    return truths or None


def _predictions(
    paths: Sequence[Path],
    steps: Sequence[int],
    pictures: Sequence[Picture],
    changes: Changes,
    last: Checkpoint,
    log: RunLog,
) -> tuple[list[str], list[list[list[Labels]]]]:
    """Names of the runs, and of each run, picture and step the label map, reduced.

    Holds one network at a time, and reads the pictures again for each: some are large.
    """
    labels: list[str] = []
    maps: list[list[list[Labels]]] = []
    for path in paths:
        of_run: list[list[Labels]] = [[] for _ in pictures]
        for step in steps:
            predictor = open_predictor(path, changes, step)
            known = predictor.checkpoint.classes
            if known != last.classes[: len(known)] or predictor.checkpoint.task_steps != last.task_steps:
                raise UsageError(f"{path} has learned other classes than {paths[0]}.", "Compare runs of the same task.")
            with log.progress(f"{path.name}, step {step}", "pictures") as bar:
                for number, picture in enumerate(pictures):
                    image = picture.read()
                    size = fitted_size((image.height, image.width), _KEPT_SIDES)
                    of_run[number].append(resize_labels(predictor(image), size).astype(np.uint8))
                    bar.update(number + 1, len(pictures))
        labels.append(predictor.settings.method.name)
        maps.append(of_run)
    return _distinct(labels, [path.name for path in paths]), maps


def _distinct(labels: Sequence[str], names: Sequence[str] = ()) -> list[str]:
    """``labels`` where they differ, else ``names``, else numbered."""
    for some in (labels, names):
        if some and len(set(some)) == len(some):
            return list(some)
    return [f"{label} ({number})" for number, label in enumerate(labels, start=1)]


def _caption(checkpoint: Checkpoint, step: int) -> str:
    """What ``step`` added, of the task that ``checkpoint`` has learned."""
    known = known_names(checkpoint.settings["data"]["dataset"])
    if known is not None and known[1]:
        return step_caption(step, [known[1][domain] for domain in checkpoint.task.steps[step]], "domains")
    first = sum(len(learned) for learned in checkpoint.task.steps[:step])
    last = first + len(checkpoint.task.steps[step])
    # Label 0 is the background, which every step knows.
    return step_caption(step, checkpoint.classes[max(first, 1) : last])
