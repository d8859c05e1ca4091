"""One step of a scenario: previous model in, trained and measured model out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from plopcli.data.loading import BatchSchedule
from plopcli.devices.process import Process
from plopcli.devices.signals import signals_deferred
from plopcli.engine.batches import step_data
from plopcli.engine.compute_options import check_weights
from plopcli.engine.evaluate import measure_step
from plopcli.engine.phase import train_phase
from plopcli.engine.run import Run, provenance
from plopcli.engine.setup import StepSetup, prepare_step
from plopcli.engine.training import Trained, train_epochs
from plopcli.methods.base import Method, StepData
from plopcli.methods.weight_fusion import fuse, fusion_share
from plopcli.models.segmenter import Segmenter
from plopcli.runs.checkpoint import Checkpoint, save_checkpoint
from plopcli.runs.restore import build_model, place
from plopcli.runs.results import StepResults
from plopcli.runs.snapshot import Snapshot, drop_snapshots

#: Where `Checkpoint.made_with` keeps what the results say about the training of its step.
ENTRY = "entry"


def run_step(run: Run, step: int, previous: Checkpoint | None, snapshot: Snapshot | None = None) -> StepResults:
    """Trains ``step`` from ``previous`` (None at step 0), saves its checkpoint and measures it.

    Args:
        run: The run.
        step: The step.
        previous: What the step before has left.
        snapshot: Where in the middle of the step to go on; None begins it.

    Returns:
        What was measured.

    Raises:
        PlopError: Training diverged, or a file could not be read.
        StoppedError: A signal asked to stop.
    """
    setup = prepare_step(run.settings, run.scenario, run.process, run.layout, step, previous)
    method = setup.method
    _announce(run, setup, snapshot)
    data = step_data(setup, run.settings, run.scenario, run.process, run.precision)
    if snapshot is None:
        method.before_step(data)
        train_phase(run, setup)

    trained = train_epochs(run, setup, snapshot)
    model = finish_step(setup, run.process, data, averaged=not run.syncs_norm)
    check_weights(model, f"step {step}")
    entry = _entry_of_training(trained, method)
    with signals_deferred():
        save(run, step, lambda: make_checkpoint(run, step, model, method, provenance(run, step) | {ENTRY: entry}))
    return measure_step(run, step, model, entry)


def finish_step(setup: StepSetup, process: Process, data: StepData, *, averaged: bool) -> Segmenter:
    """Does what follows the last iteration, and gives the network to measure and save.

    Args:
        setup: The step, trained.
        process: This process.
        data: The step's images.
        averaged: Whether processes kept running statistics of their own, which are averaged.
    """
    method, model = setup.method, setup.model
    if averaged and process.world > 1:
        process.average_statistics(model)
    if process.world > 1:
        process.average_statistics(method)
    if (share := fusion_share(method.settings, setup.context)) is not None:
        assert setup.old_model is not None
        fuse(model.state_dict(), setup.old_model.state_dict(), share)
    method.after_step(model, data)
    return method.merge(model)


def measure_again(run: Run, checkpoint: Checkpoint) -> StepResults:
    """Measures a step whose checkpoint is there: the entry that `run_step` would have given."""
    model = place(build_model(checkpoint, run.settings), run.process.device, run.settings.compute)
    return measure_step(run, checkpoint.step, model, checkpoint.made_with.get(ENTRY, {}))


def _entry_of_training(trained: Trained, method: Method) -> dict[str, Any]:
    """What the results say about a step's training; the checkpoint holds it, too, until the step is measured."""
    entry: dict[str, Any] = {"train_seconds": trained.seconds}
    if trained.skipped:
        entry["skipped_iterations"] = trained.skipped
    share = fusion_share(method.settings, method.context)
    if report := method.report() | ({} if share is None else {"fusion": share}):
        entry["preparation"] = report
    return entry


def make_checkpoint(
    run: Run, step: int, model: Segmenter, method: Method | None, made: Mapping[str, Any]
) -> Checkpoint:
    """The checkpoint of a finished step; ``made`` is what settings leave open."""
    task, counts = run.scenario.task, run.scenario.class_counts(step)
    return Checkpoint(
        step=step,
        classes=run.scenario.class_names[: sum(counts)],
        class_counts=list(counts),
        task_name=task.name,
        task_steps=[list(learned) for learned in task.steps],
        task_groups=[list(group) for group in task.groups],
        settings=run.settings.model_dump(mode="json"),
        model={name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()},
        method=method.saved_state() if method is not None else {},
        network=model.form(),
        data_fingerprint=run.scenario.fingerprint,
        images=run.scenario.images,
        made_with=made,
    )


def save(run: Run, step: int, make: Callable[[], Checkpoint]) -> None:
    """Writes the checkpoint of ``step``, which its snapshots make room for; once all processes see it, they go on."""
    path = run.folder.checkpoint(step)
    if run.process.is_main:
        run.flush()
        save_checkpoint(path, make())
        drop_snapshots(run.folder, step)
    run.process.barrier()
    # A network file system may hide a new file for some time from those who have looked for it before.
    deadline = time.monotonic() + run.settings.compute.timeout
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.5)


def _announce(run: Run, setup: StepSetup, snapshot: Snapshot | None) -> None:
    context, schedule = setup.context, setup.schedule
    recipe = run.settings.train.recipe(context.step)
    run.status.begin(context.step, run.scenario.learned(context.step))
    run.log.say(
        f"Step {context.step} of {run.scenario.steps - 1}: {', '.join(run.scenario.learned(context.step))}   "
        f"({schedule.images} images{_exemplars(schedule)}, {recipe.epochs} epochs x "
        f"{schedule.iterations_per_epoch} iterations, lr {recipe.lr:g})",
        "bold",
    )
    if snapshot is not None:
        epoch, within = divmod(snapshot.iteration, schedule.iterations_per_epoch)
        run.log.say(f"  goes on after epoch {epoch} and {within} iterations, {snapshot.iteration} in all")


def _exemplars(schedule: BatchSchedule) -> str:
    return "" if schedule.replayed is None else f" and {schedule.replayed.images} exemplars"
