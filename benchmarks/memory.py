"""Memory of a training iteration: what autograd keeps for the backward pass, what all tensors of the iteration take at
the worst moment, and the peak of the process or the GPU."""

from __future__ import annotations

import argparse
import ctypes
import gc
from concurrent.futures import ProcessPoolExecutor
from itertools import accumulate, product
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.report import Benchmark, Figures, table
from benchmarks.workload import (
    TINY_OPTIONS,
    TRAINABLE,
    Training,
    Workload,
    add_workload_options,
    build_training,
    compute_of,
    network_of,
    settings_of,
)
from plopcli.devices.precision import Precision
from plopcli.devices.process import Process, this_process
from plopcli.engine.memory import estimate_memory
from plopcli.settings.sections import DataSettings, RunSettings

MIB = 2**20


class SavedForBackward:
    """Adds up the storages that autograd keeps, each once, without those of ``model``."""

    def __init__(self, model: nn.Module) -> None:
        own = (*model.parameters(), *model.buffers())
        self._own = {tensor.untyped_storage().data_ptr() for tensor in own}
        self._sizes: dict[int, int] = {}
        self.counting = True

    def pack(self, tensor: Tensor) -> Tensor:
        """Called by autograd with whatever it keeps."""
        storage = tensor.untyped_storage()
        if self.counting and storage.data_ptr() not in self._own:
            self._sizes[storage.data_ptr()] = storage.nbytes()
        # The graph keeps this one, and the tensor itself not: it may hold the graph.
        return tensor.detach()

    @property
    def bytes(self) -> int:
        return sum(self._sizes.values())


class StopsCounting(Precision):
    """Ends the count before the backward pass, which keeps things of its own where it recomputes."""

    def __init__(self, precision: Precision, saved: SavedForBackward) -> None:
        super().__init__(precision.name, precision.device)
        self._saved = saved

    def backward(self, loss: Tensor) -> None:
        self._saved.counting = False
        super().backward(loss)


def measure_case(work: Workload) -> Figures:
    """Memory of one workload in bytes; to be called in a fresh process, whose peak is its own (Linux, glibc)."""
    with this_process(work.compute) as process:
        training = build_training(work, process)
        training.iterate(2)  # momentum, and what kernels allocate once
        saved = SavedForBackward(training.model)
        trainer = training.trainer
        trainer.precision = StopsCounting(trainer.precision, saved)
        with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor):
            training.iterate()
        trainer.precision = Precision(trainer.precision.name, process.device)
        gc.collect()
        before = _start_peak(process)
        training.iterate()
        peak = _peak(process)
        allocated = peak - before if process.device.type == "cuda" else _allocated(training)
    return {"saved_for_backward": saved.bytes, "allocated": allocated, "before": before, "peak": peak}


def estimated(work: Workload) -> int:
    """What `--dry-run` would say about the activations, in bytes."""
    settings = RunSettings(
        method=settings_of(work.method),
        model=work.network,
        compute=work.compute,
        data=DataSettings(crop=work.crop),
    )
    half = work.compute.precision in ("bf16", "fp16")
    return estimate_memory(settings, work.classes, work.images, half=half).activations


def measure(chosen: argparse.Namespace) -> Figures:
    cases = []
    for method, in_place, checkpointing in product(chosen.method, chosen.in_place_norm, chosen.checkpointing):
        compute = compute_of(
            chosen.device,
            precision=chosen.precision,
            in_place_norm=in_place == "on",
            checkpointing=checkpointing == "on",
        )
        work = Workload(method, network_of(chosen), compute, chosen.images, chosen.crop)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            figures = pool.submit(measure_case, work).result()
        cases.append(
            {
                "method": method,
                "in_place_norm": compute.in_place_norm,
                "checkpointing": compute.checkpointing,
                **figures,
                "estimated": estimated(work),
            }
        )
    return {
        "backbone": chosen.backbone,
        "images": chosen.images,
        "crop": chosen.crop,
        "precision": chosen.precision,
        "peak_of": "memory allocated on the GPU" if chosen.device == "cuda" else "resident memory of the process",
        "cases": cases,
    }


def show(figures: Figures) -> str:
    rows = []
    for case in figures["cases"]:
        traits = [name.replace("_", " ") for name in ("in_place_norm", "checkpointing") if case[name]]
        sizes = [case[name] for name in ("saved_for_backward", "estimated", "allocated", "peak")]
        rows.append([", ".join([case["method"], *traits]), *(size / MIB for size in sizes)])
    head = ["MiB", "kept for backward", "estimated", "most allocated by an iteration", "peak of all"]
    return (
        f"{figures['backbone']}, {figures['images']} images of {figures['crop']}, {figures['precision']}; "
        f"peak: {figures['peak_of']}\n{table(head, rows)}"
    )


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--method", nargs="+", choices=TRAINABLE, default=["ft", "plop"])
    add_workload_options(parser)
    parser.add_argument("--precision", choices=("float32", "bf16", "fp16"), default="float32")
    parser.add_argument("--in-place-norm", nargs="+", choices=("off", "on"), default=["off", "on"])
    parser.add_argument("--checkpointing", nargs="+", choices=("off", "on"), default=["off", "on"])


BENCHMARK = Benchmark(
    "what an iteration keeps for its backward pass, and its peak, by method, norm and checkpointing",
    options,
    measure,
    show,
    brief=("--backbone", "resnet50", "--crop", "256"),
    tiny=(*TINY_OPTIONS, "--method", "plop", "--checkpointing", "off"),
)


def _allocated(training: Training) -> int:
    """The most that tensors of an iteration take at a time on the CPU, in bytes.

    Resident memory is more than that: the C library does not give back all that is freed.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        training.iterate()
    found = profiler.profiler
    assert found is not None
    assert found.kineto_results is not None
    changes = [event for event in found.kineto_results.events() if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    most: int = max(accumulate(event.nbytes() for event in changes))
    return most


def _start_peak(process: Process) -> int:
    """Forgets the peak so far; gives what is used now."""
    if process.device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    # The C library keeps what was freed, and would hide how much an iteration needs.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak(process: Process) -> int:
    if process.device.type == "cuda":
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
    return _status("VmHWM")


def _status(name: str) -> int:
    """A size of this process in bytes, as Linux tells it."""
    for line in Path("/proc/self/status").read_text("utf-8").splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise AssertionError(f"no {name} in /proc/self/status")
