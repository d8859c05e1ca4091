"""`plop prepare`: a data set, checked and indexed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from plopcli.cli import options
from plopcli.cli.options import option
from plopcli.cli.output import message_console, print_json, print_rows
from plopcli.cli.resolution import checked
from plopcli.console.streams import echo

EXAMPLES = """
plop prepare toy
plop prepare voc --task 15-1 --protocol disjoint               # images of every step
plop prepare ade --task 100-50 --splits mib/ade/100-50         # MiB's own choice of images
plop prepare voc --skip-bad                                    # go on without unusable pairs
plop prepare folder --data-path my-data --no-background --json
plop prepare folder --data-path my-data --palette colours.txt --convert-to my-data-ids
"""

_COLOURS = "Masks in colour"
_SETTING_OF = {
    "dataset": "data.dataset",
    "data_root": "data.root",
    "data_path": "data.path",
    "val_fraction": "data.val_fraction",
    "background": "data.background",
    "protocol": "scenario.protocol",
    "task": "scenario.task",
    "order_seed": "scenario.order_seed",
    "splits": "scenario.splits",
}


def prepare(
    ctx: typer.Context,
    dataset: Annotated[str, typer.Argument(metavar="NAME", help="A data set (`plop datasets`).", show_default=False)],
    data_root: options.DataRoot = Path("data"),
    data_path: options.DataPath = None,
    background: Annotated[
        bool,
        option("--background/--no-background", help="Data set folder: whether classes.txt begins with the background."),
    ] = True,
    skip_bad: Annotated[
        bool, option("--skip-bad", help="From now on go on without image and mask pairs that are unusable.")
    ] = False,
    palette: Annotated[
        str | None,
        option(
            "--palette",
            "FILE",
            "Which colour is which class: a file with lines like 255 0 0 cat; or voc, ade, cityscapes.",
            under=_COLOURS,
        ),
    ] = None,
    convert_to: Annotated[
        Path | None,
        option("--convert-to", "DIR", "Folder for a copy of the data set with converted masks.", under=_COLOURS),
    ] = None,
    task: Annotated[
        str | None, option("--task", "NAME", "Show the images of every step of this task.", under="Scenario")
    ] = None,
    protocol: Annotated[
        str, option("--protocol", "NAME", "overlapped, disjoint or sequential.", under="Scenario")
    ] = "overlapped",
    order_seed: options.OrderSeed = None,
    splits: options.Splits = None,
    val_fraction: Annotated[
        float, option("--val-fraction", "X", "Share of the training images kept for validation.", under="Scenario")
    ] = 0.0,
    ids: Annotated[
        bool, option("--ids", help="Names of the images in place of their number.", under="Scenario")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Check every image and mask of a data set, and index its classes.

    Training indexes by itself; this decodes every image besides, says what is wrong, and shows what steps would see.
    Only what has changed since the last time is checked again.
    """
    values = checked(ctx.params, _SETTING_OF)

    from plopcli.errors import DataError
    from plopcli.scenarios.prepare import Preparation
    from plopcli.scenarios.prepare import prepare as check
    from plopcli.settings.sections import DataSettings, ScenarioSettings

    parts: dict[str, dict[str, Any]] = {"data": {}, "scenario": {}}
    for name, value in values.items():
        section, _, key = _SETTING_OF[name].partition(".")
        parts[section][key] = value
    chosen = Preparation(skip_bad, task is not None, ids, palette, convert_to)
    answer = check(DataSettings(**parts["data"]), ScenarioSettings(**parts["scenario"]), chosen, message_console())
    refused = answer.pop("refused")
    if as_json:
        print_json(answer)
    else:
        _print(answer)
    if refused is not None:
        listed = answer["problems_file"]
        raise DataError(
            f"{sum(kind['pairs'] for kind in answer['problems'])} image and mask pairs are unusable"
            + ("." if listed is None else f", all listed in {listed}."),
            "Mend the files, or add --skip-bad to go on without these pairs.",
        )


def _print(answer: Mapping[str, Any]) -> None:
    images = ", ".join(f"{number} {split}" for split, number in answer["images"].items())
    rows = [(label, entry["name"], entry["images"], entry["pixels"]) for label, entry in enumerate(answer["classes"])]
    print_rows(f"{answer['dataset']} in {answer['root']}: {images} images", ("id", "class", "images", "pixels"), rows)
    if answer["problems"]:
        kinds = [[entry[key] for key in ("kind", "pairs", "first", "hint")] for entry in answer["problems"]]
        print_rows("problems", ("kind", "pairs", "the first of them", "what to do"), kinds)
    if "steps" in answer:
        steps = [
            [" ".join(cell) if isinstance(cell, list) else cell for cell in step.values()] for step in answer["steps"]
        ]
        title = f"task {answer['task']}, {answer['protocol']}: images of every step"
        print_rows(title, list(answer["steps"][0]), steps)
    echo(answer["changes"], err=True)
    if answer["skipped"]:
        echo(f"{len(answer['skipped'])} unusable pairs are skipped, in training as well", err=True)
    for note in answer["notes"]:
        echo(f"note: {note}", err=True)
