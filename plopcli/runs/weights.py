"""The weights of a network alone, in a file that other programs read as well (safetensors).

A checkpoint is for going on with plop. This file is for using the model elsewhere: tensors by name, and beside them as
text what is needed to feed the network and to understand what it says. It can hold nothing that is run.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from plopcli.data.transforms import MEAN, STD
from plopcli.errors import DamagedFileError, DataError
from plopcli.runs.checkpoint import Checkpoint
from plopcli.runs.verified import content_digest, write_whole

FORMAT = "plop-weights"


@dataclass(frozen=True)
class Weights:
    """What a weights file holds.

    Args:
        tensors: State dict of the network.
        classes: Names of the classes by output channel.
        class_counts: Classes per classifier.
        task: Name of the task.
        step: The step after which these are the weights.
        model: The settings of the network (`ModelSettings.model_dump(mode="json")`).
        mean: What is subtracted from the red, green and blue of pixels in 0 to 1, ...
        std: ... and what they are divided by.
        version_of_plop: What wrote it.
    """

    tensors: dict[str, Tensor]
    classes: list[str]
    class_counts: list[int]
    task: str
    step: int
    model: dict[str, Any]
    mean: list[float]
    std: list[float]
    version_of_plop: str


def write_weights(path: Path, checkpoint: Checkpoint) -> None:
    """Writes the weights of ``checkpoint``; ``path`` holds the old or the new content whole, never half of it.

    Raises:
        MachineError: The disk is full, or the folder cannot be written.
    """
    tensors = {name: _plain(tensor) for name, tensor in checkpoint.model.items()}
    facts = {
        "classes": checkpoint.classes,
        "class_counts": checkpoint.class_counts,
        "step": checkpoint.step,
        "model": checkpoint.settings.get("model", {}),
        "mean": list(MEAN),
        "std": list(STD),
    }
    metadata = {name: json.dumps(value, ensure_ascii=False) for name, value in facts.items()}
    metadata |= {"format": FORMAT, "task": checkpoint.task_name, "version_of_plop": checkpoint.version_of_plop}
    metadata["digest"] = _digest(tensors, metadata)
    content = to_safetensors(tensors, metadata)
    write_whole(path, lambda file: file.write(content), len(content))


def read_weights(path: Path) -> Weights:
    """The weights in a file of `write_weights`, on the CPU.

    Raises:
        DamagedFileError: It is not as it was written.
        DataError: It is missing or another file.
    """
    if not path.is_file():
        raise DataError(f"There is no file {path}.", "A finished run leaves its weights in RUN/checkpoints.")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata: dict[str, str] = dict(file.metadata() or {})
            tensors = {name: _plain(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118, it is no dict
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise DamagedFileError(f"{path} is no safetensors file, or it is damaged: {error}.", _REMEDY) from error
    if metadata.get("format") != FORMAT:
        raise DataError(f"{path} holds no weights that plop wrote.", "A finished run leaves them in RUN/checkpoints.")
    if metadata.pop("digest", None) != _digest(tensors, metadata):
        raise DamagedFileError(f"{path} is damaged: its content does not fit the digest that it holds.", _REMEDY)
    try:
        facts = {name: json.loads(metadata[name]) for name in _FACTS}
        return Weights(tensors=tensors, task=metadata["task"], version_of_plop=metadata["version_of_plop"], **facts)
    except (KeyError, ValueError, RecursionError) as error:
        raise DamagedFileError(f"{path} lacks a sound {error}.", _REMEDY) from error


_FACTS = ("classes", "class_counts", "step", "model", "mean", "std")
_REMEDY = "Remove it: the last checkpoint holds the same weights, and --resume writes the file anew."


def _plain(tensor: Tensor) -> Tensor:
    """``tensor`` in the one order of memory that the format has."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _digest(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    return content_digest([dict(sorted(tensors.items())), dict(sorted(metadata.items()))])
