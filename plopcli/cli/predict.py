"""`plop predict`: segments pictures, into files for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from plopcli.cli import options
from plopcli.cli.options import option
from plopcli.cli.output import message_console, print_json
from plopcli.cli.resolution import described
from plopcli.console.streams import echo
from plopcli.errors import DataError

EXAMPLES = """
plop predict runs/demo-plop photo.jpg                         # predictions/photo.png and predictions/areas.json
plop predict runs/demo-plop my-photos/ --output seen --overlays
plop predict demo-plop-step-5.onnx 'my-photos/*.jpg' --json   # a model of plop export
"""


def predict(
    ctx: typer.Context,
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL", help="A run folder, a checkpoint, or an export (onnx, safetensors).", show_default=False
        ),
    ],
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGES", help="Pictures, folders or globs.", show_default=False)
    ],
    output: Annotated[Path, option("--output", "DIR", "Folder for the masks and areas.json.")] = Path("predictions"),
    overlays: Annotated[
        bool, option("--overlays", help="Draw the classes over each picture as well: NAME.overlay.png.")
    ] = False,
    step: options.Step = None,
    device: Annotated[
        str | None, option("--device", "NAME", "cpu, cuda, cuda:1, ...", default="the GPU if there is one")
    ] = None,
    dataset: options.OriginalDataset = None,
    task: options.OriginalTask = None,
    method: options.OriginalMethod = None,
    assignments: options.OriginalAssignments = None,
    data_root: options.OtherDataRoot = None,
    data_path: options.DataPath = None,
    as_json: options.Json = False,
) -> None:
    """Label every pixel of your own pictures.

    A mask is a PNG of the picture's own size whose values are labels, in the colours of the data set; areas.json names
    the labels and holds the share of each class in each picture. Pictures that cannot be read are named and left out;
    the exit code is then 3. The names of the masks go to standard output.
    """
    from plopcli.console.log import RunLog
    from plopcli.data.pictures import picture_paths
    from plopcli.inference.load import load_model
    from plopcli.inference.predict import document, predict_pictures

    pictures = picture_paths(images, output)
    opened = load_model(model, step, device, described(ctx.params, step_of_run=True))
    outcome = predict_pictures(opened, pictures, output, RunLog(message_console()), overlays=overlays)
    if as_json:
        print_json(document(opened, outcome))
    elif outcome.entries:
        echo("\n".join(entry["mask"] for entry in outcome.entries))
    if outcome.failures:
        raise DataError(
            f"{len(outcome.failures)} of {len(pictures)} pictures could not be used; the others are done.",
            next(iter(outcome.failures.values())).hint,
        )
