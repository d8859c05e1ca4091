"""Results of several runs, named so that they can be told apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plopcli.errors import DataError
from plopcli.runs.folder import RunFolder


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
