"""`plop evaluate`: the figures of a checkpoint or of a whole run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from plopcli.cli import options
from plopcli.cli.output import message_console, print_results
from plopcli.cli.resolution import checked, described

EXAMPLES = """
plop evaluate runs/demo-plop                                   # every step of a run
plop evaluate runs/demo-plop/checkpoints/step-3.pt --json
plop evaluate runs/demo-plop --split val --data-root /data
plop evaluate runs/voc --gpus 4                                # the same figures, sooner
plop evaluate 15-5s_PLOP_5.pth --dataset voc --task 15-1       # of the original implementation
"""


_SETTING_OF = {
    "data_root": "data.root",
    "data_path": "data.path",
    "split": "data.results_on",
    "batch": "train.batch",
    "evaluation": "data.evaluation",
    "gpus": "compute.gpus",
    "processes": "compute.processes",
    "precision": "compute.precision",
}


def evaluate(
    ctx: typer.Context,
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A checkpoint or a run folder.", show_default=False)],
    data_root: options.OtherDataRoot = None,
    data_path: options.DataPath = None,
    split: options.Split = None,
    evaluation: Annotated[
        str | None,
        typer.Option(
            "--evaluation",
            metavar="NAME",
            help="crop: a central crop of every image; full: whole images.",
            show_default="as in training",
        ),
    ] = None,
    batch: Annotated[
        int | None, typer.Option("--batch", metavar="N", help="Images at a time.", show_default="as in training")
    ] = None,
    gpus: options.EvaluationGpus = None,
    processes: options.Processes = None,
    precision: options.OtherPrecision = None,
    dataset: options.OriginalDataset = None,
    task: options.OriginalTask = None,
    method: options.OriginalMethod = None,
    step: options.OriginalStep = None,
    assignments: options.OriginalAssignments = None,
    as_json: options.Json = False,
) -> None:
    """Measure a checkpoint, or every step of a run.

    By default it measures as the run itself did, and gives the same figures. A checkpoint of the original
    implementation needs --dataset and --task.
    """
    changes = checked(ctx.params, _SETTING_OF)

    from plopcli.devices.launch import run_everywhere
    from plopcli.evaluation.evaluate import Changes, check_evaluation, evaluate_path, settings_of

    changed = Changes(**changes, described=described(ctx.params))
    results = run_everywhere(
        evaluate_path,
        check_evaluation,
        settings_of(path, changed).compute,
        message_console(),
        path=path,
        changes=changed,
    )
    print_results(results, as_json=as_json)
