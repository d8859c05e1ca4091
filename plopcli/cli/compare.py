"""`plop compare`: many runs under one plan."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from plopcli.cli import options
from plopcli.cli.options import option
from plopcli.cli.output import output_format, print_comparisons, print_json, print_rows, say_lines

EXAMPLES = """
plop compare docs/comparisons/toy-15-1.toml --jobs 2           # every method, three seeds; goes on where it was stopped
plop compare plan.toml --dry-run                               # the runs, and which of them share step 0
plop compare plan.toml --set data.root=/data --set compute.gpus=1 --markdown
"""


def compare(
    plan: Annotated[Path, typer.Argument(metavar="PLAN.toml", help="The plan.", show_default=False)],
    jobs: Annotated[int, option("--jobs", "N", "Runs at a time.", min=1)] = 1,
    assignments: Annotated[
        list[str] | None, option("--set", "KEY=VALUE", "A setting of all runs, such as data.root=DIR; repeatable.")
    ] = None,
    markdown: options.Markdown = False,
    latex: options.Latex = False,
    as_csv: options.Csv = False,
    dry_run: Annotated[bool, option("--dry-run", help="Show the runs and train none.")] = False,
    as_json: options.Json = False,
) -> None:
    """Train methods or settings side by side over several seeds, and show mean and spread.

    A plan is a TOML file with the settings of all runs, those of every entry, and seeds. Runs that are there are not
    trained again: the same command goes on after a stop. Runs share step 0 where their settings allow it. --set wins
    over the plan's settings of all runs, and what an entry has of its own wins over --set.
    """
    form = output_format(markdown=markdown, latex=latex, csv=as_csv, json=as_json)

    from plopcli.sweeps.jobs import check_begun, is_finished, run_all
    from plopcli.sweeps.plan import planned_runs, read_plan

    read = read_plan(plan)
    runs = planned_runs(read, assignments or ())
    check_begun(runs)
    if dry_run:
        rows = [
            (run.label, run.seed, run.folder, run.donor or "trained", "yes" if is_finished(run) else "no")
            for run in runs
        ]
        print_rows(f"{len(runs)} runs", ("entry", "seed", "folder", "step 0", "finished"), rows)
        return
    run_all(runs, jobs, lambda line: say_lines([line]))

    from plopcli.reporting.comparison import by_label
    from plopcli.runs.folder import RunFolder

    results = [(run.label, run.folder, found) for run in runs if (found := RunFolder(run.folder).read_results())]
    if form == "json":
        print_json([{**of_run.content(), "method": label} for label, _, of_run in results])
    else:
        print_comparisons(by_label(results), [], form)
