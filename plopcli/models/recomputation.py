"""Activation checkpointing (Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016) of blocks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


class _Thread(threading.local):
    recomputing = False


# The backward pass may recompute in a thread of its own, while another one runs a forward pass of the same modules.
_thread = _Thread()


def recomputing() -> bool:
    """Whether a block is being recomputed in this thread; updates once per batch must then be skipped."""
    # Nothing is checkpointed under torch.compile (see `checkpointed`), which need not look into threads then.
    return not torch.compiler.is_compiling() and _thread.recomputing


@contextmanager
def _recomputation() -> Iterator[None]:
    before, _thread.recomputing = _thread.recomputing, True
    try:
        yield
    finally:
        _thread.recomputing = before


def checkpointed(block: Callable[..., Tensor], *arguments: object) -> Tensor:
    """``block(*arguments)`` with activation checkpointing: the backward pass recomputes it from the arguments.

    The block must not be random: the states of the generators are not kept. Norms learn from `recomputing` that a batch
    is not a new one. torch.compile gets the plain call: it decides itself what to recompute.
    """
    if torch.compiler.is_compiling():
        return block(*arguments)
    out = checkpoint(
        block,
        *arguments,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (nullcontext(), _recomputation()),
    )
    assert isinstance(out, Tensor)
    return out
