"""Splits large maps into blocks of rows, so that temporary results stay in the cache."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

#: Bytes of a block in float32 on a CPU. New memory for a whole map costs more there than the arithmetic on it.
_CPU_BLOCK = 2**20
#: Blocks of a map on other devices, to need a fraction of the memory.
_DEVICE_BLOCKS = 4


def row_blocks(maps: Tensor, start: int = 0, stop: int | None = None) -> Iterator[slice]:
    """Splits the rows ``start`` to ``stop`` (all by default) of maps (B, C, H, W) into blocks."""
    stop = maps.shape[2] if stop is None else stop
    rows = -(-maps.shape[2] // _DEVICE_BLOCKS)
    if maps.device.type == "cpu":
        rows = max(1, _CPU_BLOCK * maps.shape[2] // (4 * max(1, maps.numel())))
    for top in range(start, stop, rows):
        yield slice(top, min(top + rows, stop))
