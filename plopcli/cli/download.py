"""`plop download`: a data set, or weights, into the data root."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from plopcli.cli import options
from plopcli.cli.output import message_console, print_json
from plopcli.errors import UsageError

EXAMPLES = """
plop download toy                                              # generated in seconds, no network
plop download toy --difficulty hard --train 2000 --size 128
plop download voc --data-root /data
"""

_TOY = "Generated data (toy)"
_DRAWN = ("seed", "difficulty", "train", "val", "test", "size")


def download(
    ctx: typer.Context,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A data set (`plop datasets`) or weights.", show_default=False)
    ],
    data_root: options.DataRoot = Path("data"),
    seed: Annotated[
        int | None,
        typer.Option("--seed", metavar="N", help="Seed of every picture.", show_default="0", rich_help_panel=_TOY),
    ] = None,
    difficulty: Annotated[
        str | None,
        typer.Option(
            "--difficulty", metavar="NAME", help="easy, medium or hard.", show_default="medium", rich_help_panel=_TOY
        ),
    ] = None,
    train: Annotated[
        int | None,
        typer.Option("--train", metavar="N", help="Training images.", show_default="800", rich_help_panel=_TOY),
    ] = None,
    val: Annotated[
        int | None,
        typer.Option("--val", metavar="N", help="Validation images.", show_default="200", rich_help_panel=_TOY),
    ] = None,
    test: Annotated[
        int | None, typer.Option("--test", metavar="N", help="Test images.", show_default="300", rich_help_panel=_TOY)
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            "--size", metavar="N", help="Side of an image in pixels.", show_default="96", rich_help_panel=_TOY
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Get a data set, or generate the one that needs no download.

    What is already there is not fetched or drawn again.
    """
    drawn = {key: ctx.params[key] for key in _DRAWN if ctx.params[key] is not None}
    if drawn and name != "toy":
        raise UsageError(f"--{next(iter(drawn))} is for the generated data set, not for {name}.", "Leave it away.")

    from plopcli.data.download import download as fetch

    target = fetch(name, data_root, message_console(), **drawn)
    if as_json:
        print_json({"name": name, "path": str(target)})
    else:
        typer.echo(str(target))
