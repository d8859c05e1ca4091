"""What all benchmarks share: interleaved timing and a JSON file with the machine beside the figures."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from plopcli.runs.environment import environment_stamp

RESULTS = Path(__file__).parent / "results"


def interleaved(candidates: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 1) -> dict[str, list[float]]:
    """Seconds of every candidate, called in turn, so that a drift of the machine's speed meets all alike."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(warmup + rounds):
        for name, call in candidates.items():
            start = time.perf_counter()
            call()
            if turn >= warmup:
                times[name].append(time.perf_counter() - start)
    return times


def ratios(times: Mapping[str, list[float]], of: str, to: str) -> dict[str, float]:
    """Minimum, median and maximum of the ratio pair by pair."""
    pairs = [a / b for a, b in zip(times[of], times[to], strict=True)]
    return {"min": min(pairs), "median": statistics.median(pairs), "max": max(pairs)}


def save(name: str, figures: Mapping[str, Any]) -> None:
    """Writes the figures of this machine and prints where."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({**figures, "environment": environment_stamp()}, indent=2) + "\n", "utf-8")
    print(f"written to {path}")
