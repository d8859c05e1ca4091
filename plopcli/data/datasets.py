"""Data sets: where their images, masks and class names are. One is a file in `sets/` and a line here.

Others come from installed packages (`plopcli.plugins`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plopcli.data.samples import IMAGE_SUFFIXES, Sample, SegmentationData, class_facts
from plopcli.data.sets.ade import load_ade
from plopcli.data.sets.cityscapes import load_cityscapes, load_cityscapes_domain
from plopcli.data.sets.folder import load_folder
from plopcli.data.sets.voc import load_toy, load_voc
from plopcli.data.toy import TOY_CLASSES
from plopcli.errors import DataError, UsageError, unknown_name
from plopcli.plugins import Registry

__all__ = ["DATASETS", "IMAGE_SUFFIXES", "DatasetSpec", "Sample", "SegmentationData", "class_facts", "load_dataset"]


@dataclass(frozen=True)
class DatasetSpec:
    """A line of the registry.

    Args:
        summary: What the data set is.
        load: Finds it in its folder.
        get: How a user gets it.
        classes: Number of its classes, background included; None: the user's own.
        folder: Its folder in the data root, where that is not its name.
        domains: Whether a step brings domains in place of classes.
        palette: The colours that its classes are known in (`plopcli.data.colours`); None: such as are far apart.
    """

    summary: str
    load: Callable[[Path], SegmentationData]
    get: str
    classes: int | None = None
    folder: str | None = None
    domains: bool = False
    palette: str | None = None


_BUILT_IN = {
    "toy": DatasetSpec("generated shapes, 20 classes; runs on a laptop", load_toy, "plop download toy", 21),
    "voc": DatasetSpec(
        "PASCAL VOC 2012 with augmented labels, 20 classes", load_voc, "plop download voc", 21, palette="voc"
    ),
    "ade": DatasetSpec("ADE20K scene parsing, 150 classes", load_ade, "plop download ade", 151, palette="ade"),
    "cityscapes": DatasetSpec(
        "Cityscapes, 19 classes one after the other",
        load_cityscapes,
        "plop download cityscapes",
        20,
        palette="cityscapes",
    ),
    "cityscapes-domain": DatasetSpec(
        "Cityscapes, 21 cities one after the other",
        load_cityscapes_domain,
        "plop download cityscapes",
        19,
        folder="cityscapes",
        domains=True,
        palette="cityscapes",
    ),
    "folder": DatasetSpec("your own images/ and masks/ with a classes.txt", load_folder, "see docs/own-data.md"),
}


def _checked(name: str, found: Any) -> DatasetSpec:
    if not isinstance(found, DatasetSpec):
        raise TypeError(f"{found!r} is no DatasetSpec")
    return found


#: Every data set by its name.
DATASETS: Registry[DatasetSpec] = Registry("data set", "plopcli.datasets", _BUILT_IN, _checked)


def known_names(name: str) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """Classes by label id, and domains by id, of a data set that need not be there; None: only its files tell."""
    facts = class_facts()
    cities = tuple(facts["cityscapes_cities"]["order"])
    in_cities = tuple(entry["name"] for entry in facts["cityscapes"])
    return {
        "toy": (TOY_CLASSES, ()),
        "voc": (tuple(facts["voc"]), ()),
        "ade": (tuple(facts["ade"]), ()),
        "cityscapes": (("background", *in_cities), ()),
        "cityscapes-domain": (in_cities, cities),
    }.get(name)


def dataset_folder(name: str, data_root: Path, path: Path | None = None) -> Path:
    """Where the data set ``name`` is looked for, as in `load_dataset`.

    Raises:
        UsageError: No such data set.
    """
    if name not in DATASETS:
        raise unknown_name("data set", name, DATASETS)
    return data_root / (DATASETS[name].folder or name) if path is None else path


def load_dataset(
    name: str, data_root: Path, path: Path | None = None, *, background: bool = True, dealt_by: str = "name"
) -> SegmentationData:
    """Finds the data set ``name`` under ``path``, or else in its folder of ``data_root``.

    Args:
        name: Its name in `DATASETS`.
        data_root: The folder with a folder for every data set.
        path: The data set's own folder.
        background: Whether the classes of data set folder begin with the background; the others know theirs.
        dealt_by: What chooses the test images of data set folder where no list does.

    Raises:
        UsageError: No such data set, or it has a background of its own.
        DataError: It is not there, or its lists are broken.
    """
    root = dataset_folder(name, data_root, path)
    spec = DATASETS[name]
    if not root.is_dir():
        where = "data.path" if path is not None else "--data-root"
        raise DataError(f"Data set {name} is not at {root}.", f"Get it with: {spec.get}   (or set {where})")
    if spec.load is load_folder:
        return load_folder(root, background, dealt_by)
    if background:
        data = spec.load(root)
        if bool(data.domains) != spec.domains:
            raise UsageError(
                f"Data set {name} is declared {'with' if spec.domains else 'without'} domains; its samples differ.",
                f"Mend its DatasetSpec, of {DATASETS.origin(name)}: domains = {bool(data.domains)}.",
            )
        return data
    raise UsageError(
        f"Data set {name} knows its background.", "data.background = false (--no-background) is for data set folder."
    )
