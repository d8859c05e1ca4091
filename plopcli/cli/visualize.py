"""`plop visualize`: pictures of what a model predicts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from plopcli.cli import options
from plopcli.cli.output import message_console, print_json
from plopcli.cli.resolution import checked, described

EXAMPLES = """
plop visualize runs/demo-plop                                  # test images beside their ground truth
plop visualize runs/demo-plop --input my-photos/ --output seen/
plop visualize runs/demo-plop runs/demo-ft --count 8           # two models on one sheet
plop visualize step5.pth --dataset voc --task 15-1 --input my-photos/   # of the original implementation
"""

_SETTING_OF = {
    "data_root": "data.root",
    "data_path": "data.path",
    "split": "data.results_on",
    "gpus": "compute.gpus",
    "precision": "compute.precision",
}


def visualize(
    ctx: typer.Context,
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH", help="Checkpoints or run folders; several are compared.", show_default=False),
    ],
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="FILE|DIR|GLOB",
            help="Pictures of your own; repeatable.",
            show_default="evaluation images",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", metavar="DIR", help="Folder for the pictures.", show_default="overlays beside the model"
        ),
    ] = None,
    count: Annotated[
        int, typer.Option("--count", metavar="N", min=1, help="How many evaluation images, without --input.")
    ] = 16,
    step: Annotated[
        int | None,
        typer.Option(
            "--step",
            metavar="N",
            min=0,
            help="The step of a run folder, or of a checkpoint of the original implementation on domains.",
            show_default="the last",
        ),
    ] = None,
    data_root: options.OtherDataRoot = None,
    data_path: options.DataPath = None,
    split: options.Split = None,
    gpus: options.OtherGpus = None,
    precision: options.OtherPrecision = None,
    dataset: options.OriginalDataset = None,
    task: options.OriginalTask = None,
    method: options.OriginalMethod = None,
    assignments: options.OriginalAssignments = None,
    as_json: options.Json = False,
) -> None:
    """Draw image, prediction, blend and ground truth side by side.

    The names of the files go to standard output. A checkpoint of the original implementation needs --dataset and
    --task.
    """
    changes = checked(ctx.params, _SETTING_OF)
    original = any(ctx.params[name] for name in ("dataset", "task", "method", "assignments"))

    from plopcli.evaluation.evaluate import Changes
    from plopcli.visualization.predictions import visualize_paths

    written = visualize_paths(
        paths,
        inputs=inputs or [],
        output=output,
        count=count,
        changes=Changes(**changes, described=described(ctx.params) if original else None),
        console=message_console(),
        step=step,
    )
    if as_json:
        print_json({"files": [str(path) for path in written]})
    else:
        typer.echo("\n".join(str(path) for path in written))
