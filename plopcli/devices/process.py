"""This process, its place among the others of a run, and its device."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from plopcli.devices.group import Membership, control_group, find_membership, joined, wait_for_the_end
from plopcli.errors import MachineError, PeerFailedError, PlopError, UsageError
from plopcli.settings.sections import ComputeSettings

T = TypeVar("T")

#: More images at a time gain nothing in evaluation.
_EVALUATION_BATCH = 16


@dataclass(frozen=True)
class Process:
    """One process of a run. Every method but the properties must be called by all processes alike.

    Args:
        device: Its device.
        rank: Its number; only process 0 writes.
        world: Number of processes.
        local_world: Number of processes on this machine that share its cores.
    """

    device: torch.device
    rank: int = 0
    world: int = 1
    local_world: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum of ``tensor`` over all processes (in place with several)."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def mean(self, tensor: Tensor) -> Tensor:
        """Mean of a floating-point ``tensor`` over all processes (in place with several)."""
        return self.sum(tensor).div_(self.world) if self.world > 1 else tensor

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """``tensor`` of every process, by rank; all have the same shape."""
        if self.world == 1:
            return [tensor]
        every = [torch.empty_like(tensor) for _ in range(self.world)]
        dist.all_gather(every, tensor)
        return every

    def broadcast(self, value: T) -> T:
        """The main process's value, a small Python object, in all processes."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=control_group(), device=torch.device("cpu"))
        return box[0]

    def barrier(self) -> None:
        """Waits until all processes are here."""
        if self.world > 1:
            dist.all_reduce(torch.zeros(()), group=control_group())

    def main_process_first(self, action: Callable[[], T]) -> T:
        """Returns ``action()``, run by the main process first, then by the others if it succeeded; waits for all.

        Raises:
            PlopError: ``action`` raised it, here.
            PeerFailedError: It failed in the main process.
        """
        if self.world == 1:
            return action()
        if self.is_main:
            try:
                result = action()
            except PlopError as error:
                self.broadcast(error.exit_code)
                raise
            self.broadcast(0)
        else:
            if code := self.broadcast(0):
                wait_for_the_end()
                raise PeerFailedError("Process 0 failed.", exit_code=code)
            result = action()
        self.barrier()
        return result

    def average_statistics(self, model: nn.Module) -> None:
        """Averages floating-point buffers, such as running statistics, over all processes."""
        for buffer in model.buffers():
            if buffer.is_floating_point():
                self.mean(buffer)


@dataclass(frozen=True)
class BatchLayout:
    """Split of the total batch: ``total = world * micro * accumulation``."""

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


def world_size(settings: ComputeSettings) -> int:
    """Processes of the run: those of the group that this process was started in, else as many as are asked for.

    Raises:
        UsageError: GPUs and CPU processes are both asked for.
    """
    if (membership := find_membership()) is not None:
        return membership.world
    gpus = requested_gpus(settings)
    if gpus and settings.processes:
        raise UsageError(
            f"--processes {settings.processes} is for the CPU, and {gpus} GPU{'s are' if gpus > 1 else ' is'} used.",
            "Every GPU has its own process. Leave --processes away, or add --gpus 0.",
        )
    return gpus or settings.processes or 1


def batch_layout(batch: int, settings: ComputeSettings, world: int) -> BatchLayout:
    """Splits the total ``batch`` over ``world`` processes and accumulation.

    Raises:
        UsageError: It cannot be divided as asked.
    """
    if batch % world:
        raise UsageError(
            f"A batch of {batch} cannot be shared by {world} processes.", f"Use a multiple of {world} for --batch."
        )
    micro = settings.micro_batch or batch // world
    if batch % (world * micro):
        raise UsageError(
            f"A batch of {batch} is no multiple of {world} x {micro} images (compute.micro_batch).",
            f"Choose a micro batch that divides {batch // world}.",
        )
    return BatchLayout(batch, world, micro)


def evaluation_batch(batch: int, settings: ComputeSettings) -> int:
    """Images per forward pass in evaluation: the same for any number of processes, and so are the figures."""
    return min(settings.micro_batch or batch, _EVALUATION_BATCH)


def planned_process(settings: ComputeSettings, *, must_exist: bool = True) -> Process:
    """The main process of a run that is yet to start: its device and the number of processes, without a group.

    With ``must_exist=False`` the GPUs need not be there.

    Raises:
        MachineError: The GPUs asked for are not there.
        UsageError: GPUs and CPU processes are both asked for.
    """
    world = world_size(settings)
    membership = find_membership()
    gpus = requested_gpus(settings)
    if gpus == 0:
        return Process(torch.device("cpu"), world=world, local_world=world)
    needed = membership.local_world if membership is not None else gpus
    if not must_exist:
        return Process(torch.device("cuda", 0), world=world, local_world=needed)
    present = torch.cuda.device_count()
    if needed > present and not _has_a_gpu_of_its_own(membership):
        raise MachineError(
            f"{needed} GPUs are asked for, and this machine has {present} usable CUDA GPUs.",
            "Use --gpus auto or --gpus 0 (CPU); `plop env` shows what is found.",
        )
    return Process(torch.device("cuda", 0), world=world, local_world=needed)


@contextmanager
def fixed_sizes(fixed: bool) -> Iterator[None]:
    """Turns off cuDNN's benchmark mode where images are of many sizes."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before and fixed
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextmanager
def this_process(settings: ComputeSettings) -> Iterator[Process]:
    """The process to run as, with its device, in the group that it was started in, if in one.

    Raises:
        MachineError: The GPUs asked for are not there, or the group does not come together.
        PeerFailedError: Another process has failed.
    """
    planned = planned_process(settings)
    membership = find_membership()
    device = planned.device
    if device.type == "cuda":
        number = 0 if membership is None or _has_a_gpu_of_its_own(membership) else membership.local_rank
        device = torch.device("cuda", number)
        torch.cuda.set_device(device)
    _configure(settings)
    if membership is None:
        yield Process(device)
        return
    with joined(membership, device, settings.timeout):
        yield _member(device, membership)


def _member(device: torch.device, membership: Membership) -> Process:
    # SLURM binds each task to cores of its own where it is told how many.
    shares_cores = membership.starter != "SLURM" or "SLURM_CPUS_PER_TASK" not in os.environ
    return Process(device, membership.rank, membership.world, membership.local_world if shares_cores else 1)


def _has_a_gpu_of_its_own(membership: Membership | None) -> bool:
    """Whether SLURM shows each task only its own GPU."""
    return membership is not None and membership.starter == "SLURM" and torch.cuda.device_count() == 1


def _configure(settings: ComputeSettings) -> None:
    """Sets global state of torch."""
    deterministic = settings.deterministic
    if deterministic:
        # Read by cuBLAS when it starts; without it, matrix products may differ from run to run.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    # Crops have one size, so trying algorithms pays; which one wins may differ from run to run.
    torch.backends.cudnn.benchmark = not deterministic
