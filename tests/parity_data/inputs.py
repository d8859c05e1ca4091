"""Regenerates the inputs behind the golden values in this folder.

Nothing here is a model: it only fixes how inputs, labels and weights are drawn, so that the
golden outputs (``*.npz``, measured once on the original PLOP implementation) can be compared with
ours. Every array is drawn from ``numpy.random.RandomState`` (the frozen legacy
generator), seeded with the CRC-32 of its name, so it is the same on every machine.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence

import numpy as np


def generator(name: str) -> np.random.RandomState:
    """The random generator that belongs to ``name``."""
    return np.random.RandomState(zlib.crc32(name.encode()) & 0xFFFFFFFF)


def normal(name: str, *shape: int) -> np.ndarray:
    """Standard normal float32 array of the given shape."""
    return generator(name).standard_normal(shape).astype(np.float32)


def integers(name: str, low: int, high: int, *shape: int) -> np.ndarray:
    """Integers in ``[low, high)``."""
    return generator(name).randint(low, high, size=shape)


def label_maps(name: str, batch: int, size: int, classes: Sequence[int], ignored: float = 0.05) -> np.ndarray:
    """Blocky int64 label maps (batch, size, size): 8x8 blocks of 0 or one of ``classes``, 5 % pixels 255."""
    rng = generator(name)
    blocks = rng.choice([0, 0, 0, *classes], size=(batch, size // 8, size // 8))
    maps = np.kron(blocks, np.ones((8, 8), dtype=np.int64)).astype(np.int64)
    maps[rng.rand(batch, size, size) < ignored] = 255
    return maps


def weights(shapes: Mapping[str, Sequence[int]], tag: str = "") -> dict[str, np.ndarray]:
    """Weights for a state dict given as ``name -> shape`` in the names of ``state_dict_keys.json``.

    ``num_batches_tracked`` is left out: keep whatever the module holds. With a tag that ends in
    ``signed/`` some norm weights are negative.
    """
    drawn = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            continue
        z = generator(tag + name).standard_normal(tuple(shape)).astype(np.float32)
        if name.endswith("running_mean"):
            z = 0.05 * z
        elif name.endswith("running_var"):
            z = 1 + 0.1 * np.abs(z)
        elif len(shape) == 4:
            z = z * np.float32(math.sqrt(2.0 / (shape[1] * shape[2] * shape[3])))
        elif name.endswith("weight") and len(shape) == 1:
            sign = np.where(z > 1, -1, 1).astype(np.float32) if tag.endswith("signed/") else np.float32(1)
            z = (1 + 0.1 * z) * sign
        else:
            z = 0.05 * z
        drawn[name] = z.astype(np.float32)
    return drawn


# losses.npz ------------------------------------------------------------------------------------
LOSS_CASES = {"a": (2, 16, 1, 24), "b": (3, 16, 5, 16), "c": (1, 101, 10, 16)}  # batch, old, new, size


def loss_inputs(case: str) -> dict[str, np.ndarray]:
    """Inputs of one case of ``losses.npz``.

    logits (b, old+new, s, s); old_logits (b, old, s, s); labels (b, s, s), values 0, new classes or 255;
    old_features / features: five maps (b, c, h, h); old_small / new_small: logits at feature size.
    """
    batch, old, new, size = LOSS_CASES[case]
    maps = [(64, 16), (128, 8), (256, 4), (512, 4), (256, 4)]
    return {
        "logits": 3 * normal(f"loss/{case}/logits", batch, old + new, size, size),
        "old_logits": 3 * normal(f"loss/{case}/old_logits", batch, old, size, size),
        "labels": label_maps(f"loss/{case}/y", batch, size, range(old, old + new)),
        "old_features": [normal(f"loss/{case}/fa{i}", batch, c, h, h) for i, (c, h) in enumerate(maps)],
        "features": [normal(f"loss/{case}/fb{i}", batch, c, h, h) for i, (c, h) in enumerate(maps)],
        "old_small": normal(f"loss/{case}/la", batch, old, 4, 4),
        "new_small": normal(f"loss/{case}/lb", batch, old + new, 4, 4),
    }


# median.npz ------------------------------------------------------------------------------------
def median_inputs(case: str, old: int, total: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Three batches of old-model logits (2, old, 32, 32) and label maps (2, 32, 32)."""
    logits = [scale * normal(f"median/{case}/l{i}", 2, old, 32, 32) for i, scale in enumerate([1.0, 3.0, 8.0])]
    labels = [label_maps(f"median/{case}/y{i}", 2, 32, range(old, total)) for i in range(3)]
    return logits, labels


# metrics.npz -----------------------------------------------------------------------------------
def metric_inputs(case: str, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Ground truth and predictions (4, 60, 60); the last two classes never occur in the ground truth."""
    truth = integers(f"metric/{case}/gt", 0, classes - 2, 4, 60, 60)
    truth[generator(f"metric/{case}/ign").rand(*truth.shape) < 0.05] = 255
    kept = generator(f"metric/{case}/keep").rand(*truth.shape) < 0.7
    wrong = integers(f"metric/{case}/pred", 0, classes, *truth.shape)
    return truth, np.where(kept, np.where(truth == 255, 0, truth), wrong)


# models.npz ------------------------------------------------------------------------------------
def model_input(batch: int, height: int, width: int) -> np.ndarray:
    """Images (batch, 3, height, width) of a model case; its weights are ``weights(shapes, "model/")``,
    or ``weights(shapes, "model/signed/")`` where the case's name ends in ``-signed``."""
    return normal(f"model/x{height}x{width}", batch, 3, height, width)


# regulariser_*.npz -----------------------------------------------------------------------------
REGULARISER_SHAPES = ({"a": (3, 4), "b": (5,)}, {"a": (3, 4), "b": (5,), "c": (2, 3)})  # step 0, step 1
REGULARISER_UPDATES = 23


def regulariser_start(step: int, case: str = "reg") -> dict[str, np.ndarray]:
    """Parameters when a step starts; at step 1, ``a`` and ``b`` are those at the end of step 0 instead."""
    return {n: normal(f"{case}/s{step}/start/{n}", *s) for n, s in REGULARISER_SHAPES[step].items()}


def regulariser_move(step: int, update: int, case: str = "reg") -> dict[str, np.ndarray]:
    """What is added to the parameters before update number ``update`` (nothing before update 0)."""
    if update == 0:
        return {n: np.zeros(s) for n, s in REGULARISER_SHAPES[step].items()}
    return {
        n: 0.1 * normal(f"{case}/s{step}/move{update}/{n}", *s).astype(np.float64)
        for n, s in REGULARISER_SHAPES[step].items()
    }


def regulariser_gradient(step: int, update: int, case: str = "reg") -> dict[str, np.ndarray]:
    """Gradients at that update."""
    return {n: normal(f"{case}/s{step}/grad{update}/{n}", *s) for n, s in REGULARISER_SHAPES[step].items()}


# trace_*.npz -----------------------------------------------------------------------------------
def trace_batches(tag: str, step: int, classes: Sequence[int], batches: int, batch: int, size: int):
    """Batches that a trace trains on, in order: images (b, 3, s, s) and labels (b, s, s).

    ``classes`` counts the classes of each step (background in the first); labels hold 0, 255 and the
    classes that ``step`` introduces.
    """
    first = sum(classes[:step])
    new = range(first, first + classes[step]) if step else range(1, classes[0])
    images = [normal(f"{tag}s{step}/x{i}", batch, 3, size, size) for i in range(batches)]
    labels = [label_maps(f"{tag}s{step}/y{i}", batch, size, new) for i in range(batches)]
    return images, labels
