"""Batches on their way from the loader to the device."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing

import torch
from torch import Tensor

from plopcli.data.transforms import normalise
from plopcli.methods.base import Batch


def on_device(
    batches: Generator[tuple[Tensor, Tensor]], device: torch.device, *, channels_last: bool
) -> Generator[Batch]:
    """Loaded batches as the networks take them; ``batches`` is closed with this generator.

    On a GPU a batch is copied and normalised beside the computation of the one before.

    Args:
        batches: Pixels (B, H, W, 3) and labels (B, H, W), uint8; pinned, for a GPU.
        device: Where to.
        channels_last: Memory layout of the images.
    """
    with closing(batches):
        if device.type != "cuda":
            for pixels, labels in batches:
                yield _batch(pixels, labels, device, channels_last=channels_last)
            return
        stream = torch.cuda.Stream(device)
        for pixels, labels in batches:
            # The host is ahead of the GPU, which is still busy with the batch before.
            with torch.cuda.stream(stream):
                batch = _batch(pixels, labels, device, channels_last=channels_last)
            current = torch.cuda.current_stream(device)
            current.wait_stream(stream)
            for tensor in batch:
                # Else the allocator, which knows of the copying stream alone, would give the memory away too early.
                tensor.record_stream(current)
            yield batch


def _batch(pixels: Tensor, labels: Tensor, device: torch.device, *, channels_last: bool) -> Batch:
    return Batch(
        normalise(pixels.to(device, non_blocking=True), channels_last=channels_last),
        labels.to(device, non_blocking=True).long(),
    )
