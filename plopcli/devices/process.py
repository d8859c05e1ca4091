"""This process among the others of a run, and its device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from plopcli.errors import MachineError, UsageError
from plopcli.settings.sections import ComputeSettings


@dataclass(frozen=True)
class Process:
    """One process of a run.

    Args:
        device: Where it computes.
        rank: Its number.
        world: How many there are.
    """

    device: torch.device
    rank: int = 0
    world: int = 1

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum of ``tensor`` over all processes (in place with several)."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor


@dataclass(frozen=True)
class BatchLayout:
    """How the total batch is spread: ``total = world * micro * accumulation``."""

    total: int
    world: int
    micro: int

    @property
    def accumulation(self) -> int:
        """Forward passes per iteration and process."""
        return self.total // (self.world * self.micro)

    def describe(self, device: str) -> str:
        """For people: ``24 = 2 GPUs x 12 x 1 accumulation``."""
        kind = {"cuda": "GPU", "cpu": "CPU process"}.get(device, device)
        plural = ("es" if kind.endswith("s") else "s") if self.world > 1 else ""
        return f"{self.total} = {self.world} {kind}{plural} x {self.micro} x {self.accumulation} accumulation"


def requested_gpus(settings: ComputeSettings) -> int:
    """GPUs to compute on, 0 for the CPU."""
    if settings.gpus == "auto":
        return 1 if torch.cuda.is_available() else 0
    return settings.gpus


def batch_layout(batch: int, settings: ComputeSettings) -> BatchLayout:
    """Spreads the total ``batch`` over processes and accumulation.

    Raises:
        UsageError: It cannot be divided as asked.
    """
    world = max(1, requested_gpus(settings))
    if batch % world:
        raise UsageError(
            f"A batch of {batch} cannot be shared by {world} GPUs.", f"Use a multiple of {world} for --batch."
        )
    micro = settings.micro_batch or batch // world
    if batch % (world * micro):
        raise UsageError(
            f"A batch of {batch} is no multiple of {world} x {micro} images (compute.micro_batch).",
            f"Choose a micro batch that divides {batch // world}.",
        )
    return BatchLayout(batch, world, micro)


def this_process(settings: ComputeSettings) -> Process:
    """The process and device to run on.

    Raises:
        MachineError: The GPUs asked for are not there, or more than one is asked for.
    """
    gpus = requested_gpus(settings)
    if gpus == 0:
        return Process(torch.device("cpu"))
    present = torch.cuda.device_count()
    if gpus > present:
        raise MachineError(
            f"--gpus {gpus}: this machine has {present} usable CUDA GPUs.",
            "Use --gpus auto or --gpus 0 (CPU); `plop env` shows what is found.",
        )
    if gpus > 1:
        raise MachineError(
            f"--gpus {gpus}: training on several GPUs is not built yet.",
            "Use --gpus 1; the total batch stays the same, with accumulation where memory is short "
            "(--set compute.micro_batch=N).",
        )
    torch.backends.cudnn.benchmark = True  # crops have one size
    return Process(torch.device("cuda", 0))
