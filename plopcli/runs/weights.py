"""The weights of a network alone, in a file that other programs read as well (safetensors).

A checkpoint is for going on with plop. This file is for using the model elsewhere: tensors by name, and beside them as
text what is needed to feed the network and to understand what it says: names of the classes by output channel, classes
per classifier, settings of the network, mean and standard deviation of the input. It can hold nothing that is run. Its
SHA-256 lies beside it.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor

from plopcli.data.transforms import MEAN, STD
from plopcli.files.atomic import write_atomic
from plopcli.files.digest import digest_renewed
from plopcli.files.disk import writing
from plopcli.runs.checkpoint import Checkpoint

FORMAT = "plop-weights"


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
    content = to_safetensors(tensors, metadata)
    with writing(path, len(content)), digest_renewed(path):
        write_atomic(path, content)


def _plain(tensor: Tensor) -> Tensor:
    """``tensor`` in the one order of memory that the format has."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
