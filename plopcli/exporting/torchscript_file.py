"""TorchScript files, for C++ programs with libtorch. Deprecated in torch, and still in wide use."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from plopcli.errors import DamagedFileError
from plopcli.exporting.facts import Facts, read_facts
from plopcli.exporting.network import InferenceNetwork, example

#: The extra file in the archive that holds the facts, as one JSON object of texts.
FACTS = "plop.json"


def write(network: InferenceNetwork, facts: Facts) -> bytes:
    """The content of a TorchScript file, traced with sizes left open."""
    content = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(network, example(network), check_trace=False)
        extra = {FACTS: json.dumps(facts.metadata(), ensure_ascii=False)}
        torch.jit.save(traced, content, _extra_files=extra)
    return content.getvalue()


def open_file(path: Path, device: torch.device) -> tuple[Callable[[Tensor], Tensor], Facts]:
    """What runs a TorchScript file, and its facts. The file is a program: open only what you trust.

    Raises:
        DataError: It is damaged, or not one of `write`.
    """
    extra: dict[str, bytes] = {FACTS: b""}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            module = torch.jit.load(path, map_location=device, _extra_files=extra)
        metadata = json.loads(extra[FACTS])
    except (RuntimeError, ValueError) as error:
        raise DamagedFileError(
            f"{path} is no TorchScript file of plop, or it is damaged.", "Export it again."
        ) from error
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise DamagedFileError(f"{path} has metadata that are no texts by name.", "Export it again.")
    return module, read_facts(metadata, path)
