"""Where a run that has stopped goes on, and whether it may."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plopcli.engine.checks import batch_schedule, check_same_settings
from plopcli.engine.run import Run, provenance
from plopcli.errors import DamagedFileError, DataError
from plopcli.runs.checkpoint import Checkpoint, load_checkpoint
from plopcli.runs.environment import versions
from plopcli.runs.rewind import Position, rewind
from plopcli.runs.snapshot import Snapshot, newest_snapshot, read_snapshot
from plopcli.scenarios.data_changes import changes_since
from plopcli.scenarios.scenario import Scenario

#: Packages whose versions may change the last digits of what is computed.
_COMPUTING = ("torch", "torchvision", "numpy", "pillow")


def unfinished_step(run: Run) -> int | None:
    """The first step without a checkpoint; None where the run has all."""
    there = run.folder.steps()
    return next((step for step in range(run.scenario.steps) if step not in there), None)


def check_snapshot(run: Run, step: int | None) -> None:
    """Refuses to go on within ``step`` otherwise than it began.

    Raises:
        UsageError: The settings have changed; names the differences.
        DataError: The data or the task have.
    """
    if step is None:
        return
    path, snapshot, _ = newest_snapshot(run.folder, step)
    if path is None or snapshot is None:
        return
    check_same_settings(path, snapshot.settings, run.settings)
    task = [list(learned) for learned in run.scenario.task.steps]
    if snapshot.task_steps != task or snapshot.classes != run.scenario.class_names:
        raise DataError(
            f"{path} is of another task or order of classes than {run.scenario.task.name} is now.",
            "Bring the task file and the data set back to what they were, or begin anew with --overwrite.",
        )
    if changes := changes_since(run.scenario, snapshot.data_fingerprint, snapshot.images).lines:
        raise DataError(
            f"The images or masks of {run.settings.data.dataset} are not those that step {step} began with: "
            f"{'; '.join(changes)}.",
            "Bring them back, or begin the step anew: remove checkpoints/snapshot-*.pt, then --resume.",
        )
    recipe = run.settings.train.recipe(snapshot.step)
    total = recipe.epochs * batch_schedule(run.settings, run.scenario, run.layout, snapshot.step).iterations_per_epoch
    if snapshot.step != step or snapshot.iteration > total:
        raise DamagedFileError(f"{path} is of step {snapshot.step}, iteration {snapshot.iteration} of {total}.")


def resume_at(run: Run, step: int | None, measured: int, *, resume: bool) -> Snapshot | None:
    """Takes the run's folder back to where training goes on.

    Args:
        run: The run, writing.
        step: The step to train next; None where there is none.
        measured: Steps whose figures stay.
        resume: Whether a snapshot of the step may be gone on from; else the step begins anew.

    Returns:
        The snapshot to go on from, the same in all processes; None where the step begins.
    """
    path, snapshot = None, None
    if resume and step is not None and run.process.is_main:
        path, snapshot, warnings = newest_snapshot(run.folder, step)
        for line in warnings:
            run.log.say(f"  {line}", "yellow")
    path = run.process.broadcast(path)
    if path is not None and snapshot is None:
        snapshot = read_snapshot(path)
    run.process.barrier()
    if run.process.is_main:
        if step is None:
            position = Position(run.scenario.steps, measured=measured)
        else:
            per_epoch = batch_schedule(run.settings, run.scenario, run.layout, step).iterations_per_epoch
            position = Position(step, 0 if snapshot is None else snapshot.iteration, per_epoch, measured)
        for line in rewind(run.folder, position):
            run.log.say(f"  {line}", "yellow")
        run.events.resume(position.step, position.iteration, position.measured)
    return snapshot


def computed_otherwise(run: Run) -> list[str]:
    """How what is gone on from was computed otherwise than this process will compute."""
    step = unfinished_step(run)
    snapshot = None if step is None else newest_snapshot(run.folder, step).snapshot
    if snapshot is not None:
        said = _differences(run, f"step {snapshot.step} was begun", snapshot.made_with)
        now = versions()
        return said + [
            f"step {snapshot.step} was begun by {name} {snapshot.versions.get(name)}, this goes on by {now[name]}"
            for name in _COMPUTING
            if snapshot.versions.get(name) != now[name]
        ]
    if not (steps := run.folder.steps()):
        return []
    last = load_checkpoint(run.folder.checkpoint(steps[-1]))
    return _differences(run, f"step {steps[-1]} was trained", last.made_with) + data_changes(run.scenario, last)


def data_changes(scenario: Scenario, checkpoint: Checkpoint) -> list[str]:
    """How the images differ from those that ``checkpoint`` was trained with."""
    changes = changes_since(scenario, checkpoint.data_fingerprint, checkpoint.images)
    return [f"data set {scenario.data.name} since step {checkpoint.step}: {line}" for line in changes.lines]


def _differences(run: Run, what: str, before: Mapping[str, Any]) -> list[str]:
    return [
        f"{what} with {name.replace('_', ' ')} {before[name]}, this goes on with {value}"
        for name, value in provenance(run, step=-1).items()
        if name in before and before[name] != value
    ]
