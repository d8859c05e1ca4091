"""What all benchmarks share: interleaved timing, tables, and a JSON file with the machine beside the figures."""

from __future__ import annotations

import json
import statistics
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plopcli.runs.environment import environment_stamp

RESULTS = Path(__file__).parent / "results"
#: Rounds that are made whatever they take: fewer have no median.
LEAST_ROUNDS = 3

Figures = dict[str, Any]
Calls = Mapping[str, Callable[[], object]]


@dataclass(frozen=True)
class Benchmark:
    """A subcommand.

    Args:
        summary: One line for `--help`.
        options: Adds its options to a parser.
        measure: Measures, and gives figures that JSON can hold.
        show: A short text for people.
        brief: Options with which `all` runs it.
        tiny: Options that only prove that it runs.
    """

    summary: str
    options: Callable[[ArgumentParser], None]
    measure: Callable[[Namespace], Figures]
    show: Callable[[Figures], str]
    brief: tuple[str, ...] = ()
    tiny: tuple[str, ...] = ()


def interleaved(calls: Calls, rounds: int, warmup: int = 1, seconds: float | None = None) -> dict[str, list[float]]:
    """Seconds of every candidate, called in turn.

    Args:
        calls: The candidates by name.
        rounds: How often each is timed.
        warmup: Rounds before that.
        seconds: No further round begins after that many, once `LEAST_ROUNDS` are done.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    began = time.perf_counter()
    for turn in range(warmup + rounds):
        late = seconds is not None and time.perf_counter() - began > seconds
        if late and turn - warmup >= LEAST_ROUNDS:
            break
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn >= warmup:
                times[name].append(time.perf_counter() - start)
    return times


def medians(times: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The median of every candidate's times."""
    return {name: statistics.median(values) for name, values in times.items()}


def ratios(times: Mapping[str, Sequence[float]], of: str, to: str) -> dict[str, float]:
    """Minimum, median and maximum of the ratio pair by pair."""
    pairs = [a / b for a, b in zip(times[of], times[to], strict=True)]
    return {"min": min(pairs), "median": statistics.median(pairs), "max": max(pairs)}


def spread(ratio: Mapping[str, float]) -> str:
    """A ratio for people: ``1.050 (0.990 to 1.120)``."""
    return "{median:.3f} ({min:.3f} to {max:.3f})".format(**ratio)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns in line; the first one to the left, the rest to the right; floats with three digits, None as a dash."""
    cells = [list(head), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.rjust(width) if column else cell.ljust(width) for column, (cell, width) in enumerate(zipped))
        for zipped in (list(zip(row, widths, strict=True)) for row in cells)
    )


def save(name: str, figures: Mapping[str, Any], folder: Path = RESULTS, tag: str | None = None) -> Path:
    """Writes the figures with those of this machine to ``folder``/NAME[-TAG].json."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{tag}.json" if tag else folder / f"{name}.json"
    stamp = {**environment_stamp(), "processor": processor()}
    path.write_text(json.dumps({**figures, "environment": stamp}, indent=2) + "\n", "utf-8")
    return path


def processor() -> str | None:
    """Name of the processor, None where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.3f}" if abs(value) < 100 else f"{value:,.0f}"
    return str(value)
