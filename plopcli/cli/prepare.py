"""`plop prepare`: a data set, checked and indexed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from plopcli.cli import options
from plopcli.cli.output import message_console, print_json, print_rows

EXAMPLES = """
plop prepare toy
plop prepare toy --task 15-1 --protocol disjoint               # images of every step
plop prepare folder --data-path my-data --no-background --json
"""

_SETTING_OF = {
    "dataset": "data.dataset",
    "data_root": "data.root",
    "data_path": "data.path",
    "val_fraction": "data.val_fraction",
    "background": "data.background",
    "protocol": "scenario.protocol",
}


def prepare(
    ctx: typer.Context,
    dataset: Annotated[str, typer.Argument(metavar="NAME", help="A data set (`plop datasets`).", show_default=False)],
    data_root: options.DataRoot = Path("data"),
    data_path: options.DataPath = None,
    background: Annotated[
        bool,
        typer.Option(
            "--background/--no-background", help="Data set folder: whether classes.txt begins with the background."
        ),
    ] = True,
    task: Annotated[
        str | None, typer.Option("--task", metavar="NAME", help="Show the images of every step of this task.")
    ] = None,
    protocol: Annotated[
        str, typer.Option("--protocol", metavar="NAME", help="overlapped, disjoint or sequential.")
    ] = "overlapped",
    val_fraction: Annotated[
        float, typer.Option("--val-fraction", metavar="X", help="Share of the training images kept for validation.")
    ] = 0.0,
    ids: Annotated[bool, typer.Option("--ids", help="Names of the images in place of their number.")] = False,
    as_json: options.Json = False,
) -> None:
    """Check every image and mask of a data set, and index its classes.

    Training does this by itself; here one sees the outcome before.
    """
    values = options.checked(ctx.params, _SETTING_OF)

    from plopcli.data.prepare import prepare as check
    from plopcli.settings.sections import DataSettings

    settings = DataSettings(
        dataset=values["dataset"],
        root=values["data_root"],
        path=values.get("data_path"),
        background=values["background"],
        val_fraction=values["val_fraction"],
    )
    answer = check(settings, message_console(), task=task, protocol=values["protocol"], ids=ids)
    if as_json:
        print_json(answer)
        return
    images = ", ".join(f"{number} {split}" for split, number in answer["images"].items())
    rows = [(label, entry["name"], entry["images"], entry["pixels"]) for label, entry in enumerate(answer["classes"])]
    print_rows(f"{answer['dataset']} in {answer['root']}: {images} images", ("id", "class", "images", "pixels"), rows)
    if task is not None:
        columns = list(answer["steps"][0])
        steps = [
            [" ".join(cell) if isinstance(cell, list) else cell for cell in step.values()] for step in answer["steps"]
        ]
        print_rows(f"task {answer['task']}, {answer['protocol']}: images of every step", columns, steps)
