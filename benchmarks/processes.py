"""A training iteration on the CPU in one and in several processes that share the batch and the cores."""

from __future__ import annotations

import argparse
import os
import statistics
import time

import torch

from benchmarks.report import Benchmark, Figures, ratios, spread, table
from benchmarks.workload import TINY_OPTIONS, Workload, add_workload_options, build_training, network_of
from plopcli.devices.launch import launch
from plopcli.devices.process import this_process
from plopcli.models.abn import synchronise_statistics
from plopcli.settings.sections import ComputeSettings


def measured(work: Workload, iterations: int, warmup: int) -> tuple[list[float], int]:
    """Seconds of every iteration, and threads of a process; every process of a group calls this alike."""
    with this_process(work.compute) as process:
        training = build_training(work, process)
        if process.world > 1:
            synchronise_statistics(training.model, torch.distributed.group.WORLD)
        training.iterate(warmup)
        seconds = []
        for _ in range(iterations):
            process.barrier()
            start = time.perf_counter()
            training.iterate()
            seconds.append(time.perf_counter() - start)
    return seconds, torch.get_num_threads()


def measure(chosen: argparse.Namespace) -> Figures:
    times: dict[int, list[float]] = {count: [] for count in chosen.processes}
    threads: dict[int, int] = {}
    for _ in range(chosen.rounds):
        for count in chosen.processes:
            compute = ComputeSettings(gpus=0, processes=count, precision="float32")
            work = Workload(chosen.method, network_of(chosen), compute, chosen.images // count, chosen.crop)
            seconds, threads[count] = launch(measured, count, work, chosen.iterations, chosen.warmup)
            times[count] += seconds
    first = chosen.processes[0]
    by_name = {str(count): values for count, values in times.items()}
    return {
        "method": chosen.method,
        "backbone": chosen.backbone,
        "images": chosen.images,
        "crop": chosen.crop,
        "cores": len(os.sched_getaffinity(0)),
        "threads_of_a_process": {str(count): number for count, number in threads.items()},
        "images_per_second": {str(n): chosen.images / statistics.median(values) for n, values in times.items()},
        "speed_up": {name: ratios(by_name, str(first), name) for name in by_name},
        "all_seconds": by_name,
    }


def show(figures: Figures) -> str:
    rows = [
        [count, figures["threads_of_a_process"][count], speed, spread(figures["speed_up"][count])]
        for count, speed in figures["images_per_second"].items()
    ]
    return (
        f"{figures['method']}, {figures['backbone']}, {figures['images']} images of {figures['crop']} in all, "
        f"{figures['cores']} cores\n{table(['processes', 'threads', 'images/s', 'speed-up'], rows)}"
    )


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--processes", type=int, nargs="+", default=(1, 2), metavar="N", help="default: 1 2")
    parser.add_argument("--method", default="plop")
    add_workload_options(parser, images=4)
    parser.add_argument("--iterations", type=int, default=3, help="timed in a round; default: %(default)s")
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2, help="in turn; default: %(default)s")


BENCHMARK = Benchmark(
    "images per second of a training iteration on the CPU in 1, 2, ... processes",
    options,
    measure,
    show,
    brief=("--backbone", "resnet50", "--crop", "256"),
    tiny=(*TINY_OPTIONS, "--images", "4", "--rounds", "1", "--iterations", "2"),
)
