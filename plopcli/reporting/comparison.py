"""Results of several runs, named so that they can be told apart."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from plopcli.errors import DataError
from plopcli.runs.folder import RunFolder


class Spread(NamedTuple):
    """Mean and sample standard deviation over seeds; no deviation for one seed."""

    mean: float
    deviation: float | None

    def __str__(self) -> str:
        """With one decimal: ``54.6 ± 1.2``."""
        return f"{self.mean:.1f}" if self.deviation is None else f"{self.mean:.1f} ± {self.deviation:.1f}"


#: Columns of `over_seeds`: the first step, the share of it that the old classes keep, and the last step.
SEED_COLUMNS = ("step 0", "kept %", "old", "new", "all", "avg")


def over_seeds(runs: Sequence[Mapping[str, Any]]) -> list[tuple[str, int, list[Spread | None]]]:
    """Results of several seeds, method by method: name, number of runs, and the values of `SEED_COLUMNS`.

    Raises:
        DataError: Runs of one method have got to different steps, so that their mean would mean nothing.
    """
    rows = []
    for method in dict.fromkeys(results["method"] for results in runs):
        of_method = [results for results in runs if results["method"] == method]
        if len({len(results["steps"]) for results in of_method}) > 1:
            reached = ", ".join(f"seed {results['seed']}: {len(results['steps'])}" for results in of_method)
            raise DataError(
                f"The runs of {method} have different numbers of steps ({reached}).", "Finish them with --resume first."
            )
        members = [_figures(results) for results in of_method]
        rows.append((method, len(members), [_spread(column) for column in zip(*members, strict=True)]))
    return rows


def _figures(results: Mapping[str, Any]) -> list[float | None]:
    first, last = results["steps"][0]["miou"], results["steps"][-1]["miou"]
    comparable = len(results["steps"]) > 1 and first["all"] and last["old"] is not None
    kept = 100 * last["old"] / first["all"] if comparable else None
    start = None if len(results["steps"]) == 1 else first["all"]
    return [start, kept, last["old"], last["new"], last["all"], results["avg"]]


def _spread(values: Sequence[float | None]) -> Spread | None:
    present = [value for value in values if value is not None]
    if not present:
        return None
    return Spread(statistics.fmean(present), statistics.stdev(present) if len(present) > 1 else None)


def read_runs(paths: Sequence[Path]) -> list[tuple[str, dict[str, Any]]]:
    """The results of run folders, each with a label: its method, or its folder where methods repeat.

    Raises:
        DataError: A folder holds no results yet, or damaged ones.
    """
    found: list[tuple[Path, dict[str, Any]]] = []
    for path in paths:
        results = RunFolder(path).read_results()
        if results is None or not results["steps"]:
            raise DataError(f"{path} holds no results.json with a finished step.", "Give the folders of runs.")
        found.append((path, results))
    methods = [results["method"] for _, results in found]
    alike = len(set(methods)) < len(methods)
    return [(path.name if alike else results["method"], results) for path, results in found]
