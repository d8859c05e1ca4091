"""`plop predict`: masks and class areas of many pictures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plopcli.console.log import RunLog
from plopcli.data.pictures import AREAS, OVERLAY, output_names
from plopcli.errors import DataError, UsageError
from plopcli.files.atomic import write_atomic
from plopcli.files.disk import writing
from plopcli.files.strict_json import to_json
from plopcli.inference.model import Prediction, SegmentationModel


@dataclass
class Outcome:
    """Result of predicting pictures: an entry of `areas.json` for each one done, and the errors of the others."""

    entries: list[dict[str, Any]] = field(default_factory=list)
    failures: dict[Path, DataError] = field(default_factory=dict)


def predict_pictures(
    model: SegmentationModel, pictures: Sequence[Path], output: Path, log: RunLog, *, overlays: bool = False
) -> Outcome:
    """Writes a mask for each picture, and `areas.json` for all that could be read, to the folder ``output``.

    With ``overlays``, also the pictures with their classes laid over them. ``log`` names pictures that cannot be used.

    Raises:
        UsageError: An output file would replace a picture.
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
        text = to_json(document(model, outcome), indent=2, ensure_ascii=False) + "\n"
        # Names of files may hold what UTF-8 has no form for; JSON has one.
        write_atomic(output / AREAS, text.encode("utf-8", "backslashreplace"))
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
        write_atomic(target, lambda file: prediction.mask().save(file, "PNG"), durable=False)
    height, width = prediction.labels.shape
    entry = {"picture": str(picture), "mask": str(target), "width": width, "height": height}
    if overlays:
        path = _overlay_path(target)
        with writing(path):
            write_atomic(path, lambda file: prediction.overlay().save(file, "PNG"), durable=False)
        entry["overlay"] = str(path)
    return {**entry, "areas": prediction.areas}


def _overlay_path(mask: Path) -> Path:
    return mask.with_name(mask.name.removesuffix(".png") + OVERLAY)


def _spare_pictures(pictures: Sequence[Path], targets: Sequence[Path]) -> None:
    theirs = {picture.resolve() for picture in pictures}
    for target in targets:
        if target.resolve() in theirs:
            raise UsageError(
                f"{target} is one of the pictures, and its mask would take its place.",
                "Give another folder with --output.",
            )
