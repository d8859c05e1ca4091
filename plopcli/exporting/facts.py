"""What an exported model says about itself, as text in its metadata: how to feed it, and what its answers mean."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import plopcli
from plopcli.data.samples import MAX_CLASSES
from plopcli.errors import DataError
from plopcli.exporting.network import InputKind
from plopcli.models.classifiers import PLAIN
from plopcli.resolution.stored import LARGEST_CROP

FORMAT = "plop-model"
#: Of the metadata, not of plop.
VERSION = 1


@dataclass(frozen=True)
class Facts:
    """The metadata of an exported model. Each field is one entry, as JSON.

    Args:
        classes: Names by channel of the logits.
        palette: Their colours, RGB in 0..255.
        background: Whether class 0 is the background.
        dataset: The data set that the model has learned from.
        task: The task.
        step: The step after which these are the weights.
        method: The method that trained it.
        backbone: The backbone.
        input: ``pixels``: (batch, height, width, 3), uint8, RGB in 0..255. ``normalised``: (batch, 3, height, width),
            float32, (RGB / 255 - mean) / std.
        mean: Per channel, for values in 0..1. Pixels are normalised inside the model.
        std: Likewise.
        shorter_side: A picture is resized (bilinear, antialiased) so that its shorter side has this many pixels
            (plop brings the longer side to 16 times as many where it is more than 16 times the shorter one).
        output_stride: Ratio of the input's side to that of the inner maps.
        pooling: Side of the window of the head's pooling, in inner pixels; None: global.
        network: The settings of the network (`ModelSettings`).
        classifier: What its scores mean (`ClassifierPlan`). ONNX and TorchScript files give class scores: the largest
            is the label, whatever stands here.
        class_counts: Classes of each step's classifier.
        version_of_plop: What wrote it.
    """

    classes: list[str]
    palette: list[list[int]]
    background: bool
    dataset: str
    task: str
    step: int
    method: str
    backbone: str
    input: InputKind
    shorter_side: int
    output_stride: int
    pooling: int | None
    network: dict[str, Any]
    classifier: dict[str, Any]
    class_counts: list[int]
    mean: list[float]
    std: list[float]
    version_of_plop: str = plopcli.__version__

    def metadata(self) -> dict[str, str]:
        """The entries of a file."""
        entries = {name: json.dumps(value, ensure_ascii=False) for name, value in asdict(self).items()}
        return {"format": FORMAT, "format_version": str(VERSION), **entries}


def read_facts(metadata: Mapping[str, str], path: Path) -> Facts:
    """The facts in the metadata of a file, which is a stranger's.

    Raises:
        DataError: They are not all there, or not sound.
    """
    hint = "plop opens files that `plop export` wrote, checkpoints and run folders."
    if metadata.get("format") != FORMAT:
        raise DataError(f"{path} is no model that `plop export` wrote.", hint)
    if metadata.get("format_version") != str(VERSION):
        raise DataError(f"{path} was written by a newer plop, {metadata.get('version_of_plop')}.", "Update plop.")
    values: dict[str, Any] = {}
    for field in fields(Facts):
        try:
            if field.name in metadata:
                values[field.name] = json.loads(metadata[field.name])
            else:  # of an earlier version, in which all classifiers were plain
                values[field.name] = {"classifier": PLAIN.stored(), "class_counts": [len(values["classes"])]}[
                    field.name
                ]
            sound = _SOUND[field.name](values[field.name])
        except (KeyError, ValueError, RecursionError):
            sound = False
        if not sound:
            raise DataError(f"{path} lacks a sound {field.name} in its metadata.", hint)
    facts = Facts(**values)
    if sum(facts.class_counts) != len(facts.classes):
        raise DataError(f"{path} has {len(facts.classes)} classes and classifiers for {sum(facts.class_counts)}.", hint)
    if len(facts.palette) != len(facts.classes):
        raise DataError(f"{path} has {len(facts.classes)} classes and {len(facts.palette)} colours.", hint)
    return facts


def _whole(value: object, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _text(value: object) -> bool:
    return isinstance(value, str)


def _numbers(value: object) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(type(item) in (int, float) for item in value)


def _colours(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(colour, list) and len(colour) == 3 and all(_whole(part, 0, 255) for part in colour)
        for colour in value
    )


#: Pixels on a side that no picture has.
LARGEST_SIDE = 1 << 16
_SOUND: dict[str, Callable[[Any], bool]] = {
    "classes": lambda value: isinstance(value, list) and 1 <= len(value) <= MAX_CLASSES and all(map(_text, value)),
    "palette": _colours,
    "background": lambda value: isinstance(value, bool),
    "dataset": _text,
    "task": _text,
    "step": lambda value: _whole(value, 0, LARGEST_SIDE),
    "method": _text,
    "backbone": _text,
    "input": lambda value: value in ("pixels", "normalised"),
    "shorter_side": lambda value: _whole(value, 1, LARGEST_CROP),
    "output_stride": lambda value: value in (8, 16),
    "pooling": lambda value: value is None or _whole(value, 1, LARGEST_SIDE),
    "network": lambda value: isinstance(value, dict),
    "classifier": lambda value: isinstance(value, dict),
    "class_counts": lambda value: isinstance(value, list) and all(_whole(count, 1, MAX_CLASSES) for count in value),
    "mean": _numbers,
    "std": lambda value: _numbers(value) and all(item > 0 for item in value),
    "version_of_plop": _text,
}
