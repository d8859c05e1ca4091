"""`plop report`: runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from plopcli.cli import options
from plopcli.cli.output import print_json, print_tables

EXAMPLES = """
plop report runs/demo-plop runs/demo-ft                        # methods side by side
plop report runs/toy-* --seeds --markdown                      # mean and spread over seeds
plop report runs/demo-plop runs/demo-ft --curves comparison.png
"""


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders.", show_default=False)],
    curves: Annotated[
        Path | None,
        typer.Option("--curves", metavar="FILE.png", help="Draw mIoU over the steps, all runs in one picture."),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="A Markdown table in place of the terminal's.")] = False,
    seeds: Annotated[
        bool, typer.Option("--seeds", help="One row per method: mean and standard deviation over its runs.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Compare runs: old, new and all classes after their last step, and the mean over the steps.

    A run that is not finished is shown as far as it got.
    """
    from plopcli.reporting.comparison import read_runs

    labelled = read_runs(runs)
    if curves is not None:
        from plopcli.visualization.curves import plot_comparison

        plot_comparison(labelled, curves)
        typer.echo(str(curves), err=True)
    if as_json:
        print_json([{"label": label, **results} for label, results in labelled])
        return

    from plopcli.reporting.tables import comparison_table, markdown_table, seeds_markdown, seeds_table, step_table

    all_results = [results for _, results in labelled]
    if markdown:
        typer.echo(seeds_markdown(all_results) if seeds else markdown_table(labelled))
    elif seeds:
        print_tables(seeds_table(all_results))
    else:
        print_tables(*map(step_table, all_results), comparison_table(labelled))
