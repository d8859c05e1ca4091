"""`plop evaluate`: the figures of a checkpoint, or of every checkpoint of a run, measured anew."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from plopcli.devices.precision import choose_precision
from plopcli.devices.process import Process, evaluation_batch
from plopcli.errors import DataError
from plopcli.evaluation.measure import measure_split
from plopcli.evaluation.metrics import step_metrics
from plopcli.reporting.results import empty_results, with_step
from plopcli.runs.checkpoint import Checkpoint
from plopcli.runs.folder import RunLog
from plopcli.runs.restore import build_model, checkpoint_paths, place
from plopcli.runs.translation import Description, how_it_was_read, load_described, unknown_facts
from plopcli.scenarios.scenario import Scenario
from plopcli.settings.sections import RunSettings


@dataclass(frozen=True)
class Changes:
    """What an evaluation may do otherwise than the run did; None: as the run.

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

    def apply(self, settings: RunSettings) -> RunSettings:
        """``settings`` with these changes."""
        data = {"root": self.data_root, "path": self.data_path, "results_on": self.split, "evaluation": self.evaluation}
        if self.data_root is not None and self.data_path is None:
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


def settings_of(path: Path, changes: Changes) -> RunSettings:
    """The settings to measure with: those of the (first) checkpoint at ``path``, changed.

    Raises:
        DataError: There is no checkpoint.
    """
    return changes.apply(load_described(checkpoint_paths(path)[0], changes.described)[1])


def check_evaluation(path: Path, changes: Changes, *, process: Process, console: Console) -> Scenario:
    """Refuses what `evaluate_path` cannot do; gives the scenario of the first checkpoint."""
    checkpoint, stored = load_described(checkpoint_paths(path)[0], changes.described)
    return scenario_of(checkpoint, changes.apply(stored))


def evaluate_path(path: Path, changes: Changes, *, process: Process, console: Console) -> dict[str, Any]:
    """Measures a checkpoint file, or all of a run folder.

    With no changes the figures are those of the end of training: on CPU, exactly.

    Args:
        path: The file or folder.
        changes: What to do otherwise than the run did.
        process: This process; all of a group call alike.
        console: Where to tell what happens.

    Returns:
        Results as in `results.json`.

    Raises:
        DataError: There is no checkpoint, or the data set is missing or another.
    """
    scenario = process.first(lambda: check_evaluation(path, changes, process=process, console=console))
    results: dict[str, Any] | None = None
    # A run that is still going on may get a further checkpoint before every process has looked.
    for checkpoint_path in process.agree(checkpoint_paths(path) if process.is_main else []):
        checkpoint, stored = load_described(checkpoint_path, changes.described)
        settings = changes.apply(stored)
        if scenario.task != checkpoint.task:
            scenario = scenario_of(checkpoint, settings)
        for line in how_it_was_read(checkpoint, checkpoint_path):
            RunLog(console).say(line)
        if results is None:
            results = empty_results(settings, scenario) | unknown_facts(checkpoint)
        entry = _measure(checkpoint, settings, scenario, changes.batch, process, RunLog(console))
        results = with_step(results, {**entry, "checkpoint": str(checkpoint_path)})
    assert results is not None
    return results


def scenario_of(checkpoint: Checkpoint, settings: RunSettings) -> Scenario:
    """The scenario that a checkpoint was trained in, its task taken from the checkpoint itself.

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


def _measure(
    checkpoint: Checkpoint,
    settings: RunSettings,
    scenario: Scenario,
    batch: int | None,
    process: Process,
    log: RunLog,
) -> dict[str, Any]:
    precision = choose_precision(settings.compute, process.device)
    model = place(build_model(checkpoint, settings), process.device, settings.compute)
    split = scenario.evaluation(checkpoint.step, settings.data.results_on)
    size = batch or evaluation_batch(settings.train.batch, settings.compute)
    with log.progress(f"step {checkpoint.step}: {settings.data.results_on}", "batches") as bar:
        confusion, domains = measure_split(model, split, settings.data, size, process, precision, bar.update)
    metrics = step_metrics(confusion, checkpoint.classes, scenario.base_classes, domains)
    return {"step": checkpoint.step, "images": len(split), **metrics}
