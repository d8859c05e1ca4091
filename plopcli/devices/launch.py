"""Starts a command's work in as many processes as its settings ask for.

`run_everywhere` is what commands call. In a group that torchrun or SLURM has started, and where one process is enough,
the work is done in this process; else torch's elastic launcher starts workers on this machine, watches them, and ends
all when one fails.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import tempfile
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.console import Console
from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from plopcli.console.streams import open_console, secure_streams
from plopcli.devices.group import LAUNCHED, TIMEOUT_HINT, find_membership
from plopcli.devices.process import planned_process, this_process
from plopcli.devices.signals import signals_caught, signals_forwarded, stop_asked, stopped_by
from plopcli.errors import DataError, MachineError, PeerFailedError, PlopError, StoppedError, UsageError, as_plop_error
from plopcli.settings.sections import ComputeSettings

PEER_FAILED = PeerFailedError.__name__
#: Takes the process and a console, beside its own arguments; its result must be picklable.
Work = Callable[..., Any]
#: We pass signals on: torch's launcher would kill, some time later, processes that are still saving. Early releases of
#: torch have no such option; there, its launcher sends SIGTERM, whatever the signal was.
_NO_SIGNALS: dict[str, Any] = {field.name: "" for field in fields(LaunchConfig) if field.name == "signals_to_handle"}
_KINDS: dict[str, type[PlopError]] = {kind.__name__: kind for kind in (PlopError, UsageError, DataError, MachineError)}


def run_everywhere(work: Work, check: Work | None, compute: ComputeSettings, console: Console, **arguments: Any) -> Any:
    """What ``work(process=..., console=..., **arguments)`` returns in the main process; None in others of a group.

    Args:
        work: Done by every process of the group.
        check: Called likewise, here, before workers are started, to raise what is wrong with the arguments.
        compute: How many processes, and where.
        console: For messages; processes other than the main one are silent.
        arguments: Passed on; they must be picklable.

    Raises:
        PlopError: One process failed; the error is its own, and says which process it was.
        StoppedError: A signal asked to stop.
        KeyboardInterrupt: The user stopped the launcher.
    """
    planned = planned_process(compute)
    if planned.world == 1 or find_membership() is not None:
        with signals_caught(), this_process(compute) as process:
            speaks = console if process.is_main else Console(quiet=True)
            result = work(process=process, console=speaks, **arguments)
            return result if process.is_main else None
    if check is not None:
        with signals_caught():
            check(process=planned, console=console, **arguments)
    return launch(_work_as_member, planned.world, work, compute, arguments, on_gpus=planned.device.type == "cuda")


def launch(function: Callable[..., Any], count: int, *arguments: Any, on_gpus: bool = False) -> Any:
    """Calls ``function(*arguments)`` in ``count`` new processes, which find each other by their environment.

    Args:
        function: Importable by name.
        count: Number of processes.
        arguments: Picklable.
        on_gpus: Whether they compute on GPUs, and need no more than a core each.

    Returns:
        What process 0 returned.

    Raises:
        PlopError: One process failed; all have ended.
        StoppedError: A signal asked to stop, here or in one of the processes; all have ended.
        KeyboardInterrupt: The user stopped the launcher; all have ended.
    """
    # The launcher's own account of a failure would stand beside ours. Each of its loggers has a level of its own.
    for name in list(logging.root.manager.loggerDict):
        if name.startswith(("torch.distributed.elastic", "torch.multiprocessing")):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="plop-") as folder, _variables(_worker_variables(count, on_gpus)):
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            monitor_interval=0.1,
            start_method="spawn",
            logs_specs=DefaultLogsSpecs(log_dir=folder),
            **_NO_SIGNALS,
        )
        with signals_forwarded():
            try:
                results = elastic_launch(config, _member)(Path(folder), function, arguments)
            except ChildFailedError as error:
                if number := stop_asked():
                    raise stopped_by(number) from None
                raise _cause(error.failures, Path(folder), count) from None
            except SignalException as stopped:
                raise stopped_by(stopped.sigval.value) from None
    if isinstance(results[0], StoppedError):
        raise results[0]
    return results[0]


def _member(folder: Path, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Main function of a worker: its errors go to a file, from which the launcher reports them once.

    A stop that all processes have agreed on is a result: a failure would make the launcher kill those that are about to
    stop in an orderly way. Ctrl-C reaches all processes, and so does, as SIGINT, the death of the launcher.
    """
    launcher = os.getppid()
    secure_streams()
    try:
        with signals_caught():
            return function(*arguments)
    except StoppedError as stopped:
        if stopped.agreed and os.getppid() == launcher:
            return stopped
        raise SystemExit(stopped.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None
    except Exception as error:
        known = as_plop_error(error)
        told = {"kind": type(error).__name__, "message": str(error), "hint": None}
        if known is not None:
            kind = next(base.__name__ for base in type(known).__mro__ if base.__name__ in (*_KINDS, PEER_FAILED))
            told |= {"kind": kind, "message": known.message, "hint": known.hint}
        told["traceback"] = "".join(traceback.format_exception(error))
        (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(told), "utf-8")
        raise SystemExit(known.exit_code if known is not None else 1) from None


def _work_as_member(work: Work, compute: ComputeSettings, arguments: Mapping[str, Any]) -> Any:
    with this_process(compute) as process:
        console = open_console(quiet=not process.is_main)
        result = work(process=process, console=console, **arguments)
        return result if process.is_main else None


def _cause(failures: Mapping[int, ProcessFailure], folder: Path, count: int) -> BaseException:
    """The error of the process that failed first by itself."""
    told: dict[int, dict[str, str]] = {
        int(path.stem): json.loads(path.read_text("utf-8")) for path in folder.glob("*.json")
    }
    for rank, account in sorted(told.items()):
        if account["kind"] == PEER_FAILED:
            continue
        where = f"Process {rank} of {count}: "
        if kind := _KINDS.get(account["kind"]):
            error: Exception = kind(where + account["message"], account["hint"])
        else:
            error = RuntimeError(f"{where}{account['kind']}: {account['message']}")
        error.add_note(account["traceback"])
        return error
    # Whoever is left was ended from outside. SIGTERM comes from the launcher, to the rest of the processes.
    killed = [failure for failure in failures.values() if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM]
    if any(failure.exitcode == -signal.SIGINT for failure in killed):
        return KeyboardInterrupt()
    if not killed and told:
        return MachineError(told[min(told)]["message"], TIMEOUT_HINT)
    first = min(killed or failures.values(), key=lambda failure: failure.timestamp)
    memory = "SIGKILL mostly means that memory ran out: use fewer processes, or a smaller compute.micro_batch. "
    how = f"was killed by {signal.Signals(-first.exitcode).name}" if first.exitcode < 0 else f"ended: {first.message}"
    return MachineError(
        f"Process {first.local_rank} of {count} (pid {first.pid}) {how}.",
        f"{memory if first.exitcode == -signal.SIGKILL else ''}Finished steps are intact; --resume goes on after them.",
    )


def _worker_variables(count: int, on_gpus: bool) -> dict[str, str]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = 1 if on_gpus else max(1, cores // count)
    # Threads of several processes on the same cores wait for each other most of the time.
    # Modules in the working folder are none of the program.
    return {LAUNCHED: "1", "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}


@contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    """Sets environment variables within a `with`; workers inherit them."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
