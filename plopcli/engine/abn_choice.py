"""Which implementation computes the activated batch norms of a run.

Three are there: the compiled package inplace-abn, the same function in PyTorch, and plain batch norm with an activation
behind it. The last one is another function, for other weights, and `model.norm` asks for it; `compute.abn` chooses
between the first two.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist

from plopcli.devices.precision import Precision
from plopcli.devices.process import Process
from plopcli.errors import MachineError, UsageError
from plopcli.models.compiled_abn import installed_version, loading_problem, problem
from plopcli.models.segmenter import norm_of
from plopcli.settings.sections import RunSettings


@dataclass(frozen=True)
class AbnChoice:
    """How the norms are computed, and why so.

    Args:
        implementation: `plain` is batch norm with an activation behind it.
        reason: For people; empty where it was asked for.
        activation: Of the network.
    """

    implementation: Literal["inplace_abn", "pytorch", "plain"]
    reason: str
    activation: str

    def describe(self) -> str:
        """For people: ``ABN in PyTorch (auto: inplace_abn is for GPUs)``."""
        name = {
            "inplace_abn": f"ABN by the compiled inplace_abn {installed_version() or ''}".rstrip(),
            "pytorch": "ABN in PyTorch",
            "plain": f"plain batch norm and {self.activation}",
        }[self.implementation]
        return f"{name} ({self.reason})" if self.reason else name


class _Obstacle(NamedTuple):
    """What keeps the package from being used, and what the user may change."""

    what: str
    remedy: str


def choose_abn(settings: RunSettings, process: Process, precision: Precision, *, must_exist: bool = True) -> AbnChoice:
    """The implementation asked for, or the best one that works.

    Args:
        settings: The run's settings.
        process: This process, or the main one of a run that is yet to start.
        precision: Of the run.
        must_exist: Whether the device and the package must be there; a plan for another machine does without.

    Raises:
        UsageError: The package was asked for and cannot compute what the other settings ask for.
        MachineError: It was asked for and does not work on this machine.
    """
    model, asked = settings.model, settings.compute.abn
    plain = norm_of(model) == "bn"
    if asked == "inplace_abn":
        if obstacles := list(_obstacles(settings, process, precision)):
            raise UsageError(
                f"compute.abn = inplace_abn cannot be used: {'; '.join(obstacle.what for obstacle in obstacles)}.",
                f"{'; '.join(obstacle.remedy for obstacle in obstacles)}. Or leave it to --set compute.abn=auto.",
            )
        if must_exist and (found := _problem(process, precision)) is not None:
            raise MachineError(
                f"compute.abn = inplace_abn cannot be used: {found}.",
                "Build it by `make iabn`, or let PyTorch compute the same: --set compute.abn=auto.",
            )
        return AbnChoice("inplace_abn", "", model.activation)
    if plain:
        return AbnChoice("plain", "", model.activation)
    if asked == "pytorch":
        return AbnChoice("pytorch", "", model.activation)
    if (why := _against(settings, process, precision, must_exist=must_exist)) is not None:
        return AbnChoice("pytorch", f"auto: {why}", model.activation)
    return AbnChoice("inplace_abn", "auto: less memory, and a trial on this GPU gave the same", model.activation)


def _obstacles(settings: RunSettings, process: Process, precision: Precision) -> Iterator[_Obstacle]:
    """What the package cannot do, wherever it is built."""
    model, compute, cpu = settings.model, settings.compute, process.device.type == "cpu"
    if norm_of(model) == "bn":
        yield _Obstacle("this network has plain batch norm, another function", "use a ResNet with model.norm=abn")
    elif model.activation == "relu":
        yield _Obstacle("it cannot invert ReLU", "set model.activation=leaky_relu")
    if precision.name == "bf16":
        instead = "--precision float32" if cpu else "--precision fp16 or float32"
        yield _Obstacle("it has no bfloat16" if not cpu else "it refuses autocast on the CPU", f"use {instead}")
    if compute.compile != "off":
        yield _Obstacle("torch.compile cannot trace it", "leave --compile away")
    if compute.in_place_norm:
        yield _Obstacle("compute.in_place_norm saves the same memory, in PyTorch", "set one of the two")
    if cpu and process.world > 1 and compute.sync_norm:
        yield _Obstacle(
            "on the CPU it cannot synchronise statistics over processes",
            "use one process, or set compute.sync_norm=false",
        )


def _against(settings: RunSettings, process: Process, precision: Precision, *, must_exist: bool) -> str | None:
    """Why auto does without the package."""
    if process.device.type == "cpu":
        return "inplace_abn is for GPUs"
    if obstacle := next(_obstacles(settings, process, precision), None):
        return f"inplace_abn is out, {obstacle.what}"
    if process.world > 1:
        return "inplace_abn over several processes is yet to be verified"
    if not must_exist:
        return "whether inplace_abn works is tried when a run begins"
    if (found := _problem(process, precision)) is not None:
        return f"inplace_abn is out, {found}"
    return None


def _problem(process: Process, precision: Precision) -> str | None:
    """Why the package does not work on the device of this process."""
    if process.device.type == "cuda" and process.world > 1 and not dist.is_initialized():
        # Whoever only starts the others leaves the memory of the GPUs to them.
        return loading_problem()
    return problem(process.device, torch.float16 if precision.name == "fp16" else torch.float32)
