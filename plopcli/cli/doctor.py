"""`plop doctor`: checks what could stop a run, and estimates how long it will take."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plopcli.cli import options
from plopcli.cli.options import option
from plopcli.cli.output import message_console, print_json
from plopcli.cli.resolution import resolve
from plopcli.cli.run_description import describes_run
from plopcli.console.streams import echo, open_console
from plopcli.errors import PlopError

if TYPE_CHECKING:
    from plopcli.doctor.findings import Finding

EXAMPLES = """
plop doctor --task 15-1 --method plop --gpus 2                 # the options of run-scenario
plop doctor --config runs/mine/settings.toml --resume          # what is left of a run
plop doctor --dataset toy --iterations 20                      # a closer estimate
plop doctor --dataset ade --task 100-10 --iterations 0 --json  # nothing measured
"""

_COLOURS = {"ok": "green", "warning": "yellow", "problem": "red"}


@describes_run
def doctor(
    ctx: typer.Context,
    resume: Annotated[
        bool, option("--resume", help="The run is to go on after its last finished step.", under="Run")
    ] = False,
    overwrite: Annotated[
        bool, option("--overwrite", help="The run is to replace one that is there.", under="Run")
    ] = False,
    init_from: Annotated[
        Path | None, option("--init-from", "RUN", "The run is to take step 0 over from another.", under="Run")
    ] = None,
    iterations: Annotated[int, option("--iterations", "N", "Iterations to measure in a step; 0: none.", min=0)] = 5,
    budget: Annotated[float, option("--budget", "SECONDS", "Measure a step for about so long at most.", min=0)] = 60.0,
    as_json: options.Json = False,
) -> None:
    """Look for what could stop a run before it begins, and estimate how long it will take.

    A few iterations of step 0 and step 1 are trained in memory. Nothing is written to the run folder. The exit code is
    0 if the run can begin, else that with which it would fail.
    """
    from plopcli.doctor.findings import Examination

    def tell(finding: Finding) -> None:
        if not as_json:
            _print_finding(finding)

    try:
        resolved = resolve(ctx.params)
    except PlopError as error:
        found = Examination(tell)
        found.refuse("settings", error)
    else:
        from plopcli.doctor.examine import examine
        from plopcli.engine.scenario_run import ScenarioChoices

        found = examine(
            resolved,
            ScenarioChoices(resume, overwrite, init_from),
            iterations=iterations,
            budget=budget,
            console=message_console(),
            tell=tell,
        )
    if as_json:
        print_json(found.as_dict())
    if found.exit_code:
        raise typer.Exit(found.exit_code)


def _print_finding(finding: Finding) -> None:
    from rich.text import Text

    level = Text(f"{finding.level:<8}", _COLOURS[finding.level])
    console = open_console(err=False, highlight=False, soft_wrap=True)
    console.print(level + Text(f" {finding.check:<9} {finding.message}", ""))
    if finding.remedy:
        echo(f"{'':<18} {finding.remedy}")
