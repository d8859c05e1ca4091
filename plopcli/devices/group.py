"""The group of processes that a run belongs to: how it is found, joined and left.

A single process has no group. Several are started by `plopcli.devices.launch`, by torchrun, or by SLURM's srun, with
environment variables for rank, world size and address.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist

from plopcli.devices.signals import stop_asked
from plopcli.errors import MachineError, PeerFailedError, PlopError, StoppedError, first_line

#: Set by `plopcli.devices.launch` in its workers.
LAUNCHED = "PLOP_LAUNCHED"
#: Seconds that a process that lost a peer waits to be ended by the launcher, which knows the cause.
_WAIT_FOR_THE_END = 20.0
_SLURM_PORTS = 15_000
#: Seconds that processes wait, at least, while the main one checks, draws or writes.
_PATIENCE = 3600.0
#: `Membership.starter` of workers of `plopcli.devices.launch`.
LAUNCHER = "plop"
TIMEOUT_HINT = "A process that is stopped, lost or too slow makes the others give up; compute.timeout says when."

_control: list[dist.ProcessGroup] = []


class Membership(NamedTuple):
    """A process's place in its group."""

    rank: int
    world: int
    local_rank: int
    local_world: int
    starter: str


def find_membership(environment: Mapping[str, str] | None = None) -> Membership | None:
    """The group that this process was started in, None if it is alone.

    ``environment`` holds the variables of torchrun (RANK, WORLD_SIZE, ...) or of a SLURM step; by default `os.environ`.

    Raises:
        MachineError: The variables are incomplete or no numbers.
    """
    given = os.environ if environment is None else environment
    if "RANK" in given and "WORLD_SIZE" in given:
        starter = LAUNCHER if LAUNCHED in given else "torchrun"
        rank, world, local_rank, local_world = _numbers(
            given, ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"), starter
        )
        return Membership(rank, world, local_rank, local_world, starter)
    # Only srun sets the variables of a step; those of the job (SLURM_NTASKS) are there in its script and shell, too.
    if int(given.get("SLURM_STEP_NUM_TASKS", "1") or 1) > 1:
        rank, world, local_rank = _numbers(given, ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"), "SLURM")
        # "2(x3),1": tasks on every node.
        here = given.get("SLURM_STEP_TASKS_PER_NODE", str(world))
        return Membership(rank, world, local_rank, _tasks_on(here, int(given.get("SLURM_NODEID", "0"))), "SLURM")
    return None


@contextmanager
def joined(membership: Membership, device: torch.device, timeout: float) -> Iterator[None]:
    """Joins the group, and leaves it at the end.

    An error that several processes raise is reported by one of them. A process whose peer has failed ends silently,
    unless it is the main one and no launcher of plop would report the cause.

    Args:
        membership: This process's place.
        device: Its device.
        timeout: Seconds to wait for a peer.

    Raises:
        MachineError: The group does not come together.
        PeerFailedError: Another process has failed.
    """
    _join(membership, device, timeout)
    try:
        yield
    except PeerFailedError:
        raise
    except StoppedError as error:
        if error.agreed:
            dist.destroy_process_group()
        if membership.starter != LAUNCHER and membership.rank > 0:
            raise PeerFailedError("The main process tells this.", exit_code=error.exit_code) from error
        raise
    except PlopError as error:
        if not _is_first_to_tell():
            wait_for_the_end()
            raise PeerFailedError("Another process has told this.", exit_code=error.exit_code) from error
        if membership.starter != LAUNCHER and membership.rank > 0:
            error.message = f"Process {membership.rank} of {membership.world}: {error.message}"
        raise
    except RuntimeError as error:
        if not _lost_a_peer(error):
            raise
        if number := stop_asked():
            raise PeerFailedError("Stopped together with another process.", exit_code=128 + number) from error
        wait_for_the_end()
        message = f"Process {membership.rank} of {membership.world} lost another one: {first_line(error)}."
        if membership.starter != LAUNCHER and membership.rank == 0:
            raise MachineError(message, TIMEOUT_HINT) from error
        raise PeerFailedError(message) from error
    finally:
        _control.clear()
    dist.destroy_process_group()


def _join(membership: Membership, device: torch.device, timeout: float) -> None:
    address = _slurm_address() if membership.starter == "SLURM" else {}
    os.environ.update({name: value for name, value in address.items() if name not in os.environ})
    try:
        dist.init_process_group(
            # Small Python values go over gloo, whatever the tensors use.
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            rank=membership.rank,
            world_size=membership.world,
            timeout=timedelta(seconds=timeout),
            device_id=device if device.type == "cuda" else None,
        )
        patience = timedelta(seconds=max(timeout, _PATIENCE))
        group = dist.new_group(backend="gloo", timeout=patience)
        assert isinstance(group, dist.ProcessGroup), "every process is a member"
        _control.append(group)
    except (RuntimeError, ValueError) as error:
        raise MachineError(
            f"Process {membership.rank} of {membership.world} could not join the others: {first_line(error)}.",
            "MASTER_ADDR and MASTER_PORT must name a port that all processes reach; compute.timeout says how long "
            "they wait for each other.",
        ) from error


def control_group() -> dist.ProcessGroup:
    """The gloo group for decisions and long waits: one process may work for long while others wait."""
    assert _control, "this process is in no group"
    return _control[0]


def _is_first_to_tell() -> bool:
    """Whether no other process has claimed to report the error that all of them may have met."""
    try:
        return int(dist.distributed_c10d._get_default_store().add("plop/told", 1)) == 1
    except (RuntimeError, ValueError):  # whoever kept the count is gone
        return True


def wait_for_the_end() -> None:
    """Gives the process that failed, and the launcher, the time to report before this one ends, too."""
    time.sleep(_WAIT_FOR_THE_END)


def _numbers(given: Mapping[str, str], names: tuple[str, ...], starter: str) -> list[int]:
    try:
        return [int(given[name]) for name in names]
    except (KeyError, ValueError) as error:
        raise MachineError(
            f"This process seems to be one of several started by {starter}, but {', '.join(names)} are not all set "
            "to numbers.",
            "Start it by torchrun or srun, or unset these variables to run it alone.",
        ) from error


def _tasks_on(counts: str, node: int) -> int:
    """Tasks of a node from SLURM's short form: ``2(x3),1`` means 2, 2, 2, 1."""
    tasks: list[int] = []
    for part in counts.split(","):
        count, _, times = part.partition("(x")
        tasks += [int(count)] * int(times.rstrip(")") or 1)
    return tasks[node] if node < len(tasks) else tasks[-1]


def _slurm_address() -> dict[str, str]:
    """Address of the first task of this SLURM step: the first node, a port derived from the job's number."""
    if "MASTER_ADDR" in os.environ and "MASTER_PORT" in os.environ:
        return {}
    nodes = os.environ.get("SLURM_STEP_NODELIST", "")
    host = nodes
    if "[" in nodes or "," in nodes:
        try:
            answer = subprocess.run(
                ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, timeout=30, check=True
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise MachineError(
                f"scontrol could not say which nodes {nodes} are: {error}", "Set MASTER_ADDR and MASTER_PORT by hand."
            ) from error
        host = answer.stdout.split()[0]
    port = _SLURM_PORTS + int(os.environ.get("SLURM_JOB_ID", "0")) % _SLURM_PORTS
    return {"MASTER_ADDR": host, "MASTER_PORT": str(port)}


def _lost_a_peer(error: RuntimeError) -> bool:
    """Whether a collective operation failed, rather than our own code."""
    if isinstance(error, dist.DistError):
        return True
    text = str(error).lower()
    return any(sign in text for sign in ("gloo", "connection closed by peer", "connection reset by peer", "nccl"))
