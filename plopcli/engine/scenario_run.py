"""A whole scenario, step by step, through the one path that trains a single step."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from plopcli.devices.precision import choose_precision
from plopcli.devices.process import batch_layout, this_process
from plopcli.engine.step import Run, check_validation, make_checkpoint, measure_step, train_step
from plopcli.errors import DataError, UsageError
from plopcli.methods import get_method
from plopcli.reporting.events import EventWriter
from plopcli.reporting.results import empty_results, with_step, write_results
from plopcli.runs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from plopcli.runs.environment import environment_stamp
from plopcli.runs.folder import RunFolder, RunLog
from plopcli.runs.restore import build_model, load, place
from plopcli.scenarios.scenario import Scenario
from plopcli.settings.layers import Resolved, settings_to_toml
from plopcli.settings.sections import RunSettings
from plopcli.visualization.predictions import Predictor, draw_run

#: Settings that change no weight, and may differ between a run and the one it starts from.
_HARMLESS = {
    "data": {"root", "path", "workers", "cache", "results_on", "evaluation"},
    "model": {"weights"},
}


def run_scenario(
    resolved: Resolved,
    *,
    resume: bool = False,
    overwrite: bool = False,
    init_from: Path | None = None,
    console: Console,
) -> dict[str, Any]:
    """Trains and measures every step, leaving a run folder.

    Args:
        resolved: The settings.
        resume: Go on after the last finished step of the folder.
        overwrite: Remove a run that is already there.
        init_from: Another run folder, whose step 0 is taken over where its settings agree.
        console: Where to tell what happens.

    Returns:
        The results, as in `results.json`.
    """
    run = _open(resolved, console, resume=resume, overwrite=overwrite, may_exist=False)
    results = _results(run)
    for step in range(run.scenario.steps):
        path = run.folder.checkpoint(step)
        measured = any(entry["step"] == step for entry in results["steps"])
        if path.is_file() and measured:
            continue
        if path.is_file():
            checkpoint, settings = load(path)
            model = place(build_model(checkpoint, settings), run.process.device, run.settings.compute)
            entry = measure_step(run, step, model)
        elif step == 0 and init_from is not None:
            entry = _take_first_step(run, init_from)
        else:
            run.folder.forget_from(step)
            entry = train_step(run, step, load_checkpoint(run.folder.checkpoint(step - 1)) if step else None)
        results = with_step(results, entry)
        write_results(results, run.folder.results)
    _finish(run, results)
    return results


def train_one_step(
    resolved: Resolved,
    *,
    step: int,
    previous: Path | None = None,
    overwrite: bool = False,
    console: Console,
) -> dict[str, Any]:
    """Trains and measures one step; it starts from step - 1 of the same run folder, or from ``previous``.

    Raises:
        DataError: The checkpoint to start from is missing or does not fit.
        UsageError: The scenario has no such step, or the folder already holds it.
    """
    run = _open(resolved, console, resume=False, overwrite=False, may_exist=True)
    if not 0 <= step < run.scenario.steps:
        raise UsageError(f"Task {run.scenario.task.name} has steps 0 to {run.scenario.steps - 1}; there is no {step}.")
    if run.folder.checkpoint(step).exists() and not overwrite:
        raise UsageError(
            f"{run.folder.path} already holds step {step}.",
            "Add --overwrite to train it anew, or choose another --run.",
        )
    before: Checkpoint | None = None
    if step > 0:
        path = previous or run.folder.checkpoint(step - 1)
        if not path.is_file():
            raise DataError(
                f"Step {step} starts from the checkpoint of step {step - 1}, and {path} does not exist.",
                f"Train it first: plop train-step --step {step - 1} --run {run.folder.path}   "
                "(or give --previous FILE)",
            )
        before = load_checkpoint(path)
    run.folder.forget_from(step)
    results = with_step(_results(run), train_step(run, step, before))
    write_results(results, run.folder.results)
    if step == run.scenario.steps - 1:
        _finish(run, results)
    return results


def plan_scenario(resolved: Resolved) -> dict[str, Any]:
    """What a run would do: classes, images, iterations of every step, and how the batch is spread."""
    settings = resolved.settings
    scenario = _scenario(settings, None)
    layout = batch_layout(settings.train.batch, settings.compute)
    steps = []
    for step in range(scenario.steps):
        images = len(scenario.training(step))
        recipe = settings.train.recipe(step)
        per_epoch = images // settings.train.batch
        steps.append(
            {
                "step": step,
                "classes": [scenario.data.classes[label] for label in scenario.task.new(step)],
                "train": images,
                "val": len(scenario.evaluation(step, "val")) if scenario.has_split("val") else 0,
                "test": len(scenario.evaluation(step, "test")),
                "epochs": recipe.epochs,
                "iterations": recipe.epochs * per_epoch,
                "lr": recipe.lr,
            }
        )
    return {
        "run": str(settings.run_folder),
        "dataset": settings.data.dataset,
        "task": scenario.task.name,
        "protocol": scenario.protocol,
        "method": settings.method.name,
        "batch": layout.describe("cuda" if settings.compute.gpus not in (0, "auto") or layout.world > 1 else "cpu"),
        "steps": steps,
    }


def _open(resolved: Resolved, console: Console, *, resume: bool, overwrite: bool, may_exist: bool) -> Run:
    """Checks everything that can be checked, then opens the run folder."""
    settings = resolved.settings
    layout = batch_layout(settings.train.batch, settings.compute)
    process = this_process(settings.compute)
    precision = choose_precision(settings.compute, process.device)
    log = RunLog(console)
    folder = RunFolder(settings.run_folder)
    _check_folder(folder, settings, resume=resume, overwrite=overwrite, may_exist=may_exist)
    scenario = _scenario(settings, log)
    check_validation(settings, scenario)
    folder.create()
    if overwrite:
        folder.clear()
        folder.create()
    log.file = folder.log
    folder.settings.write_text(settings_to_toml(settings), "utf-8")
    stamp = environment_stamp() | {
        "command": sys.argv,
        "data_fingerprint": scenario.index.fingerprint,
        "precision": precision.name,
        "batch": layout.describe(process.device.type),
    }
    folder.environment.write_text(json.dumps(stamp, indent=2) + "\n", "utf-8")
    _introduce(resolved, scenario, log, layout.describe(process.device.type), precision.name, str(process.device))
    events = EventWriter(folder.tensorboard if settings.output.tensorboard else None)
    return Run(settings, scenario, folder, log, events, process, precision, layout)


def _scenario(settings: RunSettings, log: RunLog | None) -> Scenario:
    merge = get_method(settings.method.name).merges_steps
    if log is None:
        return Scenario.from_settings(settings, merge_steps=merge)
    with log.progress("class index", "masks") as bar:
        return Scenario.from_settings(settings, merge_steps=merge, progress=bar.update)


def _check_folder(folder: RunFolder, settings: RunSettings, *, resume: bool, overwrite: bool, may_exist: bool) -> None:
    if not folder.is_run or overwrite:
        return
    if not (resume or may_exist):
        raise UsageError(
            f"{folder.path} already holds a run.",
            "Go on with it by --resume, replace it by --overwrite, or choose another folder with --run.",
        )
    for path in folder.checkpoints():
        stored = load_checkpoint(path).settings
        if differences := _differences(stored, settings.model_dump(mode="json"), {**_HARMLESS, "compute": None}):
            raise UsageError(
                f"{path} was made with other settings: {'; '.join(differences)}.",
                "Give the same settings (--config RUN/settings.toml), --overwrite, or another --run.",
            )
        break


def _differences(
    theirs: Mapping[str, Any], ours: Mapping[str, Any], harmless: Mapping[str, set[str] | None]
) -> list[str]:
    """Where two dumped settings differ, as `key: theirs -> ours`; what changes no result is passed over."""
    found = []
    for section in ("data", "scenario", "model", "method", "train", "compute"):
        passed = harmless.get(section, set())
        if passed is None:
            continue
        left, right = theirs.get(section, {}), ours[section]
        found += [
            f"{section}.{key}: {left.get(key)} -> {right.get(key)}"
            for key in sorted({*left, *right} - passed)
            if left.get(key) != right.get(key)
        ]
    if theirs.get("seed") != ours["seed"]:
        found.append(f"seed: {theirs.get('seed')} -> {ours['seed']}")
    return found


def _take_first_step(run: Run, other: Path) -> dict[str, Any]:
    """Takes step 0 over from another run, whose first step is the same, and measures it."""
    path = RunFolder(other).checkpoint(0) if other.is_dir() else other
    checkpoint, theirs = load(path)
    ours = run.settings.model_dump(mode="json")
    stored = dict(checkpoint.settings)
    # Only what shapes step 0 has to agree.
    for settings in (stored, ours):
        settings["train"] = {"batch": settings["train"]["batch"], "first": settings["train"]["first"]}
        settings["compute"] = {"precision": settings["compute"]["precision"]}
        settings["method"] = {"first step": get_method(settings["method"]["name"]).first_step}
    differences = _differences(stored, ours, _HARMLESS)
    if checkpoint.data_fingerprint != run.scenario.index.fingerprint:
        differences.append("the data set's files")
    if checkpoint.task_steps[0] != list(run.scenario.task.steps[0]):
        differences.append("the classes of step 0")
    if ours["method"]["first step"] is None:
        differences.append(f"method {run.settings.method.name} keeps state from its own step 0")
    if differences:
        raise UsageError(
            f"Step 0 of {other} cannot be taken over: {'; '.join(differences)}.",
            "Leave --init-from away, or use the same settings for step 0.",
        )
    run.log.say(f"Step 0 is taken from {path} (method {theirs.method.name})", "bold")
    model = build_model(checkpoint, run.settings)
    save_checkpoint(run.folder.checkpoint(0), make_checkpoint(run, 0, model, None))
    return measure_step(run, 0, place(model, run.process.device, run.settings.compute))


def _results(run: Run) -> dict[str, Any]:
    return run.folder.read_results() or empty_results(run.settings, run.scenario)


def _introduce(resolved: Resolved, scenario: Scenario, log: RunLog, batch: str, precision: str, device: str) -> None:
    settings = resolved.settings
    log.say(
        f"{settings.method.name} on {settings.data.dataset} {scenario.task.name} ({scenario.protocol}), "
        f"{scenario.steps} steps, seed {settings.seed} -> {settings.run_folder}",
        "bold cyan",
    )
    log.say(f"  batch {batch}, {precision} on {device}, backbone {settings.model.backbone}")
    for preset in resolved.presets:
        log.say(f"  preset {preset.name}: {preset.source}")
    for line in (*resolved.overridden, *resolved.warnings):
        log.say(f"  {line}")


def _finish(run: Run, results: Mapping[str, Any]) -> None:
    checkpoint, _ = load(run.folder.checkpoint(run.scenario.steps - 1))
    model = place(build_model(checkpoint, run.settings), run.process.device, run.settings.compute)
    label = f"{run.settings.method.name} after step {checkpoint.step}"
    predictor = Predictor(label, model, checkpoint, run.settings, run.process, run.precision)
    draw_run(run.folder, results, run.scenario, predictor)
    run.events.close()
    run.log.say(f"Done: {run.folder.results}, curves/ and overlays/ beside it", "bold green")
