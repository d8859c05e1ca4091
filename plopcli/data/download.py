"""`plop download`: puts a data set into the data root."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from plopcli.data.datasets import DATASETS
from plopcli.data.toy import generate_toy
from plopcli.errors import MachineError, UsageError, unknown_name
from plopcli.runs.folder import RunLog


def download_toy(data_root: Path, console: Console, **parameters: int | str) -> Path:
    """Draws the generated data set into ``data_root``/toy; ``parameters`` are those of `generate_toy`."""
    target = data_root / "toy"
    log = RunLog(console)
    with log.progress("drawing", "images") as bar:
        generate_toy(target, progress=bar.update, **parameters)  # type: ignore[arg-type]
    log.say(f"Data set toy is in {target}")
    return target


def download(name: str, data_root: Path, console: Console, **parameters: int | str) -> Path:
    """Gets the data set ``name``.

    Raises:
        UsageError: There is no such data set, or it is the user's own.
        MachineError: Its source is not wired yet.
    """
    if name not in DATASETS and name != "weights":
        raise unknown_name("data set", name, [*DATASETS, "weights"])
    if name == "toy":
        return download_toy(data_root, console, **parameters)
    if name == "folder":
        raise UsageError("Data set folder is your own; there is nothing to download.", "See data/README.md.")
    raise MachineError(
        f"`plop download {name}` cannot fetch from the network yet.",
        f"Put the files into {data_root / name} by hand; data/README.md shows the layout.",
    )
