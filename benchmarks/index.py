"""The class index: counting the masks, finding the count again, and what every split of every task costs from it."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.data_path import draw_files
from benchmarks.report import Benchmark, Figures, medians, table
from plopcli.data.datasets import DATASETS, load_dataset
from plopcli.data.index import ClassIndex, class_index, index_file
from plopcli.data.samples import SegmentationData, class_facts
from plopcli.errors import DataError
from plopcli.scenarios.protocols import PROTOCOLS
from plopcli.scenarios.scenario import Scenario, find_task
from plopcli.scenarios.tasks import named_tasks

#: The task of data sets that have none of their own.
ANY_DATA = "1-1"


def drawn_data(folder: Path, images: int) -> SegmentationData:
    """A data set of VOC's classes and sizes; a fifth of the images is the test."""
    samples = tuple(draw_files(folder, images, (*[0] * 20, *range(1, 21), 255)))
    test = max(images // 5, 1)
    return SegmentationData(
        "voc", folder, tuple(class_facts()["voc"]), {"train": samples[test:], "test": samples[:test]}
    )


def derive_splits(data: SegmentationData, index: ClassIndex) -> tuple[int, int]:
    """Derives every split of the data set's named tasks by every protocol: how many, and how many are empty."""
    done = empty = 0
    protocols = PROTOCOLS if not data.domains else PROTOCOLS[:1]
    for name, protocol in product(named_tasks(data.name) or (ANY_DATA,), protocols):
        scenario = Scenario.build(data, index, find_task(data, name), protocol)
        for step in range(scenario.steps):
            for derive in (scenario.training, lambda step, of=scenario: of.evaluation(step, "test")):
                done += 1
                try:
                    derive(step)
                except DataError:
                    empty += 1  # few drawn images: some class is missing
    return done, empty


def measure(chosen: argparse.Namespace) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        if chosen.data is None:
            data = drawn_data(Path(folder), chosen.images)
        else:
            # The index is written beside the data set; that of the user stays as it is.
            data = replace(load_dataset(chosen.dataset, Path(), chosen.data), root=Path(folder))
        times: dict[str, list[float]] = {"count": [], "find again": [], "derive all splits": []}
        for _ in range(chosen.rounds):
            index_file(data).unlink(missing_ok=True)
            _timed(times["count"], class_index, data)
            index = _timed(times["find again"], class_index, data)
            splits, empty = _timed(times["derive all splits"], derive_splits, data, index)
    masks = sum(map(len, data.splits.values()))
    seconds = medians(times)
    return {
        "dataset": f"{data.name} ({'drawn' if chosen.data is None else chosen.data})",
        "masks": masks,
        "seconds": seconds,
        "milliseconds_per_mask": 1000 * seconds["count"] / masks,
        "splits": splits,
        "empty_splits": empty,
        "milliseconds_per_split": 1000 * seconds["derive all splits"] / splits,
        "rounds": chosen.rounds,
        "all_seconds": times,
    }


def show(figures: Figures) -> str:
    seconds = figures["seconds"]
    rows = [
        ["count all masks", seconds["count"], figures["milliseconds_per_mask"], "mask"],
        ["find the count again", seconds["find again"], 1000 * seconds["find again"] / figures["masks"], "mask"],
        ["derive all splits", seconds["derive all splits"], figures["milliseconds_per_split"], "split"],
    ]
    return (
        f"{figures['dataset']}: {figures['masks']} masks, {figures['splits']} splits "
        f"({figures['empty_splits']} of them empty)\n{table(['', 'seconds', 'ms', 'per'], rows)}"
    )


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, default=200, help="to draw, 500 x 375; default: %(default)s")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of a data set instead")
    parser.add_argument("--dataset", choices=DATASETS, default="voc", help="its kind; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3)


BENCHMARK = Benchmark(
    "counting the classes of all masks, and deriving every split of every task from the count",
    options,
    measure,
    show,
    tiny=("--images", "10", "--rounds", "1"),
)


def _timed(times: list[float], call: Callable[..., Any], *arguments: Any) -> Any:
    start = time.perf_counter()
    result = call(*arguments)
    times.append(time.perf_counter() - start)
    return result
