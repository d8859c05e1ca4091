"""Whether training keeps memory that it no longer needs: resident memory and live tensors over many iterations."""

from __future__ import annotations

import argparse
import gc
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.report import Benchmark, Figures, table
from benchmarks.workload import TINY_NETWORK, TOY_NETWORK, Training, Workload, build_training, compute_of
from plopcli.devices.process import this_process
from plopcli.engine.trainer import Iteration, read_iterations
from plopcli.settings.sections import ModelSettings

MIB = 2**20
#: Iterations between two readings of the losses, as in training.
PRINT_EVERY = 10


@dataclass(frozen=True)
class Case:
    """A network, a batch and how long it is trained."""

    name: str
    network: ModelSettings
    images: int
    crop: int
    iterations: int
    warmup: int


CASES = {
    "demo": Case("demo", TOY_NETWORK, 8, 80, 200, 50),
    "resnet101": Case("resnet101", ModelSettings(pretrained=False), 2, 512, 10, 4),
    "tiny": Case("tiny", TINY_NETWORK, 2, 64, 12, 6),
}


def resident() -> int:
    """Resident memory of this process in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def live_tensors() -> int:
    """Tensors that Python still reaches."""
    gc.collect()
    # isinstance would ask proxies, some of which warn.
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def train(training: Training, iterations: int) -> list[int]:
    """Resident memory after every iteration."""
    sizes: list[int] = []
    pending: list[Iteration] = []
    for _ in range(iterations):
        pending.append(training.trainer.iterate([training.batch]))
        sizes.append(resident())
        if len(pending) == PRINT_EVERY:
            read_iterations(pending, training.process)
            pending = []
    return sizes


def measure_case(case: Case, method: str, device: str) -> Figures:
    work = Workload(method, case.network, compute_of(device), case.images, case.crop)
    with this_process(work.compute) as process:
        training = build_training(work, process)
        before = train(training, case.warmup)
        tensors = live_tensors()
        sizes = train(training, case.iterations - case.warmup)
        grown = live_tensors() - tensors
        allocated = torch.cuda.memory_allocated() if process.device.type == "cuda" else None
    return {
        "case": case.name,
        "method": method,
        "iterations": case.iterations,
        "warmup": case.warmup,
        "growth_mib": growth(sizes) / MIB,
        "slope_kib_per_iteration": statistics.linear_regression(range(len(sizes)), sizes).slope / 1024,
        "new_tensors": grown,
        "allocated_mib": None if allocated is None else allocated / MIB,
        "resident_mib": [size / MIB for size in (*before, *sizes)],
    }


def growth(sizes: Sequence[int]) -> float:
    """The median of the last fifth less that of the first."""
    share = max(len(sizes) // 5, 1)
    return statistics.median(sizes[-share:]) - statistics.median(sizes[:share])


def measure(chosen: argparse.Namespace) -> Figures:
    return {"cases": [measure_case(CASES[name], chosen.method, chosen.device) for name in chosen.cases]}


def show(figures: Figures) -> str:
    rows = [
        [
            f"{case['case']}, {case['method']}",
            case["iterations"],
            case["warmup"],
            case["resident_mib"][-1],
            case["growth_mib"],
            case["slope_kib_per_iteration"],
            case["new_tensors"],
        ]
        for case in figures["cases"]
    ]
    head = ["", "iterations", "warm-up", "resident MiB", "growth after warm-up MiB", "slope KiB", "new tensors"]
    return table(head, rows)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cases", nargs="+", choices=CASES, default=["demo", "resnet101"])
    parser.add_argument("--method", default="plop")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")


BENCHMARK = Benchmark(
    "growth of resident memory over 200 iterations of the demo's network and 10 of the large one",
    options,
    measure,
    show,
    tiny=("--cases", "tiny"),
)
