"""safetensors files: the folded weights by name, for programs that build the network themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from plopcli.errors import DamagedFileError, DataError, PlopError
from plopcli.exporting.facts import Facts, read_facts
from plopcli.exporting.network import InferenceNetwork
from plopcli.models.classifiers import PLAIN, ClassifierPlan
from plopcli.models.segmenter import build_for
from plopcli.runs.weights import FORMAT as TRAINED_WEIGHTS
from plopcli.settings.sections import ModelSettings


def write(network: InferenceNetwork, facts: Facts) -> bytes:
    """The content of a safetensors file: `InferenceNetwork.state_dict`, and the facts as its metadata."""
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    content: bytes = save(tensors, facts.metadata())
    return content


def open_file(path: Path, device: torch.device) -> tuple[Callable[[Tensor], Tensor], Facts]:
    """The network of a safetensors file, and its facts.

    Raises:
        DataError: It is damaged, or not one of `write`.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata: dict[str, str] = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise DamagedFileError(
            f"{path} is no safetensors file, or it is damaged: {error}.", "Export it again."
        ) from error
    if metadata.get("format") == TRAINED_WEIGHTS:
        raise DataError(
            f"{path} holds weights alone, without the rest that is needed to use them.",
            f"Give the checkpoint beside it, {path.with_suffix('.pt').name}, or export that.",
        )
    facts = read_facts(metadata, path)
    try:
        settings = ModelSettings.model_validate(facts.network)
        with torch.random.fork_rng(devices=()):
            plan = ClassifierPlan.restored(facts.classifier)
            # Plain classifiers are stored as one.
            counts = [len(facts.classes)] if plan.kind == PLAIN.kind else facts.class_counts
            model = build_for(tensors, settings, counts, plan)
        network = InferenceNetwork(model.eval(), facts.pooling, facts.input)
        network.load_state_dict(tensors)
    except (ValidationError, RuntimeError, PlopError) as error:
        raise DamagedFileError(f"{path} holds other tensors than its metadata say.", "Export it again.") from error
    return network.to(device), facts
