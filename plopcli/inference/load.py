"""Opens a model from a file."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import torch

from plopcli.devices.precision import choose_precision
from plopcli.errors import DataError, MachineError, UsageError
from plopcli.evaluation.predict import forward_of
from plopcli.exporting.export import facts_of, model_path
from plopcli.exporting.formats import format_of, open_exported
from plopcli.inference.model import SegmentationModel
from plopcli.models.classifiers import PLAIN
from plopcli.runs.foreign import Description, load_described
from plopcli.runs.restore import build_model, place


def load(
    path: str | PathLike[str],
    *,
    step: int | None = None,
    device: str | torch.device | None = None,
    dataset: str | None = None,
    task: str | None = None,
) -> SegmentationModel:
    """Opens a trained model.

    Args:
        path: A run folder, a checkpoint of plop, one of the original implementation, or an ONNX or safetensors file
            that `plop export` wrote.
        step: The step of a run folder; by default the last one that is finished.
        device: Where to compute, such as ``"cpu"`` or ``"cuda:1"``; by default the GPU if there is one.
        dataset: The data set of a checkpoint of the original implementation, which does not say it.
        task: Its task.

    Raises:
        DataError: There is no model, or it is damaged.
        UsageError: Arguments are wrong or missing.
        MachineError: There is no such device, or a package is missing.
    """
    path = Path(path)
    described = Description(dataset=dataset, task=task) if dataset or task else None
    return load_model(path, step, device, described)


def load_model(
    path: Path, step: int | None, device: str | torch.device | None, described: Description | None
) -> SegmentationModel:
    """As `load`, with everything known of a checkpoint of the original implementation in ``described``."""
    name = None if path.is_dir() else format_of(path)
    if name is None:
        return _from_checkpoint(path, step, device, described)
    if name == "torchscript":
        raise UsageError(
            f"{path} is TorchScript: a program, which plop does not run.",
            "Give the checkpoint, or an export to onnx or safetensors; torch.jit.load opens such files.",
        )
    if step is not None or described:
        raise UsageError(f"{path} knows its step, data set and task.", "Leave them away.")
    where = chosen_device("cpu" if device is None and name == "onnx" else device)
    forward, facts = open_exported(path, name, where)
    return SegmentationModel(facts, forward, PLAIN, path, where)


def chosen_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, by default the GPU if there is one.

    Raises:
        UsageError: There is no such name.
        MachineError: There is no such device.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"'{device}' is no device.", "Known are cpu, cuda, cuda:1 and so on.") from error
    if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        raise MachineError(
            f"This machine has {torch.cuda.device_count()} usable CUDA GPUs, and {wanted} is asked for.", "Use cpu."
        )
    return wanted


def _from_checkpoint(
    path: Path, step: int | None, device: str | torch.device | None, described: Description | None
) -> SegmentationModel:
    where = chosen_device(device)
    if not path.exists():
        raise DataError(f"{path} does not exist.", "Give a run folder, a checkpoint, or a file that plop export wrote.")
    file = model_path(path, step, described)
    checkpoint, settings = load_described(file, described)
    # What a run on a GPU computed in is not what a CPU is good at.
    compute = settings.compute.model_copy(update={"precision": "auto"})
    model = place(build_model(checkpoint, settings), where, compute)
    forward = forward_of(model, where, choose_precision(compute, where))
    return SegmentationModel(facts_of(checkpoint, settings, model), forward, model.plan, file, where)
