"""`plop visualize`: pictures of what a model predicts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from plopcli.cli import options
from plopcli.cli.output import message_console, print_json
from plopcli.cli.resolution import checked, described
from plopcli.console.streams import echo
from plopcli.errors import DataError, UsageError

EXAMPLES = """
plop visualize runs/demo-plop                                  # test images beside their ground truth
plop visualize runs/demo-plop --errors                         # and where the model is wrong
plop visualize runs/demo-plop --input my-photos/ --output seen/
plop visualize runs/demo-plop runs/demo-ft --count 8           # two models on one sheet
plop visualize runs/demo-plop runs/demo-ft --steps --gif       # each image after every step, still and moving
plop visualize step5.pth --dataset voc --task 15-1 --input my-photos/   # of the original implementation
"""

_SETTING_OF = {
    "data_root": "data.root",
    "data_path": "data.path",
    "split": "data.results_on",
    "gpus": "compute.gpus",
    "precision": "compute.precision",
}
_IMAGES, _DRAWING = "Which images", "How they are drawn"


def _palettes() -> list[str]:
    from plopcli.data.colours import NAMED_PALETTES
    from plopcli.visualization.chosen import DISTINCT

    return [DISTINCT, *NAMED_PALETTES]


def visualize(
    ctx: typer.Context,
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH", help="Checkpoints or run folders; several are compared.", show_default=False),
    ],
    over_steps: Annotated[
        bool,
        typer.Option("--steps", help="A sheet per image with a column for every step of the runs: NAME-steps.png."),
    ] = False,
    gif: Annotated[
        bool, typer.Option("--gif", help="An animation per image over the steps of the runs: NAME.gif.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", metavar="DIR", help="Folder for the pictures.", show_default="overlays beside the model"
        ),
    ] = None,
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
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="FILE|DIR|GLOB",
            help="Pictures of your own; repeatable.",
            show_default="evaluation images",
            rich_help_panel=_IMAGES,
        ),
    ] = None,
    count: Annotated[
        int,
        typer.Option(
            "--count",
            metavar="N",
            min=1,
            help="How many evaluation images, without --input.",
            rich_help_panel=_IMAGES,
        ),
    ] = 16,
    errors: Annotated[
        bool,
        typer.Option(
            "--errors",
            help="Error maps beside the predictions: right, wrong as an old class (of the first step), wrong as a new "
            "one, missed (background in place of a class).",
            rich_help_panel=_DRAWING,
        ),
    ] = False,
    opacity: Annotated[
        float | None,
        typer.Option(
            "--opacity",
            metavar="X",
            min=0.0,
            max=1.0,
            help="Of classes over the photograph; on sheets, lays them over it.",
            show_default="0.5; sheets: plain class maps",
            rich_help_panel=_DRAWING,
        ),
    ] = None,
    contours: Annotated[
        bool | None,
        typer.Option(
            "--contours/--no-contours",
            help="White lines where classes meet.",
            show_default="over photographs",
            rich_help_panel=_DRAWING,
        ),
    ] = None,
    legend: Annotated[
        bool,
        typer.Option(
            "--legend/--no-legend", help="Names and colours of the classes that occur.", rich_help_panel=_DRAWING
        ),
    ] = True,
    palette: Annotated[
        str | None,
        typer.Option(
            "--palette",
            metavar="NAME|FILE",
            help="Colours by class name: voc, ade, cityscapes, or a file as for plop prepare; distinct: far apart.",
            show_default="the data set's own, else distinct",
            autocompletion=_palettes,
            rich_help_panel=_DRAWING,
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

    One model: a picture per image. Several: one sheet, comparison.png. Runs with --steps or --gif: how each image is
    seen after every step. The pictures go to the folder overlays of the (first) run, or beside the checkpoint; their
    names go to standard output. Pictures that cannot be read are named and left out; the exit code is then 3.

    A checkpoint of the original implementation needs --dataset and --task.
    """
    changes = checked(ctx.params, _SETTING_OF)
    original = any(ctx.params[name] for name in ("dataset", "task", "method", "assignments"))
    if (over_steps or gif) and (step is not None or original):
        raise UsageError(
            "--steps and --gif show every step of runs of plop.",
            "Leave --step away." if step is not None else "Leave --dataset, --task, --method and --set away.",
        )

    from plopcli.evaluation.evaluate import Changes
    from plopcli.visualization.drawing import Wanted, visualize_paths
    from plopcli.visualization.overlay import Style

    wanted = Wanted(
        inputs=inputs or (),
        output=output,
        count=count,
        step=step,
        sheets=over_steps,
        gif=gif,
        style=Style(opacity=opacity, contours=contours, legend=legend, errors=errors),
        palette=palette,
    )
    described_as = described(ctx.params) if original else None
    drawn = visualize_paths(paths, wanted, Changes(**changes, described=described_as), message_console())
    if as_json:
        failed = [{"picture": str(path), "error": error.message} for path, error in drawn.failures.items()]
        print_json({"files": [str(path) for path in drawn.files], "failed": failed})
    elif drawn.files:
        echo("\n".join(map(str, drawn.files)))
    if drawn.failures:
        raise DataError(
            f"{len(drawn.failures)} {'picture' if len(drawn.failures) == 1 else 'pictures'} could not be drawn; the "
            "others are done.",
            next(iter(drawn.failures.values())).hint,
        )
