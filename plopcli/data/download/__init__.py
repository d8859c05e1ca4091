"""`plop download`: a data set, or weights, into the data root. A data set is a file here and a line in `_FILLED`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from plopcli.console.log import RunLog
from plopcli.data.datasets import DATASETS
from plopcli.data.download import ade, cityscapes, voc
from plopcli.data.download.delivery import Delivery, DownloadChoices
from plopcli.data.download.sources import Archive
from plopcli.data.download.weights import download_weights
from plopcli.data.toy import generate_toy
from plopcli.errors import MachineError, UsageError, unknown_name
from plopcli.files.disk import writing
from plopcli.files.lock import HeldError, holding

__all__ = ["DOWNLOADS", "DownloadChoices", "download", "download_toy"]


class _Filled(NamedTuple):
    """A data set that is made of archives."""

    archives: Sequence[Archive]
    fill: Callable[[Delivery], None]


_FILLED: dict[str, _Filled] = {
    "voc": _Filled(voc.ARCHIVES, voc.download_voc),
    "ade": _Filled(ade.ARCHIVES, ade.download_ade),
    "cityscapes": _Filled(cityscapes.ARCHIVES, cityscapes.download_cityscapes),
}
#: All that `plop download` knows.
DOWNLOADS = ("toy", *_FILLED, "weights")
_LOCK = ".plop-download.lock"


def download_toy(data_root: Path, console: Console, **parameters: int | str) -> Path:
    """Draws the generated data set into ``data_root``/toy; ``parameters`` are those of `generate_toy`."""
    target = data_root / "toy"
    log = RunLog(console)
    with log.progress("drawing", "images") as bar:
        generate_toy(target, progress=bar.update, **parameters)
    log.say(f"Data set toy is in {target}")
    return target


def download(
    name: str,
    data_root: Path,
    console: Console,
    *,
    choices: DownloadChoices | None = None,
    backbone: str | None = None,
    source: str | None = None,
    drawn: Mapping[str, int | str] | None = None,
) -> Path:
    """Gets what is called ``name``; what is there already is checked, not fetched again.

    Args:
        name: One of `DOWNLOADS`.
        data_root: Folder of all data.
        console: Where progress is shown.
        choices: What the user says about archives.
        backbone: Backbone of the weights.
        source: Source of the weights.
        drawn: Parameters of the generated data set.

    Returns:
        The folder of the data set, or the file with the weights.

    Raises:
        UsageError: There is no such download.
        DataError: It cannot be had, or is broken.
        MachineError: There is no room, no access, or another download of it is running.
    """
    if name not in DOWNLOADS:
        if name in DATASETS:
            raise UsageError(
                f"There is nothing to download for data set {name} itself.", f"Its way: {DATASETS[name].get}"
            )
        raise unknown_name("download", name, DOWNLOADS)
    if name == "toy":
        return download_toy(data_root, console, **(drawn or {}))
    choices, log = choices or DownloadChoices(), RunLog(console)
    with one_writer(data_root / name):
        if name == "weights":
            return download_weights(data_root, backbone, source, choices, log)
        kind = _FILLED[name]
        kind.fill(Delivery(name, data_root / name, kind.archives, choices, log))
    log.say(f"Data set {name} is in {data_root / name}; next: plop prepare {name}")
    return data_root / name


@contextmanager
def one_writer(folder: Path) -> Iterator[None]:
    """Makes ``folder`` and holds it for this process. A folder that is left empty is removed again.

    Raises:
        MachineError: Another process holds it, or it cannot be written.
    """
    with ExitStack() as stack:
        try:
            with writing(folder):
                stack.enter_context(holding(folder / _LOCK))
        except HeldError as error:
            raise MachineError(
                f"Another plop download is filling {folder}: {error.holder.describe()}.",
                f"Wait until it has ended, or stop it; then start again. If it has ended on another machine, remove "
                f"{folder / _LOCK}.",
            ) from None
        yield
