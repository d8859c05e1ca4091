"""`plop train-step`: one step of a scenario."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from plopcli.cli import options
from plopcli.cli.options import option
from plopcli.cli.output import message_console, print_results
from plopcli.cli.planning import answer_beforehand
from plopcli.cli.resolution import resolve
from plopcli.cli.run_description import describes_run
from plopcli.errors import UsageError

EXAMPLES = """
plop train-step --step 0 --dataset toy --run runs/mine
plop train-step --step 1 --run runs/mine                       # goes on from step 0, with the same settings
plop train-step --step 1 --run runs/mine --resume              # goes on in the middle of step 1
plop train-step --step 1 --dataset toy --run runs/other --previous runs/mine/checkpoints/step-0.pt
"""


@describes_run
def train_step(
    ctx: typer.Context,
    step: Annotated[int, option("--step", "N", "The step to train, from 0.", under="Run")],
    previous: Annotated[
        Path | None,
        option("--previous", "CKPT", "Checkpoint of the step before.", default="that of the run folder", under="Run"),
    ] = None,
    resume: Annotated[bool, option("--resume", help="Go on with the step where it stopped.", under="Run")] = False,
    overwrite: Annotated[
        bool, option("--overwrite", help="Train the step anew; later steps are dropped.", under="Run")
    ] = False,
    dry_run: options.DryRun = False,
    print_config: options.PrintConfig = False,
    as_json: options.Json = False,
) -> None:
    """Train one step of a scenario, from the checkpoint of the step before, and measure it.

    Steps 0 to N trained one by one give the same run as run-scenario.
    """
    if resume and overwrite:
        raise UsageError("--resume and --overwrite contradict each other.", "Leave one of them away.")
    resolved = resolve(ctx.params)
    if answer_beforehand(resolved, print_config=print_config, dry_run=dry_run, as_json=as_json):
        return

    from plopcli.console.log import end_in_log
    from plopcli.devices.launch import run_everywhere
    from plopcli.engine import scenario_run as engine
    from plopcli.runs.folder import RunFolder

    with end_in_log(RunFolder(resolved.settings.run_folder).log):
        results = run_everywhere(
            engine.run_single_step,
            engine.check_single_step,
            resolved.settings.compute,
            message_console(),
            resolved=resolved,
            choices=engine.StepChoices(step, previous, overwrite, resume),
        )
    print_results(results, as_json=as_json)
