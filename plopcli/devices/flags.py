"""Decisions of several processes in the middle of training, without waiting for each other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from plopcli.devices.group import control_group
from plopcli.devices.process import Process


class AsyncFlags:
    """Maximum over processes of the numbers that they vote with; all processes must call alike.

    A vote is reduced in the background on the CPU, takes no time of a GPU, and its outcome is read with the next vote.
    So all processes get the same outcome at the same place.
    """

    def __init__(self, process: Process) -> None:
        self._alone = process.world == 1
        self._under_way: tuple[dist.Work, Tensor] | None = None

    def without_waiting(self, number: int) -> int:
        """Votes with ``number``; returns the outcome of the vote before (0 at first), or ``number`` if alone."""
        if self._alone:
            return number
        outcome = self._finish()
        box = torch.tensor([number])
        work = dist.all_reduce(box, op=dist.ReduceOp.MAX, group=control_group(), async_op=True)
        assert work is not None, "this process is in the group"
        self._under_way = work, box
        return outcome

    def now(self, numbers: Sequence[int]) -> list[int]:
        """Element-wise maximum of ``numbers`` over all processes; waits for them."""
        if self._alone:
            return list(numbers)
        self._finish()
        box = torch.tensor(numbers)
        dist.all_reduce(box, op=dist.ReduceOp.MAX, group=control_group())
        return [int(number) for number in box.tolist()]

    def _finish(self) -> int:
        if self._under_way is None:
            return 0
        work, box = self._under_way
        self._under_way = None
        work.wait()
        return int(box.item())
