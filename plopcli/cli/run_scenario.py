"""`plop run-scenario`: every step of a scenario, trained and measured."""

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
plop run-scenario --dataset toy --task 15-1 --method plop      # minutes on a laptop, after plop download toy
plop run-scenario --task 15-1 --method plop --gpus 2           # the paper's setting: VOC, overlapped
plop run-scenario --dataset toy --dry-run                      # what each step would train on
plop run-scenario --dataset toy --method ft --init-from runs/toy-15-1-overlapped-plop-s42
plop run-scenario --config run.toml --set method.pod_factor=0.001 --set train.from_step.3.lr=0.0005
"""


@describes_run
def run_scenario(
    ctx: typer.Context,
    print_config: options.PrintConfig = False,
    resume: Annotated[
        bool, option("--resume", help="Go on where the run stopped, with its settings.", under="Run")
    ] = False,
    overwrite: Annotated[bool, option("--overwrite", help="Replace a run that is already there.", under="Run")] = False,
    init_from: Annotated[
        Path | None,
        option("--init-from", "RUN", "Take step 0 over from another run whose settings agree.", under="Run"),
    ] = None,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
) -> None:
    """Train every step of a scenario, and measure after each.

    Settings come from these options and --set, then the environment (PLOP_TRAIN_BATCH for train.batch), then
    --config, then the preset, then defaults.
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
            engine.run_scenario,
            engine.check_run_scenario,
            resolved.settings.compute,
            message_console(),
            resolved=resolved,
            choices=engine.ScenarioChoices(resume, overwrite, init_from),
        )
    print_results(results, as_json=as_json)
