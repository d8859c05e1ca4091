"""`plop convert`: checkpoints of the original implementation to ours, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from plopcli.cli import options
from plopcli.cli.options import option
from plopcli.cli.output import print_json, say_lines
from plopcli.cli.resolution import described
from plopcli.console.streams import echo
from plopcli.errors import unknown_name

EXAMPLES = """
plop convert 15-5s-voc_PLOP_0.pth runs/step-0.pt --to plop --dataset voc --task 15-1 --method plop
plop convert theirs.pth ours.pt --to plop --dataset ade --task 100-10 --method mib --set scenario.protocol=disjoint
plop convert runs/mine/checkpoints/step-5.pt theirs.pth --to original
"""

DIRECTIONS = ("plop", "original")


def convert(
    ctx: typer.Context,
    source: Annotated[Path, typer.Argument(metavar="FILE", help="A checkpoint.", show_default=False)],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write.", show_default=False)],
    to: Annotated[
        str, option("--to", "plop|original", "Whose checkpoint OUT shall be.", autocompletion=lambda: list(DIRECTIONS))
    ],
    dataset: options.OriginalDataset = None,
    task: options.OriginalTask = None,
    method: options.OriginalMethod = None,
    step: options.OriginalStep = None,
    assignments: options.OriginalAssignments = None,
    data_root: Annotated[
        Path | None,
        option(
            "--data-root",
            "DIR",
            "Folder with a folder for every data set; only data set folder has its class names there.",
            default="data",
            envvar="PLOP_DATA_ROOT",
        ),
    ] = None,
    data_path: options.DataPath = None,
    as_json: options.Json = False,
) -> None:
    """Turn a checkpoint of the original implementation into one of plop, or back.

    The tensors keep every bit. Such a file holds neither data set nor task: to plop, say --dataset, --task and
    --method. To evaluate, draw or go on from one, no conversion is needed.
    """
    if to not in DIRECTIONS:
        raise unknown_name("checkpoint format", to, DIRECTIONS)

    from plopcli.runs.convert import convert as convert_file
    from plopcli.runs.foreign import Description, summary

    done = convert_file(source, target, to, described(ctx.params) or Description())  # type: ignore[arg-type]
    checkpoint = done.checkpoint
    if as_json:
        facts = {
            "path": str(target),
            "format": to,
            "dataset": checkpoint.settings["data"]["dataset"],
            "task": checkpoint.task_name,
            "step": checkpoint.step,
            "class_counts": checkpoint.class_counts,
            "classes": checkpoint.classes,
            "model": checkpoint.settings["model"],
            "notes": list(done.notes),
        }
        print_json(facts)
        return
    say_lines([summary(checkpoint), *(f"  {note}" for note in done.notes)])
    echo(str(target))
