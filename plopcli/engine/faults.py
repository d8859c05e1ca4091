"""What befalls a run of days: each fault told as what happened, what is kept, and what to do.

Errors of ours pass as they are; those of the system, of torch and of its loader processes become ours here. What is no
fault of the machine or of the data is left alone, for it is a bug and should look like one.
"""

from __future__ import annotations

import errno
import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from rich.console import Console
from rich.filesize import decimal as size_text

from plopcli.console.log import RunLog
from plopcli.data.datasets import dataset_folder
from plopcli.data.loader_processes import LoaderError, end_all
from plopcli.data.reading import UnusableFileError
from plopcli.devices.process import Process
from plopcli.errors import DataError, MachineError, PlopError, as_refusal, first_line, is_out_of_memory
from plopcli.files.disk import FULL, free_bytes
from plopcli.models.segmenter import build_segmenter
from plopcli.resolution.layers import Resolved
from plopcli.runs.folder import RunFolder
from plopcli.runs.lock import locked
from plopcli.runs.results import Results
from plopcli.settings.sections import RunSettings

RESUME = "What was saved last is intact; --resume goes on from there."
_LESS_MEMORY = (
    "The total batch can stay: try --set compute.in_place_norm=true, --set compute.checkpointing=true, --precision "
    "bf16, or fewer images at a time, --set compute.micro_batch=N. --dry-run estimates what is needed."
)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)
_BROKEN_DISK = (errno.EIO, errno.ENODEV, errno.ENXIO, errno.ESTALE, errno.ETIMEDOUT)

C = TypeVar("C", contravariant=True)


class _Work(Protocol[C]):
    """What a command that trains does in every process."""

    def __call__(self, resolved: Resolved, choices: C, *, process: Process, console: Console) -> Results: ...


def guarded(work: _Work[C]) -> _Work[C]:
    """``work``, done while its main process holds the run's folder, its faults told as such."""

    @functools.wraps(work)
    def held(resolved: Resolved, choices: C, *, process: Process, console: Console) -> Results:
        folder = resolved.settings.run_folder

        def say(note: str) -> None:
            RunLog(console).say(note, "yellow")

        with ExitStack() as stack, errors_told(resolved.settings):
            stack.callback(end_all)
            process.main_process_first(lambda: stack.enter_context(locked(folder, say)) if process.is_main else None)
            return work(resolved, choices, process=process, console=console)

    return held


@contextmanager
def errors_told(settings: RunSettings) -> Iterator[None]:
    """Turns the faults of machine and data that a run with ``settings`` meets into one clear error each.

    Raises:
        DataError: An image or mask cannot be used, or the data set has gone.
        MachineError: Memory, disk, files, loader processes, GPU or compiler failed.
    """
    try:
        yield
    except UnusableFileError as error:
        raise _unusable(error, settings) from error
    except LoaderError as error:
        raise MachineError(error.message, f"{error.hint} {RESUME}") from error
    except PlopError:
        raise
    except (RuntimeError, OSError, MemoryError) as error:
        told = as_fault(error, settings)
        if told is None:
            raise
        raise told from error


def as_fault(error: Exception, settings: RunSettings) -> PlopError | None:
    """The fault that ``error`` is, None if it is none that we know."""
    for tell in (_memory, _refused, _disk, _gpu, _compiler):
        if (told := tell(error, settings)) is not None:
            return told
    return None


def _memory(error: Exception, settings: RunSettings) -> PlopError | None:
    if not is_out_of_memory(error):
        return None
    words = first_line(error)
    return MachineError(
        f"Memory ran out{f': {words}' if words else ' (Python could not allocate what it needed)'}.",
        f"{_LESS_MEMORY} {RESUME}",
    )


def _refused(error: Exception, settings: RunSettings) -> PlopError | None:
    refused = as_refusal(error)
    return refused and MachineError(refused.message, f"{refused.hint} {RESUME}")


def _disk(error: Exception, settings: RunSettings) -> PlopError | None:
    if not isinstance(error, OSError):
        return None
    folder = settings.run_folder
    where = error.filename or folder
    if error.errno in _GONE and not folder.is_dir():
        return MachineError(
            f"The run folder {folder} has gone: it was removed or moved, or its disk is no longer there.",
            "Bring it back and go on by --resume; without it, begin anew.",
        )
    if error.errno in FULL:
        return disk_full(where, settings)
    if error.errno in _REFUSED:
        return MachineError(
            f"{where} cannot be written: {error.strerror}.", f"Give access to it, then start again. {RESUME}"
        )
    if error.errno in _BROKEN_DISK:
        return MachineError(f"The disk under {where} failed: {error.strerror}.", f"See to the disk. {RESUME}")
    return None


def disk_full(where: object, settings: RunSettings) -> MachineError:
    """The error for a disk that filled up while a run with ``settings`` wrote ``where``; says how much is needed."""
    folder = settings.run_folder
    needed = _largest_checkpoint(settings)
    return MachineError(
        f"The disk is full: {where} could not be written ({size_text(free_bytes(folder))} are free).",
        f"A checkpoint of this run takes {size_text(needed)}; free as much for every step that is left, and some more "
        f"(`plop doctor` says how much). {RESUME}",
    )


def _largest_checkpoint(settings: RunSettings) -> int:
    sizes = []
    with suppress(OSError):
        sizes = [path.stat().st_size for path in RunFolder(settings.run_folder).path.glob("checkpoints/step-*.pt")]
    if sizes:
        return max(sizes)
    with torch.device("meta"):
        network = build_segmenter(settings.model, [1])
    return sum(tensor.nbytes for tensor in network.state_dict().values())


def _gpu(error: Exception, settings: RunSettings) -> PlopError | None:
    accelerator = type(error).__name__ == "AcceleratorError" or str(error).startswith("CUDA error")
    if not accelerator:
        return None
    return MachineError(
        f"The GPU failed: {first_line(error)}.",
        "Where it fails again at another place, the GPU or its driver is at fault (nvidia-smi, dmesg); at the same "
        f"place, please report it with CUDA_LAUNCH_BLOCKING=1 plop --debug ... {RESUME}",
    )


def _compiler(error: Exception, settings: RunSettings) -> PlopError | None:
    compiler = settings.compute.compile
    if compiler == "off" or not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return None
    return MachineError(
        f"torch.compile ({compiler}) failed: {first_line(error)}.",
        "Train without it (leave --compile away, or --set compute.compile=off); --debug shows its own account.",
    )


def _unusable(error: UnusableFileError, settings: RunSettings) -> DataError:
    name = settings.data.dataset
    folder = _data_folder(settings)
    if error.kind.endswith("missing") and not folder.is_dir():
        return DataError(
            f"The data set's folder {folder} has gone: {error.message}", f"Bring it back or mount it again. {RESUME}"
        )
    return DataError(
        error.message,
        f"{error.hint} Once the file is as it was: {RESUME[0].lower()}{RESUME[1:]} `plop prepare {name}` finds every "
        "such file; after --skip-bad the step can begin anew without them (remove checkpoints/snapshot-*.pt, then "
        "--resume).",
    )


def _data_folder(settings: RunSettings) -> Path:
    data = settings.data
    return dataset_folder(data.dataset, data.root, data.path)
