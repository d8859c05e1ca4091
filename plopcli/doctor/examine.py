"""The examination as a whole: `plop doctor`."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median_high

from rich.console import Console
from rich.filesize import decimal as size_text

from plopcli.devices.launch import run_everywhere
from plopcli.devices.process import planned_process
from plopcli.doctor.checks import (
    check_data,
    check_device,
    check_disk,
    check_folder,
    check_loading,
    check_memory,
    check_settings,
    check_weights,
)
from plopcli.doctor.duration import expected_duration
from plopcli.doctor.findings import Examination, Finding
from plopcli.doctor.rehearsal import Timing, rehearse
from plopcli.engine.run import Run
from plopcli.engine.scenario_run import ScenarioChoices, check_run_scenario
from plopcli.errors import PlopError
from plopcli.resolution.layers import Resolved


def examine(
    resolved: Resolved,
    choices: ScenarioChoices,
    *,
    iterations: int,
    budget: float,
    console: Console,
    tell: Callable[[Finding], None] = lambda finding: None,
) -> Examination:
    """Checks everything that `run_scenario` with the same arguments will need.

    Args:
        resolved: The settings.
        choices: What the run is to do with a run that is already there.
        iterations: Iterations to measure in a step; 0: none, and no duration is given.
        budget: Seconds for measuring a step, about.
        console: Where to show progress.
        tell: Called with each finding.
    """
    begun = time.perf_counter()
    found = Examination(tell)
    check_settings(found, resolved)
    for look in (check_device, check_data, check_weights, check_folder):
        with found.question(look.__name__.removeprefix("check_")):
            look(found, resolved, choices, console)
    run = _beginning(found, resolved, choices, console)
    if run is None:
        return found
    starting = time.perf_counter() - begun
    for check in (check_memory, check_loading):
        with found.question(check.__name__.removeprefix("check_")):
            check(found, run)
    timings: list[Timing] = []
    if iterations and found.exit_code == 0:
        with found.question("training"):
            timings = _training(found, resolved, choices, iterations, budget, console)
    missing = [
        step for step in range(run.scenario.steps) if choices.overwrite or not run.folder.checkpoint(step).exists()
    ]
    with found.question("disk"):
        check_disk(found, run, missing, timings)
    if timings:
        taken_over = [0] if choices.init_from is not None and 0 in missing else []
        left = [step for step in missing if step not in taken_over]
        found.duration = expected_duration(run, timings, left, starting)
        done = run.scenario.steps - len(missing)
        found.ok(
            "time",
            f"{found.duration.describe()} for {len(left)} {'step' if len(left) == 1 else 'steps'}"
            f"{f', {done} done before' if done else ''}"
            f"{', step 0 is taken over' if taken_over else ''}",
        )
    return found


def _beginning(found: Examination, resolved: Resolved, choices: ScenarioChoices, console: Console) -> Run | None:
    """The run, if `run_scenario` would begin it."""
    try:
        planned = planned_process(resolved.settings.compute)
        run, _ = check_run_scenario(resolved, choices, process=planned, console=console)
    except PlopError as error:
        if found.exit_code == 0:
            found.refuse("scenario", error)
        return None
    scenario = run.scenario
    images = [len(scenario.training(step)) for step in range(scenario.steps)]
    found.ok("scenario", f"{scenario.steps} steps of {', '.join(map(str, images))} training images")
    for note in scenario.notes:
        found.warn("scenario", note)
    return run


def _training(
    found: Examination, resolved: Resolved, choices: ScenarioChoices, iterations: int, budget: float, console: Console
) -> list[Timing]:
    timings: list[Timing] | None = run_everywhere(
        rehearse,
        None,  # `check_run_scenario` has passed already
        resolved.settings.compute,
        console,
        resolved=resolved,
        choices=choices,
        iterations=iterations,
        budget=budget,
    )
    if timings is None:
        return []
    for timing in timings:
        typical = median_high(timing.iterations)
        found.ok(
            "training",
            f"step {timing.step}: {len(timing.iterations)} iterations of {typical:.3g} s, images loaded in "
            f"{1000 * timing.loading:.3g} ms, {size_text(timing.memory)} of memory taken",
        )
    return timings
