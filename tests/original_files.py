"""Files as the original implementation writes them, for tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

PREFIX = "module."


def original_content(model: Mapping[str, Tensor], *, prefix: str = PREFIX, **changes: Any) -> dict[str, Any]:
    """The content of a file written in mid-training, NumPy's number among it."""
    return {
        "epoch": 29,
        "model_state": {prefix + name: tensor for name, tensor in model.items()},
        "optimizer_state": {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.001}]},
        "scheduler_state": {"last_epoch": 30, "base_lrs": [0.001], "power": 0.9, "_last_lr": [1e-5]},
        "best_score": np.float64(0.7423),
        "trainer_state": {"regularizer": None},
    } | changes


def write_original(path: Path, model: Mapping[str, Tensor], **changes: Any) -> Path:
    torch.save(original_content(model, **changes), path)
    return path
