"""Checkpoints of the original implementation, as files.

Such a file is a dict: ``model_state`` (names under ``module.``: ``module.body...``, ``module.head...``,
``module.cls.0...``), ``optimizer_state``, ``scheduler_state``, ``epoch``, ``best_score`` and ``trainer_state``, which
under ``regularizer`` holds what EWC, PI or RW carry from step to step, or None. It holds neither data set nor task;
what the tensors alone tell of the network is read off their names and shapes. Everything in it is a stranger's.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plopcli.data.samples import MAX_CLASSES
from plopcli.errors import DataError
from plopcli.models.resnet import LAYOUTS
from plopcli.models.weights import unwrapped

#: How messages, and checkpoints that come from there, call it.
SOURCE = "the original implementation"
PREFIX = "module."
_CONTAINERS = ("model_state", "state_dict", "model_state_dict", "model")
_BLOCK = re.compile(r"body\.mod([2-5])\.block(\d+)\.convs\.conv(\d)\.weight")
_CLASSIFIER = re.compile(r"cls\.(\d{1,4})\.weight", re.ASCII)
_COUNTER = "num_batches_tracked"
_REGULARISERS = ("ewc", "pi", "rw")
_MOST_CLASSIFIERS = 300
#: Channels that the stem and the head of a sane network may have.
_CHANNELS = range(8, 4097)


class OriginalCheckpointError(DataError):
    """A checkpoint of the original implementation where one of plop was expected.

    Args:
        message: What happened, and where.
        hint: What the user can do next.
        content: What the file holds.
    """

    def __init__(self, message: str, hint: str | None = None, content: Mapping[str, Any] | None = None) -> None:
        super().__init__(message, hint)
        self.content: Mapping[str, Any] = content or {}


@dataclass(frozen=True)
class OriginalCheckpoint:
    """What a file of the original holds.

    Args:
        tensors: The network's tensors, by names without ``module.``.
        class_counts: Classes of each classifier.
        network: The settings of the network (`model.KEY`) that follow from the tensors.
        regulariser: ``name`` and tables of EWC, PI or RW, empty where there are none.
        epoch: The epoch after which it was written, if it says.
        best_score: The best validation mIoU so far, if it says.
    """

    tensors: Mapping[str, Tensor]
    class_counts: tuple[int, ...]
    network: Mapping[str, Any]
    regulariser: Mapping[str, Any]
    epoch: int | None
    best_score: float | None


def looks_original(content: object) -> bool:
    """Whether ``content`` is a checkpoint of the original, or the ``model_state`` of one."""
    if not isinstance(content, Mapping) or "format" in content:
        return False
    state = _state(content)
    names = {unwrapped(name) for name in state if isinstance(name, str)} if isinstance(state, Mapping) else ()
    return "model_state" in content or "cls.0.weight" in names


def found_original(path: Path, content: Mapping[str, Any]) -> OriginalCheckpointError:
    """The error for such a file where nothing tells what it has learned."""
    return OriginalCheckpointError(
        f"{path} is a checkpoint of {SOURCE}, which holds neither data set nor task.",
        "Say what it has learned, such as --dataset voc --task 15-1, in `plop evaluate` and `plop visualize`; "
        "or turn it into one of plop: plop convert FILE OUT --to plop --dataset voc --task 15-1 --method plop",
        content,
    )


def read_original(content: Mapping[str, Any], path: Path) -> OriginalCheckpoint:
    """Takes a file's content apart.

    Args:
        content: What `looks_original` accepts, from `read_untrusted`.
        path: The file, for messages.

    Raises:
        DataError: It is no such checkpoint after all, or is of a network that plop does not have.
    """
    tensors = _tensors(_state(content), path)
    epoch, score = content.get("epoch"), content.get("best_score")
    return OriginalCheckpoint(
        tensors,
        _class_counts(tensors, path),
        _network(tensors, path),
        _regulariser(content.get("trainer_state")),
        epoch if isinstance(epoch, int) and not isinstance(epoch, bool) else None,
        float(score) if isinstance(score, float) and math.isfinite(score) else None,
    )


def fitted(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tensors in the order of the network's own, whose counters of batches may be missing in old files.

    Args:
        tensors: Those of the file.
        own: Those of the network, on whatever device.
        path: The file, for messages.

    Raises:
        DataError: They are not exactly those of the network.
    """
    missing = [name for name in own if name not in tensors and not name.endswith(_COUNTER)]
    unknown = [name for name in tensors if name not in own]
    wrong = [
        f"{name} {tuple(tensors[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    faults = [
        f"{len(names)} {what}: {_some(names)}"
        for what, names in (("missing", missing), ("of another shape", wrong), ("unknown", unknown))
        if names
    ]
    if faults:
        raise DataError(
            f"{path} does not hold the tensors of a whole network: {'; '.join(faults)}.",
            f"A checkpoint of {SOURCE} holds body, head and one classifier per step.",
        )
    return {name: tensors[name] if name in tensors else torch.zeros((), dtype=torch.int64) for name in own}


def carried_tables(
    regulariser: Mapping[str, Any], method: str, wanted: Sequence[str], shapes: Mapping[str, torch.Size]
) -> dict[str, dict[str, Tensor]] | None:
    """What ``method`` carries on, out of the regulariser's state; None where that is not whole or another's.

    Args:
        regulariser: As in `OriginalCheckpoint`.
        method: ewc, pi or rw.
        wanted: Names of its tables.
        shapes: Shapes of the network's parameters.
    """
    if regulariser.get("name") != method:
        return None
    tables: dict[str, dict[str, Tensor]] = {}
    for table in wanted:
        found = regulariser.get(table)
        if not isinstance(found, Mapping) or not found:
            return None
        tables[table] = {}
        for name, tensor in found.items():
            plain = isinstance(name, str) and isinstance(tensor, Tensor) and tensor.is_floating_point()
            if not plain or shapes.get(name.removeprefix(PREFIX)) != tensor.shape:
                return None
            tables[table][name.removeprefix(PREFIX)] = tensor.detach()
    return tables


def original_content(
    model: Mapping[str, Tensor], regulariser: Mapping[str, Any] | None, epoch: int, best_score: float
) -> dict[str, Any]:
    """The content of a file in the original's layout.

    Neither optimizer nor schedule is known, so that it serves for testing and as the previous step, not for going on
    in the middle of its own.
    """
    return {
        "epoch": epoch,
        "model_state": {PREFIX + name: tensor for name, tensor in model.items()},
        "optimizer_state": {},
        "scheduler_state": {},
        "best_score": best_score,
        "trainer_state": {"regularizer": None if regulariser is None else dict(regulariser)},
    }


def _state(content: Mapping[str, Any]) -> object:
    """What holds the tensors: a container of the original's or of other training programs, or the content itself."""
    return next((content[name] for name in _CONTAINERS if name in content), content)


def _tensors(state: object, path: Path) -> dict[str, Tensor]:
    if not isinstance(state, Mapping):
        raise DataError(f"{path}: its model_state is a {type(state).__name__}, not names and tensors.")
    strange = [str(name) for name, value in state.items() if not (isinstance(name, str) and _plain(value))]
    if strange:
        raise DataError(f"{path}: its model_state holds {_some(strange)}, which are no plain tensors.")
    tensors = {unwrapped(name): tensor.detach() for name, tensor in state.items()}
    if len(tensors) < len(state):
        names = Counter(unwrapped(name) for name in state)
        twice = [name for name, number in names.items() if number > 1]
        raise DataError(f"{path}: its model_state holds {_some(twice)} with and without {PREFIX}: which is meant?")
    return tensors


def _plain(value: object) -> bool:
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and not value.is_quantized
        and value.device.type == "cpu"
        # A small file can claim a huge tensor by strides of 0.
        and value.untyped_storage().nbytes() >= value.numel() * value.element_size()
        and (value.is_floating_point() or value.dtype == torch.int64)
    )


def _class_counts(tensors: Mapping[str, Tensor], path: Path) -> tuple[int, ...]:
    sizes = {int(match[1]): t for name, t in tensors.items() if (match := _CLASSIFIER.fullmatch(name)) and t.ndim == 4}
    if not sizes or sorted(sizes) != list(range(len(sizes))) or len(sizes) > _MOST_CLASSIFIERS:
        found = ", ".join(f"cls.{number}" for number in sorted(sizes)[:_MOST_CLASSIFIERS]) or "none"
        raise DataError(f"{path} does not hold classifiers cls.0, cls.1 and so on, but {found}.")
    counts = tuple(sizes[number].shape[0] for number in range(len(sizes)))
    if min(counts) < 1 or sum(counts) > MAX_CLASSES:
        raise DataError(
            f"{path} holds classifiers of {' + '.join(map(str, counts))} classes; 1 to {MAX_CLASSES} are possible."
        )
    return counts


def _network(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    found = [match for name in tensors if (match := _BLOCK.fullmatch(name))]
    blocks = tuple(len({match[2] for match in found if match[1] == str(stage)}) for stage in range(2, 6))
    kind = "bottleneck" if any(match[3] == "3" for match in found) else "basic"
    depth = next((depth for depth, layout in LAYOUTS.items() if layout == (kind, blocks)), None)
    stem, merged = tensors.get("body.mod1.conv1.weight"), tensors.get("head.red_conv.weight")
    widths = [tensor.shape[0] for tensor in (stem, merged) if tensor is not None and tensor.ndim == 4]
    if depth is None or stem is None or merged is None or len([w for w in widths if w in _CHANNELS]) < 2:
        known = ", ".join(f"ResNet-{depth}" for depth in LAYOUTS)
        raise DataError(
            f"{path} holds the tensors of another network: {' + '.join(map(str, blocks))} {kind} blocks, "
            f"{'no stem' if stem is None else f'stem {tuple(stem.shape)}'}, "
            f"{'no head' if merged is None else f'head {tuple(merged.shape)}'}.",
            f"Known are {known} with the DeepLab head.",
        )
    return {"backbone": f"resnet{depth}", "width": stem.shape[0], "head_channels": merged.shape[0]}


def _regulariser(trainer: object) -> Mapping[str, Any]:
    state = trainer.get("regularizer") if isinstance(trainer, Mapping) else None
    if not isinstance(state, Mapping):
        return {}
    name = state.get("name")
    return state if isinstance(name, str) and name in _REGULARISERS else {}


def _some(names: list[str]) -> str:
    """The first names, a stranger's: as many letters of each as a message bears, and none that a terminal obeys."""
    more = len(names) - 4
    shown = [name if name.isprintable() else ascii(name) for name in (name[:80] for name in names[:4])]
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")
