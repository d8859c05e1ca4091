"""Metadata of an exported model: how to feed it, and what its outputs mean."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

import plopcli
from plopcli.data.samples import MAX_CLASSES
from plopcli.errors import DataError
from plopcli.exporting.network import InputKind
from plopcli.models.classifiers import PLAIN
from plopcli.resolution.stored import LARGEST_CROP

FORMAT = "plop-model"
#: Of the metadata, not of plop.
VERSION = 1


#: Pixels on a side that no picture has.
LARGEST_SIDE = 1 << 16
_Size = Annotated[int, Field(ge=1, le=LARGEST_SIDE)]
_Byte = Annotated[int, Field(ge=0, le=255)]
_Colour = Annotated[list[_Byte], Field(min_length=3, max_length=3)]


class Facts(BaseModel):
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

    model_config = ConfigDict(frozen=True, strict=True)

    classes: Annotated[list[str], Field(min_length=1, max_length=MAX_CLASSES)]
    palette: list[_Colour]
    background: bool
    dataset: str
    task: str
    step: Annotated[int, Field(ge=0, le=1 << 16)]
    method: str
    backbone: str
    input: InputKind
    shorter_side: Annotated[int, Field(ge=1, le=LARGEST_CROP)]
    output_stride: Literal[8, 16]
    pooling: _Size | None
    network: dict[str, Any]
    classifier: dict[str, Any]
    class_counts: list[Annotated[int, Field(ge=1, le=MAX_CLASSES)]]
    mean: Annotated[list[float], Field(min_length=3, max_length=3)]
    std: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=3, max_length=3)]
    version_of_plop: str = plopcli.__version__

    def metadata(self) -> dict[str, str]:
        """The entries of a file."""
        entries = {name: json.dumps(value, ensure_ascii=False) for name, value in self.model_dump().items()}
        return {"format": FORMAT, "format_version": str(VERSION), **entries}


def read_facts(metadata: Mapping[str, str], path: Path) -> Facts:
    """The facts in the metadata of a file, which is not trusted.

    Raises:
        DataError: They are incomplete or not valid.
    """
    hint = "plop opens files that `plop export` wrote, checkpoints and run folders."
    if metadata.get("format") != FORMAT:
        raise DataError(f"{path} is no model that `plop export` wrote.", hint)
    if metadata.get("format_version") != str(VERSION):
        raise DataError(f"{path} was written by a newer plop, {metadata.get('version_of_plop')}.", "Update plop.")
    values: dict[str, Any] = {}
    for name in Facts.model_fields.keys() & metadata.keys():
        try:
            values[name] = json.loads(metadata[name])
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} lacks a sound {name} in its metadata.", hint) from error
    if "class_counts" not in values and isinstance(classes := values.get("classes"), list):
        # Of an earlier version, in which all classifiers were plain.
        values |= {"classifier": PLAIN.stored(), "class_counts": [len(classes)]}
    try:
        facts = Facts.model_validate(values)
    except (ValidationError, RecursionError) as error:
        wrong = error.errors()[0]["loc"][0] if isinstance(error, ValidationError) else "value"
        raise DataError(f"{path} lacks a sound {wrong} in its metadata.", hint) from error
    if sum(facts.class_counts) != len(facts.classes):
        raise DataError(f"{path} has {len(facts.classes)} classes and classifiers for {sum(facts.class_counts)}.", hint)
    if len(facts.palette) != len(facts.classes):
        raise DataError(f"{path} has {len(facts.classes)} classes and {len(facts.palette)} colours.", hint)
    return facts
