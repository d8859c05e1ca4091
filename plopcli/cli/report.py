"""`plop report`: runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from plopcli.cli import options
from plopcli.cli.output import print_json, print_tables

EXAMPLES = """
plop report runs/demo-plop runs/demo-ft                        # methods side by side
plop report runs/*-s42 --markdown
plop report runs/demo-plop runs/demo-ft --curves comparison.png
"""


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders.", show_default=False)],
    curves: Annotated[
        Path | None,
        typer.Option("--curves", metavar="FILE.png", help="Draw mIoU over the steps, all runs in one picture."),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="A Markdown table in place of the terminal's.")] = False,
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

    from plopcli.reporting.tables import comparison_table, markdown_table, step_table

    if markdown:
        typer.echo(markdown_table(labelled))
    else:
        print_tables(*(step_table(results) for _, results in labelled), comparison_table(labelled))
