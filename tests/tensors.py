"""Checks over many tensors at once, which no empty collection passes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def assert_same_tensors(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Both hold the same names, at least one, and every tensor has the same bits."""
    assert wanted, "nothing to compare"
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []


def assert_finite(tensors: Mapping[str, Tensor]) -> None:
    """There is a tensor at least, and every value of them is finite."""
    assert tensors, "nothing to look at"
    assert [name for name, tensor in tensors.items() if not tensor.isfinite().all()] == []
