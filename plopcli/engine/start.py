"""The beginning of a run: its folder is opened, and says what is about to happen."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

from plopcli.engine.resume import computed_otherwise
from plopcli.engine.run import Run
from plopcli.files.atomic import write_atomic
from plopcli.methods import METHODS
from plopcli.methods.from_file import text_of
from plopcli.resolution.layers import Resolved, settings_to_toml
from plopcli.runs.environment import environment_stamp
from plopcli.runs.events import EventWriter


def begin(run: Run, resolved: Resolved, *, clear: bool, step_0_from: Path | None = None) -> Run:
    """Opens the run's folder, writes there what it is computed with, and tells it.

    Args:
        run: The run, checked.
        resolved: Its settings with their origins.
        clear: Remove what an earlier run has left in the folder.
        step_0_from: The other run that step 0 is taken over from, if so.

    Returns:
        The run, writing from now on in its main process.
    """
    if run.process.is_main:
        run = _open(run, resolved, clear=clear, step_0_from=step_0_from)
    run.process.barrier()
    return run


def _open(run: Run, resolved: Resolved, *, clear: bool, step_0_from: Path | None) -> Run:
    folder, settings = run.folder, run.settings
    if clear:
        folder.clear()
    earlier = folder.read_environment()
    folder.create()
    run.log.file = folder.log
    write_atomic(folder.settings, settings_to_toml(settings))
    if (code := text_of(settings.method.name)) is not None:
        changed = folder.method.is_file() and folder.method.read_text("utf-8") != code
        write_atomic(folder.method, code)
        if changed:
            run.log.say(f"  {folder.method}: the method's code has changed since the run began", "yellow")
    stamp = environment_stamp() | {
        "command": sys.argv,
        "method": str(METHODS.origin(settings.method.name)),
        "data_fingerprint": run.scenario.fingerprint,
        "precision": run.precision.name,
        "processes": run.process.world,
        "batch": run.layout.describe(run.process.device.type),
        "abn": {"implementation": run.abn.implementation, "reason": run.abn.reason},
        "batch_norm": _norm_statistics(run),
        "step_0_from": None if step_0_from is None else str(step_0_from),
        "earlier": earlier,
    }
    write_atomic(folder.environment, json.dumps(stamp, indent=2) + "\n")
    _introduce(resolved, run)
    for line in computed_otherwise(run):
        run.log.say(f"  {line}", "yellow")
    if step_0_from is not None:
        run.log.say(f"Step 0 is taken from {step_0_from}", "bold")
    lengths = [work.iterations for work in run.status.time_left.steps]
    return replace(run, events=EventWriter(folder.tensorboard if settings.output.tensorboard else None, lengths))


def _introduce(resolved: Resolved, run: Run) -> None:
    settings, scenario, log = run.settings, run.scenario, run.log
    log.say(
        f"{settings.method.name} on {settings.data.dataset} {scenario.task.name} ({scenario.protocol}), "
        f"{scenario.steps} steps, seed {settings.seed} -> {settings.run_folder}",
        "bold cyan",
    )
    batch = run.layout.describe(run.process.device.type)
    log.say(f"  batch {batch}, {run.precision.name} on {run.process.device}, backbone {settings.model.backbone}")
    log.say(f"  batch norm: {describe_norms(run)}")
    for preset in resolved.presets:
        log.say(f"  preset {preset.name}: {preset.source}")
    for line in (*scenario.notes, *resolved.notes, *_compiled_otherwise(run), *resolved.overridden, *resolved.warnings):
        log.say(f"  {line}")


def describe_norms(run: Run) -> str:
    """What computes the batch norms of a run, and over how many images their statistics, for people."""
    return f"{run.abn.describe()}, {_norm_statistics(run)}"


def _norm_statistics(run: Run) -> str:
    """Over how many images batch norm computes its statistics, for people."""
    images, world = run.layout.micro, run.process.world
    if world == 1:
        return f"statistics over the {images} images of a forward pass"
    if run.syncs_norm:
        return f"statistics synchronised over {world} processes, {images * world} images"
    return f"statistics NOT synchronised: {images} images in each of {world} processes"


def _compiled_otherwise(run: Run) -> list[str]:
    """What a compiler does not heed."""
    compute, said = run.settings.compute, []
    if compute.compile == "off":
        return []
    if unheeded := [name for name in ("in_place_norm", "checkpointing") if getattr(compute, name)]:
        said.append(f"compute.{' and '.join(unheeded)}: no effect, since the compiler decides what is kept")
    if run.syncs_norm:
        said.append(
            "compute.compile: synchronised batch norms are not compiled, which leaves little to gain; "
            "compute.sync_norm=false or frozen norms do"
        )
    return said
