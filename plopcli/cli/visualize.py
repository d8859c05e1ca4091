"""`plop visualize`: pictures of what a model predicts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from plopcli.cli import options
from plopcli.cli.options import option
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
        bool, option("--steps", help="A sheet per image with a column for every step of the runs: NAME-steps.png.")
    ] = False,
    gif: Annotated[bool, option("--gif", help="An animation per image over the steps of the runs: NAME.gif.")] = False,
    output: Annotated[
        Path | None, option("--output", "DIR", "Folder for the pictures.", default="overlays beside the model")
    ] = None,
    step: Annotated[
        int | None,
        option(
            "--step",
            "N",
            "The step of a run folder, or of a checkpoint of the original implementation on domains.",
            default="the last",
            min=0,
        ),
    ] = None,
    inputs: Annotated[
        list[str] | None,
        option(
            "--input", "FILE|DIR|GLOB", "Pictures of your own; repeatable.", default="evaluation images", under=_IMAGES
        ),
    ] = None,
    count: Annotated[
        int, option("--count", "N", "How many evaluation images, without --input.", under=_IMAGES, min=1)
    ] = 16,
    errors: Annotated[
        bool,
        option(
            "--errors",
            help="Error maps beside the predictions: right, wrong as an old class (of the first step), wrong as a new "
            "one, missed (background in place of a class).",
            under=_DRAWING,
        ),
    ] = False,
    opacity: Annotated[
        float | None,
        option(
            "--opacity",
            "X",
            "Of classes over the photograph; on sheets, lays them over it.",
            default="0.5; sheets: plain class maps",
            under=_DRAWING,
            min=0.0,
            max=1.0,
        ),
    ] = None,
    contours: Annotated[
        bool | None,
        option(
            "--contours/--no-contours",
            help="White lines where classes meet.",
            default="over photographs",
            under=_DRAWING,
        ),
    ] = None,
    legend: Annotated[
        bool, option("--legend/--no-legend", help="Names and colours of the classes that occur.", under=_DRAWING)
    ] = True,
    palette: Annotated[
        str | None,
        option(
            "--palette",
            "NAME|FILE",
            "Colours by class name: voc, ade, cityscapes, or a file as for plop prepare; distinct: far apart.",
            default="the data set's own, else distinct",
            under=_DRAWING,
            autocompletion=_palettes,
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
    original = described(ctx.params, step_of_run=True)
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
    drawn = visualize_paths(paths, wanted, Changes(**changes, described=original), message_console())
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
