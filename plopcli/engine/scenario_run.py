"""A whole scenario, step by step, through the one path that trains a single step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Any

from rich.console import Console

from plopcli.console.log import RunLog
from plopcli.devices.precision import choose_precision
from plopcli.devices.process import Process, batch_layout, planned_process
from plopcli.engine.abn_choice import choose_abn
from plopcli.engine.checks import (
    backbone_weights,
    batch_schedule,
    check_first_step,
    check_folder,
    check_previous,
    check_scenario,
    check_weights,
    weights_digest,
)
from plopcli.engine.eta import time_left_of
from plopcli.engine.faults import guarded
from plopcli.engine.memory import estimate_memory
from plopcli.engine.resume import check_snapshot, resume_at, unfinished_step
from plopcli.engine.run import Run, provenance
from plopcli.engine.start import begin, describe_norms
from plopcli.engine.status import Status
from plopcli.engine.step import ENTRY, make_checkpoint, measure_again, run_step, save
from plopcli.errors import DataError, UsageError
from plopcli.methods import get_method
from plopcli.methods.from_file import text_of
from plopcli.resolution.layers import Resolved
from plopcli.runs.checkpoint import Checkpoint, load_checkpoint
from plopcli.runs.events import EventWriter
from plopcli.runs.folder import RunFolder
from plopcli.runs.foreign import caveats, load_for_run, taken_over
from plopcli.runs.lock import refuse_if_held
from plopcli.runs.restore import build_model, load, place
from plopcli.runs.results import Results, StepResults, write_results
from plopcli.runs.snapshot import Snapshot, snapshot_paths
from plopcli.runs.weights import write_weights
from plopcli.scenarios.scenario import Scenario
from plopcli.settings.sections import RunSettings
from plopcli.visualization.predictions import Predictor, draw_run


@dataclass(frozen=True)
class ScenarioChoices:
    """What `run_scenario` does where something is there already.

    Args:
        resume: Go on with what is in the folder, where it stopped.
        overwrite: Remove a run that is already there.
        init_from: Another run folder, whose step 0 is taken over where its settings agree.
    """

    resume: bool = False
    overwrite: bool = False
    init_from: Path | None = None


@dataclass(frozen=True)
class StepChoices:
    """Which step `run_single_step` trains.

    Args:
        step: Its number.
        previous: The checkpoint to start from; by default that of the run folder.
        overwrite: Train it anew if it is there.
        resume: Go on with it where it stopped.
    """

    step: int
    previous: Path | None = None
    overwrite: bool = False
    resume: bool = False


def check_run_scenario(
    resolved: Resolved, choices: ScenarioChoices, *, process: Process, console: Console
) -> tuple[Run, Checkpoint | None]:
    """Refuses whatever `run_scenario` cannot do; writes nothing.

    Returns:
        The run, not yet begun, and the step 0 that it takes over.
    """
    folder = RunFolder(resolved.settings.run_folder)
    run = _prepare(resolved, process, console, f"plop run-scenario --run {quote(str(folder.path))} --resume")
    if folder.is_run and not choices.overwrite:
        if not choices.resume:
            raise UsageError(
                f"{folder.path} already holds a run.",
                "Go on with it by --resume, replace it by --overwrite, or choose another folder with --run.",
            )
        check_folder(folder, run.settings)
        check_snapshot(run, unfinished_step(run))
    first: Checkpoint | None = None
    if choices.overwrite or not folder.checkpoint(0).exists():
        if choices.init_from is not None:
            first = _first_step(run, choices.init_from)
        else:
            check_weights(run.settings)
    return run, first


@guarded
def run_scenario(resolved: Resolved, choices: ScenarioChoices, *, process: Process, console: Console) -> Results:
    """Trains and measures every step, leaving a run folder.

    Args:
        resolved: The settings.
        choices: What to do with what is there already.
        process: This process; all of a group call alike.
        console: Where to tell what happens.

    Returns:
        The results.
    """
    run, first = process.main_process_first(
        lambda: check_run_scenario(resolved, choices, process=process, console=console)
    )
    run = begin(run, resolved, clear=choices.overwrite, step_0_from=choices.init_from if first is not None else None)
    if first is not None:
        _tell(run, caveats(first, run.settings))

    results = process.broadcast(_results(run) if process.is_main else _no_results(run))
    unfinished, measured = process.broadcast(
        (unfinished_step(run), _measured(run, results)) if process.is_main else (None, 0)
    )
    run.status.takes_up(results)
    snapshot = resume_at(run, unfinished, measured, resume=choices.resume)
    for step in range(run.scenario.steps):
        match process.broadcast(_state(run, step, results, first) if process.is_main else ""):
            case "measured":
                continue
            case "trained":
                entry = measure_again(run, load_checkpoint(run.folder.checkpoint(step)))
            case "taken over":
                assert first is not None
                save(run, 0, lambda: first)
                entry = measure_again(run, first)
            case _:
                started = snapshot if step == unfinished else None
                entry = _run_step_from(run, step, run.folder.checkpoint(step - 1) if step else None, started)
        results = results.with_step(entry)
        _write(run, results)
    _finish(run, results)
    return results


def check_single_step(
    resolved: Resolved, choices: StepChoices, *, process: Process, console: Console
) -> tuple[Run, Path | None]:
    """Refuses whatever `run_single_step` cannot do; writes nothing.

    Returns:
        The run, not yet begun, and the checkpoint that the step starts from.

    Raises:
        DataError: The checkpoint to start from is missing or does not fit.
        UsageError: The scenario has no such step, or the folder already holds it.
    """
    folder, step = RunFolder(resolved.settings.run_folder), choices.step
    again = f"plop train-step --step {step} --run {quote(str(folder.path))} --resume"
    if choices.previous is not None:
        again += f" --previous {quote(str(choices.previous))}"
    run = _prepare(resolved, process, console, again)
    if not 0 <= step < run.scenario.steps:
        raise UsageError(f"Task {run.scenario.task.name} has steps 0 to {run.scenario.steps - 1}; there is no {step}.")
    if not (choices.overwrite or choices.resume):
        if folder.checkpoint(step).exists():
            raise UsageError(
                f"{folder.path} already holds step {step}.",
                "Add --overwrite to train it anew, or choose another --run.",
            )
        if snapshot_paths(folder, step):
            raise UsageError(
                f"{folder.path} holds step {step} half trained.",
                "Go on with it by --resume, train it anew by --overwrite, or choose another --run.",
            )
    check_folder(folder, run.settings, before_step=step)
    if choices.resume:
        check_snapshot(run, step)
    if step == 0:
        check_weights(run.settings)
        return run, None
    path = choices.previous or folder.checkpoint(step - 1)
    if choices.previous is None and not path.is_file():
        raise DataError(
            f"Step {step} starts from the checkpoint of step {step - 1}, and {path} does not exist.",
            f"Train it first: plop train-step --step {step - 1} --run {folder.path}   (or give --previous FILE)",
        )
    check_previous(load_for_run(path, run.settings, run.scenario, step - 1), run.settings, run.scenario, step)
    return run, path


@guarded
def run_single_step(resolved: Resolved, choices: StepChoices, *, process: Process, console: Console) -> Results:
    """Trains and measures one step; it starts from the step before, of the same run folder or as chosen.

    Returns:
        The results of the run so far.
    """
    run, previous = process.main_process_first(
        lambda: check_single_step(resolved, choices, process=process, console=console)
    )
    run.status.time_left.last = choices.step
    run = begin(run, resolved, clear=False)
    results = process.broadcast(_results(run) if process.is_main else _no_results(run))
    state = _state(run, choices.step, results, None) if choices.resume else "missing"
    match process.broadcast(state):
        case "measured":
            run.log.say(f"Step {choices.step} is there already.")
            return results
        case "trained":
            entry = measure_again(run, load_checkpoint(run.folder.checkpoint(choices.step)))
        case _:
            snapshot = resume_at(run, choices.step, choices.step, resume=choices.resume)
            entry = _run_step_from(run, choices.step, previous, snapshot)
    results = results.with_step(entry)
    _write(run, results)
    if choices.step == run.scenario.steps - 1:
        _finish(run, results)
    return results


def plan_scenario(resolved: Resolved) -> dict[str, Any]:
    """What a run would do: classes, images, iterations of every step, and how the batch is spread."""
    settings = resolved.settings
    scenario = _scenario(settings, None)
    process = planned_process(settings.compute, must_exist=False)
    layout = batch_layout(settings.train.batch, settings.compute, process.world)
    check_scenario(settings, scenario, layout)
    precision = choose_precision(settings.compute, process.device)
    abn = choose_abn(settings, process, precision, must_exist=False)
    counts, shared = scenario.class_counts(scenario.steps - 1), scenario.shares_classes and scenario.steps > 1
    memory = estimate_memory(
        settings,
        counts,
        layout.micro,
        half=precision.name != "float32",
        shared=shared,
        compiled_norm=abn.implementation == "inplace_abn",
    )
    steps = []
    for step in range(scenario.steps):
        plan = batch_schedule(settings, scenario, layout, step)
        recipe = settings.train.recipe(step)
        steps.append(
            {
                "step": step,
                "domains" if scenario.shares_classes else "classes": scenario.learned(step),
                "train": plan.images,
                "val": len(scenario.evaluation(step, "val")) if scenario.has_split("val") else 0,
                "test": len(scenario.evaluation(step, "test")),
                "epochs": recipe.epochs,
                "iterations": recipe.epochs * plan.iterations_per_epoch,
                "lr": recipe.lr,
            }
        )
    return {
        "run": str(settings.run_folder),
        "dataset": settings.data.dataset,
        "task": scenario.task.name,
        "protocol": scenario.protocol,
        "method": settings.method.name,
        "batch": layout.describe(process.device.type),
        "norms": abn.describe(),
        "memory": memory.describe() + " on each device, workspaces aside",
        "notes": [*scenario.notes, *resolved.notes],
        "memory_bytes": asdict(memory) | {"total": memory.total},
        "steps": steps,
    }


def _prepare(resolved: Resolved, process: Process, console: Console, resumed_by: str) -> Run:
    """Checks what can be checked of the settings alone; writes nothing."""
    settings = resolved.settings
    if text_of(settings.method.name) is not None:
        resumed_by += f" --method {quote(str(RunFolder(settings.run_folder).method))}"
    if process.is_main:
        refuse_if_held(settings.run_folder)
    layout = batch_layout(settings.train.batch, settings.compute, process.world)
    precision = choose_precision(settings.compute, process.device)
    log = RunLog(console)
    scenario = _scenario(settings, log)
    check_scenario(settings, scenario, layout)
    abn = choose_abn(settings, process, precision)
    folder = RunFolder(settings.run_folder)
    view = Status(
        log,
        f"{settings.method.name} on {settings.data.dataset} {scenario.task.name}",
        time_left_of(settings, scenario, layout),
    )
    return Run(settings, scenario, folder, log, EventWriter(None), process, precision, layout, abn, resumed_by, view)


def _state(run: Run, step: int, results: Results, first: Checkpoint | None) -> str:
    """What is there of ``step``: it is measured, only trained, to be taken over, or missing."""
    if run.folder.checkpoint(step).is_file():
        return "measured" if any(entry.step == step for entry in results.steps) else "trained"
    return "taken over" if step == 0 and first is not None else "missing"


def _measured(run: Run, results: Results) -> int:
    """How many steps, from the first one on, are trained and measured."""
    states = [_state(run, step, results, None) == "measured" for step in range(run.scenario.steps)]
    return [*states, False].index(False)


def _run_step_from(run: Run, step: int, previous: Path | None, snapshot: Snapshot | None) -> StepResults:
    if previous is None:
        return run_step(run, step, None, snapshot)
    checkpoint = load_for_run(previous, run.settings, run.scenario, step - 1)
    if previous != run.folder.checkpoint(step - 1):
        _tell(run, caveats(checkpoint, run.settings))
    return run_step(run, step, checkpoint, snapshot)


def _tell(run: Run, lines: Iterable[str]) -> None:
    for line in lines:
        run.log.say(f"  {line}", "yellow")


def _write(run: Run, results: Results) -> None:
    if run.process.is_main:
        write_results(results, run.folder.results)
        run.events.over_steps(results)
    run.status.measured(results)


def _scenario(settings: RunSettings, log: RunLog | None) -> Scenario:
    merge = get_method(settings.method.name).merges_steps
    if log is None:
        return Scenario.from_settings(settings, merge_steps=merge)
    with log.progress("class index", "masks") as bar:
        return Scenario.from_settings(settings, merge_steps=merge, progress=bar.update)


def _first_step(run: Run, other: Path) -> Checkpoint:
    """Step 0 of another run as a checkpoint of this one; refused where it is not the same step."""
    path = RunFolder(other).checkpoint(0) if other.is_dir() else other
    checkpoint = load_for_run(path, run.settings, run.scenario, 0)
    made = provenance(run, step=-1)
    if run.settings.model.pretrained and backbone_weights(run.settings).is_file():
        made["weights"] = weights_digest(run.settings)
    check_first_step(checkpoint, run.settings, run.scenario, made)
    taken = make_checkpoint(run, 0, build_model(checkpoint, run.settings), None, made)
    made = {name: value for name, value in checkpoint.made_with.items() if name != ENTRY}
    return replace(taken, method=checkpoint.method, made_with=taken_over(made))


def _no_results(run: Run) -> Results:
    return Results.begin(run.settings, run.scenario, batch_norm=describe_norms(run))


def _results(run: Run) -> Results:
    """The results so far, under the header of this run."""
    stored = run.folder.read_results()
    there = [entry for entry in stored.steps if run.folder.checkpoint(entry.step).is_file()] if stored else []
    return _no_results(run).with_steps(there)


def _finish(run: Run, results: Results) -> None:
    if not run.process.is_main:
        return
    checkpoint, _ = load(run.folder.checkpoint(run.scenario.steps - 1))
    write_weights(run.folder.weights(checkpoint.step), checkpoint)
    model = place(build_model(checkpoint, run.settings), run.process.device, run.settings.compute)
    label = f"{run.settings.method.name} after step {checkpoint.step}"
    predictor = Predictor(label, model, checkpoint, run.settings, run.process, run.precision)
    with run.log.pictures("Curves and overlays"):
        draw_run(run.folder, results, run.scenario, predictor)
    run.events.finish(run.settings.model_dump(mode="json"))
    run.events.close()
    run.log.say(f"Done: {run.folder.results}, curves/ and overlays/ beside it", "bold green")
