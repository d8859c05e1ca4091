"""`plop predict`: label pictures and class areas of many pictures, for people who only use a model."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plopcli.data.disk import writing
from plopcli.data.samples import IMAGE_SUFFIXES
from plopcli.errors import DataError, UsageError
from plopcli.runs.folder import RunLog, naming, write_whole_text
from plopcli.using.model import Prediction, SegmentationModel

#: The summary beside the masks.
AREAS = "areas.json"
_OVERLAY = ".overlay.png"


@dataclass
class Outcome:
    """What has become of the pictures.

    Args:
        entries: One for each picture done, as in `areas.json`.
        failures: What is wrong with the others, by picture.
    """

    entries: list[dict[str, Any]] = field(default_factory=list)
    failures: dict[Path, DataError] = field(default_factory=dict)


def picture_paths(inputs: Sequence[str]) -> list[Path]:
    """The pictures that files, folders (all that is below them) and globs name, in order, each once.

    Raises:
        DataError: One of them names nothing.
    """
    found: dict[Path, None] = {}
    for entry in inputs:
        path = Path(entry)
        if path.is_dir():
            files = sorted(p for p in path.rglob("*") if _is_picture(p.relative_to(path)) and p.is_file())
        elif path.exists():
            files = [path]
        else:
            files = sorted(p for p in map(Path, glob.glob(entry, recursive=True)) if p.is_file())  # noqa: PTH207
        if not files:
            what = "is a folder without pictures" if path.is_dir() else "names no picture"
            raise DataError(f"{entry} {what}.", f"Pictures in folders end in {', '.join(IMAGE_SUFFIXES)}.")
        found |= dict.fromkeys(files)
    return list(found)


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not any(part.startswith(".") for part in path.parts)


def output_names(pictures: Sequence[Path]) -> dict[Path, Path]:
    """A name without suffix for what belongs to each picture, relative to the output folder; no two are the same.

    Names are those of the pictures, below the folder that all of them share. Where pictures differ in their suffix
    alone, it becomes part of the name: the masks of ``a.jpg`` and ``a.bmp`` are ``a.jpg.png`` and ``a.bmp.png``.
    """
    # Not resolved: a link to a picture has a name of its own.
    absolute = {picture: Path(os.path.normpath(picture.absolute())) for picture in pictures}
    common = Path(os.path.commonpath([path.parent for path in absolute.values()]))
    relative = {picture: path.relative_to(common) for picture, path in absolute.items()}
    # A file system may not tell upper from lower case.
    stems: dict[str, int] = {}
    for path in relative.values():
        stem = str(path.with_suffix("")).lower()
        stems[stem] = stems.get(stem, 0) + 1
    names: dict[Path, Path] = {}
    taken: set[str] = set()
    for picture, path in relative.items():
        name = path.with_suffix("") if stems[str(path.with_suffix("")).lower()] == 1 else path
        number = 2
        while _taken_by(name) & taken:
            name, number = path.with_name(f"{path.name}-{number}"), number + 1
        taken |= _taken_by(name)
        names[picture] = name
    return names


def _taken_by(name: Path) -> set[str]:
    """The names that the files of one picture take: the mask and, if asked for, the overlay."""
    return {f"{name}.png".lower(), f"{name}{_OVERLAY}".lower()}


def predict_pictures(
    model: SegmentationModel, pictures: Sequence[Path], output: Path, log: RunLog, *, overlays: bool = False
) -> Outcome:
    """Writes a mask for each picture, and `areas.json` for all that could be read.

    Args:
        model: The model.
        pictures: The pictures.
        output: The folder to write to.
        log: Shows how far it is, and names pictures that cannot be used.
        overlays: Whether to draw the classes over the pictures as well.

    Raises:
        UsageError: What is written would take the place of a picture.
        MachineError: The folder cannot be written.
    """
    names = output_names(pictures)
    targets = {picture: output / f"{name}.png" for picture, name in names.items()}
    _spare_pictures(pictures, [*targets.values(), *(_overlay_path(path) for path in targets.values())])
    outcome = Outcome()
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
    try:
        with log.progress(f"{model.info['dataset']} {model.info['task']}", "pictures") as bar:
            for done, (picture, prediction) in enumerate(_each(model, pictures, outcome, log), start=1):
                if prediction is not None:
                    entry = _write(picture, prediction, targets[picture], overlays=overlays)
                    outcome.entries.append(entry)
                bar.update(done, len(pictures))
    finally:
        # What is done is worth having, however it ends.
        with naming(output / AREAS):
            write_whole_text(output / AREAS, json.dumps(document(model, outcome), indent=2, ensure_ascii=False) + "\n")
    return outcome


def document(model: SegmentationModel, outcome: Outcome) -> dict[str, Any]:
    """What `areas.json` holds: the model, its classes, and by picture the share of each class."""
    classes = [
        {"label": label, "name": name, "colour": colour}
        for label, (name, colour) in enumerate(zip(model.classes, model.palette.tolist(), strict=True))
    ]
    return {
        "model": {"file": str(model.source), **model.info},
        "classes": classes,
        "pictures": outcome.entries,
        "failed": [{"picture": str(path), "error": error.message} for path, error in outcome.failures.items()],
    }


def _each(
    model: SegmentationModel, pictures: Iterable[Path], outcome: Outcome, log: RunLog
) -> Iterator[tuple[Path, Prediction | None]]:
    for picture in pictures:
        try:
            yield picture, model.predict(picture)
        except DataError as error:
            outcome.failures[picture] = error
            log.say(f"skipped: {error.message}", style="yellow")
            yield picture, None


def _write(picture: Path, prediction: Prediction, target: Path, *, overlays: bool) -> dict[str, Any]:
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        prediction.mask().save(target)
    height, width = prediction.labels.shape
    entry = {"picture": str(picture), "mask": str(target), "width": width, "height": height}
    if overlays:
        path = _overlay_path(target)
        with writing(path):
            prediction.overlay().save(path)
        entry["overlay"] = str(path)
    return {**entry, "areas": prediction.areas}


def _overlay_path(mask: Path) -> Path:
    return mask.with_name(mask.name.removesuffix(".png") + _OVERLAY)


def _spare_pictures(pictures: Sequence[Path], targets: Sequence[Path]) -> None:
    theirs = {picture.resolve() for picture in pictures}
    for target in targets:
        if target.resolve() in theirs:
            raise UsageError(
                f"{target} is one of the pictures, and its mask would take its place.",
                "Give another folder with --output.",
            )
