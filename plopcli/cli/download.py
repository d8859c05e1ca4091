"""`plop download`: a data set, or weights, into the data root."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from plopcli.cli import options
from plopcli.cli.options import option
from plopcli.cli.output import message_console, print_json
from plopcli.console.streams import echo
from plopcli.errors import UsageError

EXAMPLES = """
plop download toy                                              # generated in seconds, no network
plop download toy --difficulty hard --train 2000 --size 128
plop download voc --data-root /data
plop download voc --from ~/VOCtrainval_11-May-2012.tar         # files that you have are not fetched
plop download weights --backbone resnet50 --source torchvision
"""

_TOY = "Generated data (toy)"
_ARCHIVES = "Archives (voc, ade, cityscapes, weights)"
_WEIGHTS = "Weights"
#: Options that only make sense for some downloads, and what these are called in a message.
_DRAWN = ("seed", "difficulty", "train", "val", "test", "size")
_OF_WEIGHTS = ("backbone", "source")
_OF_ARCHIVES = {"own": "--from", "accept_checksum": "--accept-checksum", "keep_archives": "--keep-archives"}


def download(
    ctx: typer.Context,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="toy, voc, ade, cityscapes or weights.", show_default=False)
    ],
    data_root: options.DataRoot = Path("data"),
    own: Annotated[
        list[Path] | None,
        option(
            "--from",
            "FILE",
            "An archive, or weights, that you have; again for each. Recognised by what it holds.",
            under=_ARCHIVES,
        ),
    ] = None,
    accept_checksum: Annotated[
        bool,
        option(
            "--accept-checksum",
            help="Take files whose checksum is not the known one, also one that was kept as NAME.bad.",
            under=_ARCHIVES,
        ),
    ] = False,
    keep_archives: Annotated[
        bool,
        option(
            "--keep-archives",
            help="Leave archives in the folder archives/ of the data set after unpacking.",
            under=_ARCHIVES,
        ),
    ] = False,
    backbone: Annotated[
        str | None,
        option(
            "--backbone", "NAME", "resnet18, 34, 50, 101, 152 or mobilenet_v2.", default="resnet101", under=_WEIGHTS
        ),
    ] = None,
    source: Annotated[
        str | None,
        option(
            "--source",
            "NAME",
            "iabn (the papers' files) or torchvision.",
            default="iabn for resnet50 and resnet101, else torchvision",
            under=_WEIGHTS,
        ),
    ] = None,
    seed: Annotated[int | None, option("--seed", "N", "Seed of every picture.", default="0", under=_TOY)] = None,
    difficulty: Annotated[
        str | None, option("--difficulty", "NAME", "easy, medium or hard.", default="medium", under=_TOY)
    ] = None,
    train: Annotated[int | None, option("--train", "N", "Training images.", default="800", under=_TOY)] = None,
    val: Annotated[int | None, option("--val", "N", "Validation images.", default="200", under=_TOY)] = None,
    test: Annotated[int | None, option("--test", "N", "Test images.", default="300", under=_TOY)] = None,
    size: Annotated[int | None, option("--size", "N", "Side of an image in pixels.", default="96", under=_TOY)] = None,
    as_json: options.Json = False,
) -> None:
    """Get a data set, or generate the one that needs no download; or get weights.

    What is already there is not fetched or drawn again, and a download that was cut off goes on where it stopped.
    """
    drawn = {key: ctx.params[key] for key in _DRAWN if ctx.params[key] is not None}
    if drawn and name != "toy":
        raise UsageError(f"--{next(iter(drawn))} is for the generated data set, not for {name}.", "Leave it away.")
    if name != "weights" and (given := [f"--{key}" for key in _OF_WEIGHTS if ctx.params[key] is not None]):
        raise UsageError(f"{given[0]} is for weights, not for {name}.", "Leave it away.")
    if name == "toy" and (given := [flag for key, flag in _OF_ARCHIVES.items() if ctx.params[key]]):
        raise UsageError(f"{given[0]} is for downloads, and {name} is generated.", "Leave it away.")

    from plopcli.data.download import DownloadChoices
    from plopcli.data.download import download as fetch

    choices = DownloadChoices(tuple(own or ()), accept_checksum, keep_archives)
    console = message_console()
    target = fetch(name, data_root, console, choices=choices, backbone=backbone, source=source, drawn=drawn)
    if as_json:
        print_json({"name": name, "path": str(target)})
    else:
        echo(str(target))
