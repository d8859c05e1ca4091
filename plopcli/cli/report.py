"""`plop report`: compares what runs have learned and forgotten."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plopcli.cli import options
from plopcli.cli.options import option
from plopcli.cli.output import message_console, output_format, print_comparisons, print_json
from plopcli.cli.resolution import checked
from plopcli.console.streams import echo

if TYPE_CHECKING:
    from plopcli.reporting.comparison import Comparison, MeasuredRun
    from plopcli.runs.diagnosis import Diagnosis

EXAMPLES = """
plop report runs/demo-plop runs/demo-ft                        # methods side by side
plop report runs/toy-* --html report.html                      # everything there is to see, in one file
plop report runs/toy-* --seeds --latex                         # mean and spread over seeds, for a paper
plop report runs/demo-plop --diagnose                          # pseudo-labels against the hidden truth
plop report runs/demo-plop runs/demo-ft --curves comparison.png
"""

_SETTING_OF = {"data_root": "data.root", "data_path": "data.path", "gpus": "compute.gpus"}


def report(
    ctx: typer.Context,
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders.", show_default=False)],
    html: Annotated[
        Path | None,
        option("--html", "FILE.html", "Write one page that needs nothing else: curves, maps, pictures, diagnosis."),
    ] = None,
    curves: Annotated[
        Path | None, option("--curves", "FILE.png", "Draw mIoU over the steps, all runs in one picture.")
    ] = None,
    markdown: options.Markdown = False,
    latex: options.Latex = False,
    as_csv: options.Csv = False,
    as_json: options.Json = False,
    seeds: Annotated[
        bool, option("--seeds", help="Only the table over seeds; runs of the same settings always form one row.")
    ] = False,
    diagnose: Annotated[
        bool,
        option(
            "--diagnose",
            help="Compare the pseudo-labels of every step with the hidden truth, however long that takes (once: the "
            "run's folder keeps it). --html does so by itself where it takes less than two minutes a run.",
        ),
    ] = False,
    images: Annotated[int, option("--images", "N", "Images in the page; 0: none.", min=0)] = 6,
    data_root: options.OtherDataRoot = None,
    data_path: options.DataPath = None,
    gpus: options.OtherGpus = None,
) -> None:
    """Compare runs: old, new and all classes after their last step, the mean over the steps, and published figures.

    Runs that differ in the seed only form one row, with mean and standard deviation. Published figures stand beside
    runs on the same data set, task and protocol. A run that is not finished is shown as far as it got.
    """
    form = output_format(markdown=markdown, latex=latex, csv=as_csv, json=as_json)
    changes = checked(ctx.params, _SETTING_OF)

    from plopcli.reporting.comparison import compare, read_runs, run_labels
    from plopcli.reporting.run_tables import diagnosis_table, step_table

    measured = read_runs(runs)
    comparisons = compare(measured, pool=seeds)
    labels = run_labels(comparisons)
    if curves is not None:
        from plopcli.visualization.curves import plot_comparison

        plot_comparison([(labels[run.path], run.results) for run in measured], curves)
        echo(str(curves), err=True)
    found: dict[Path, Diagnosis] = {}
    if html is not None or diagnose:
        found = _look_closer(measured, comparisons, labels, html, diagnose, images, changes)
    if form == "json" and not seeds:
        print_json([_told(labels[run.path], run, found.get(run.path)) for run in measured])
        return
    tables = []
    if form is None:
        tables = [] if seeds else [step_table(run.results) for run in measured]
        tables += [diagnosis_table(labels[path], diagnosis) for path, diagnosis in found.items()]
    print_comparisons(comparisons, tables, form)


def _told(label: str, run: MeasuredRun, diagnosis: Diagnosis | None) -> dict[str, Any]:
    """A run as JSON values."""
    told = {"label": label, "run": str(run.path), **run.results.content()}
    return told if diagnosis is None else told | {"diagnosis": diagnosis.model_dump(mode="json")["steps"]}


def _look_closer(
    measured: list[MeasuredRun],
    comparisons: list[Comparison],
    labels: dict[Path, str],
    html: Path | None,
    diagnose: bool,
    images: int,
    changes: dict[str, Any],
) -> dict[Path, Diagnosis]:
    """Writes the page, and returns the diagnoses that were asked for by folder."""
    from plopcli.console.log import RunLog
    from plopcli.evaluation.evaluate import Changes
    from plopcli.reporting.build import PageChoices, diagnosis_of, gather_all

    choices = PageChoices(Changes(**changes), images, diagnose)
    log = RunLog(message_console())
    if html is None:
        told = {run.path: diagnosis_of(run.path, choices, log) for run in measured}
        return {path: found for path, found in told.items() if not isinstance(found, str)}
    from plopcli.reporting.html.page import write_page

    gathered = gather_all(measured, labels, choices, log)
    write_page(html, comparisons, gathered)
    log.say(f"{html}   ({html.stat().st_size / 1e6:.1f} MB)")
    if not diagnose:
        return {}
    return {each.path: each.diagnosis for each in gathered if not isinstance(each.diagnosis, str)}
