"""`plop evaluate`: measures a checkpoint, or every checkpoint of a run."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from plopcli.console.log import RunLog
from plopcli.data.datasets import dataset_folder
from plopcli.devices.precision import choose_precision
from plopcli.devices.process import Process, evaluation_batch
from plopcli.errors import DataError, UsageError
from plopcli.evaluation.augmentation import PLAIN, Augmentation
from plopcli.evaluation.measure import measure_split
from plopcli.evaluation.saved_predictions import PredictionFiles, predict_split
from plopcli.metrics.segmentation import step_metrics
from plopcli.runs.checkpoint import Checkpoint
from plopcli.runs.confusion import Confusion, write_confusion
from plopcli.runs.foreign import Description, how_it_was_read, load_described, unknown_facts
from plopcli.runs.restore import build_model, checkpoint_paths, place
from plopcli.runs.results import Results, StepResults
from plopcli.scenarios.scenario import Scenario
from plopcli.settings.sections import RunSettings


@dataclass(frozen=True)
class Changes:
    """Options of an evaluation that differ from the run's; None: as the run.

    ``described`` is what a checkpoint of the original implementation has learned, which it does not say itself.
    """

    data_root: Path | None = None
    data_path: Path | None = None
    split: str | None = None
    batch: int | None = None
    evaluation: str | None = None
    gpus: int | str | None = None
    processes: int | None = None
    precision: str | None = None
    described: Description | None = None
    augmentation: Augmentation = PLAIN

    def apply(self, settings: RunSettings) -> RunSettings:
        """``settings`` with these changes."""
        root = self.data_root or (None if self.data_path else _elsewhere(settings))
        data = {"root": root, "path": self.data_path, "results_on": self.split, "evaluation": self.evaluation}
        if root is not None and self.data_path is None:
            settings = settings.model_copy(update={"data": settings.data.model_copy(update={"path": None})})
        gpus = self.gpus
        if gpus is None:
            # However many devices trained: one measures, of the same kind.
            gpus = 0 if settings.compute.gpus == 0 or self.processes else "auto"
        compute = {"gpus": gpus, "processes": self.processes} | (
            {} if self.precision is None else {"precision": self.precision}
        )
        return settings.model_copy(
            update={
                "data": settings.data.model_copy(update={k: v for k, v in data.items() if v is not None}),
                "compute": settings.compute.model_copy(update=compute),
            }
        )


def _elsewhere(settings: RunSettings) -> Path | None:
    """The data root of the environment, for a run whose own data are not on this machine."""
    data, root = settings.data, os.environ.get("PLOP_DATA_ROOT")
    if not root or dataset_folder(data.dataset, data.root, data.path).is_dir():
        return None
    return Path(root) if dataset_folder(data.dataset, Path(root)).is_dir() else None


@dataclass(frozen=True)
class Files:
    """Files that an evaluation writes beside its figures; None: nothing.

    Args:
        predictions: Folder for ``step-N/NAME.png``, the prediction of every image.
        confusion: Folder for ``step-N.npz``, the confusion matrices.
    """

    predictions: Path | None = None
    confusion: Path | None = None

    def check(self) -> None:
        """Makes the folders.

        Raises:
            UsageError: One cannot be made.
        """
        for folder in (self.predictions, self.confusion):
            if folder is not None:
                try:
                    folder.mkdir(parents=True, exist_ok=True)
                except OSError as error:
                    raise UsageError(f"{folder} cannot be written: {error.strerror}.", "Choose another.") from error

    def describe(self, evaluation: str) -> list[str]:
        """What was written, for people."""
        lines = [] if self.confusion is None else [f"Confusion matrices: {self.confusion}/step-N.npz"]
        if self.predictions is not None:
            lines.append(f"Predictions: {self.predictions}/step-N/NAME.png, with the ids of the data set's own masks")
            if evaluation != "full":
                lines.append(
                    "  They cover whole images; the figures are of central crops (--evaluation full: of both)."
                )
        return lines


#: Nothing but the figures.
NO_FILES = Files()


def settings_of(path: Path, changes: Changes) -> RunSettings:
    """The settings to measure with: those of the (first) checkpoint at ``path``, changed.

    Raises:
        DataError: There is no checkpoint.
    """
    return changes.apply(load_described(checkpoint_paths(path)[0], changes.described)[1])


def check_evaluation(
    path: Path, changes: Changes, files: Files = NO_FILES, *, process: Process, console: Console
) -> Scenario:
    """Refuses what `evaluate_path` cannot do; gives the scenario of the first checkpoint."""
    files.check()
    checkpoint, stored = load_described(checkpoint_paths(path)[0], changes.described)
    return scenario_of(checkpoint, changes.apply(stored))


def evaluate_path(
    path: Path, changes: Changes, files: Files = NO_FILES, *, process: Process, console: Console
) -> Results:
    """Measures a checkpoint file, or all of a run folder.

    With no changes the figures are those of the end of training: on CPU, exactly.

    Args:
        path: The file or folder.
        changes: What to do otherwise than the run did.
        files: Files to write beside the figures.
        process: This process; all of a group call alike.
        console: Where to show progress.

    Raises:
        DataError: There is no checkpoint, or the data set is missing or another.
    """
    scenario = process.main_process_first(
        lambda: check_evaluation(path, changes, files, process=process, console=console)
    )
    results: Results | None = None
    # A run that is still going on may get a further checkpoint before every process has looked.
    for checkpoint_path in process.broadcast(checkpoint_paths(path) if process.is_main else []):
        checkpoint, stored = load_described(checkpoint_path, changes.described)
        settings = changes.apply(stored)
        if scenario.task != checkpoint.task:
            scenario = scenario_of(checkpoint, settings)
        for line in how_it_was_read(checkpoint, checkpoint_path):
            RunLog(console).say(line)
        if results is None:
            more = unknown_facts(checkpoint) | _looks(changes.augmentation)
            results = Results.begin(settings, scenario, **more)
        step = _measured(checkpoint, checkpoint_path, settings, scenario, process, RunLog(console), changes, files)
        results = results.with_step(step)
    assert results is not None
    for line in files.describe(settings.data.evaluation):
        RunLog(console).say(line)
    return results


def scenario_of(checkpoint: Checkpoint, settings: RunSettings) -> Scenario:
    """The scenario that a checkpoint was trained in, with the task of the checkpoint.

    Raises:
        DataError: The data set has other classes.
    """
    scenario = Scenario.from_settings(settings, task=checkpoint.task)
    names = scenario.class_names[: len(checkpoint.classes)]
    if names != checkpoint.classes:
        raise DataError(
            f"The data set at {scenario.data.root} has other classes than the checkpoint: "
            f"{', '.join(names)} where the checkpoint has {', '.join(checkpoint.classes)}.",
            "Point --data-root or --data-path to the data set of the run.",
        )
    return scenario


def _looks(augmentation: Augmentation) -> dict[str, Any]:
    """The entry of the results for test-time augmentation, where there is any."""
    if augmentation.is_plain:
        return {}
    looks = {"scales": list(augmentation.scales), "flip": augmentation.flip, "described": augmentation.describe()}
    return {"augmentation": looks}


def _measured(
    checkpoint: Checkpoint,
    path: Path,
    settings: RunSettings,
    scenario: Scenario,
    process: Process,
    log: RunLog,
    changes: Changes,
    files: Files,
) -> StepResults:
    """The results of the step of a checkpoint."""
    precision = choose_precision(settings.compute, process.device)
    model = place(build_model(checkpoint, settings), process.device, settings.compute)
    split = scenario.evaluation(checkpoint.step, settings.data.results_on)
    size = changes.batch or evaluation_batch(settings.train.batch, settings.compute)
    name, keep = f"step-{checkpoint.step}", None
    if files.predictions is not None:
        keep = PredictionFiles(files.predictions / name, checkpoint, scenario.data)
    whole, looks = settings.data.evaluation == "full", changes.augmentation
    with log.progress(f"step {checkpoint.step}: {settings.data.results_on}", "batches") as bar:
        confusion, domains = measure_split(
            model, split, settings.data, size, process, precision, bar.update, looks, keep if whole else None
        )
    if keep is not None and not whole:
        with log.progress(f"step {checkpoint.step}: predictions", "images") as bar:
            predict_split(model, split, settings.data.crop, process, precision, looks, keep, bar.update)
    if files.confusion is not None and process.is_main:
        write_confusion(files.confusion / f"{name}.npz", Confusion(checkpoint.classes, confusion, domains or {}))
    metrics = step_metrics(confusion, checkpoint.classes, scenario.base_classes, domains)
    return StepResults(step=checkpoint.step, checkpoint=str(path), images=len(split), **metrics)
