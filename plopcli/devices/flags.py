"""What several processes decide together in the middle of training, without waiting for each other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from plopcli.devices.group import control_group
from plopcli.devices.process import Process


class AsyncFlags:
    """The largest of the numbers that the processes of a run name.

    A vote in passing travels in the background, between processors: it takes no time of a GPU, and its outcome is read
    with the next one. So all processes get the same outcome at the same place.

    Args:
        process: This process; all must call alike.
    """

    def __init__(self, process: Process) -> None:
        self._alone = process.world == 1
        self._under_way: tuple[dist.Work, Tensor] | None = None

    def without_waiting(self, number: int) -> int:
        """Names ``number``; gives the outcome of the vote before (0 at first), or ``number`` to a process alone."""
        if self._alone:
            return number
        outcome = self._finish()
        box = torch.tensor([number])
        work = dist.all_reduce(box, op=dist.ReduceOp.MAX, group=control_group(), async_op=True)
        assert work is not None, "this process is in the group"
        self._under_way = work, box
        return outcome

    def now(self, numbers: Sequence[int]) -> list[int]:
        """The largest of each of ``numbers`` over all processes; waits for them."""
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
