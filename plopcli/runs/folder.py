"""The folder of a run, which explains itself.

::

RUN/settings.toml       every setting, ready for --config
RUN/environment.json    versions, machine, revision, command line, data fingerprint
RUN/log.txt             what was printed
RUN/metrics.jsonl       one line per iteration: loss terms, learning rate, diagnostics
RUN/checkpoints/        step-0.pt, step-1.pt, ...
RUN/results.json, .csv  the measured figures
RUN/tensorboard/        the same, as events
RUN/curves/, overlays/  pictures
RUN/profile/            what `--profile` measured
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from plopcli.errors import DataError, UsageError

_OURS = ("settings.toml", "checkpoints", "results.json")
#: Files that runs write, beside those with a name of their own.
_WRITTEN = (
    "checkpoints/step-*.pt",
    "tensorboard/events.out.tfevents.*",
    "curves/*.png",
    "overlays/*.png",
    "profile/step-*-process-*.*",
)


class RunFolder:
    """Paths and files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settings = path / "settings.toml"
        self.environment = path / "environment.json"
        self.log = path / "log.txt"
        self.metrics = path / "metrics.jsonl"
        self.results = path / "results.json"
        self.results_csv = path / "results.csv"
        self.tensorboard = path / "tensorboard"
        self.curves = path / "curves"
        self.overlays = path / "overlays"
        self.profile = path / "profile"

    @property
    def is_run(self) -> bool:
        """Whether a run already lives here."""
        return any((self.path / name).exists() for name in _OURS)

    def checkpoint(self, step: int) -> Path:
        """File of the checkpoint after ``step``."""
        return self.path / "checkpoints" / f"step-{step}.pt"

    def steps(self) -> list[int]:
        """The steps whose checkpoints are here, in order."""
        found = (re.fullmatch(r"step-(\d+)\.pt", path.name) for path in self.path.glob("checkpoints/*.pt"))
        return sorted(int(match[1]) for match in found if match)

    def create(self) -> None:
        """Makes the folder.

        Raises:
            UsageError: It cannot be written.
        """
        try:
            (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
            probe = self.path / ".write-probe"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UsageError(
                f"The run folder {self.path} cannot be written: {error.strerror}.", "Choose another one with --run."
            ) from error

    def clear(self) -> None:
        """Removes what a run has written here; whatever else lies in the folder stays.

        Raises:
            UsageError: The folder is not empty, and is no run's.
        """
        if self.path.is_dir() and any(self.path.iterdir()) and not self.settings.exists():
            raise UsageError(
                f"{self.path} is not the folder of a run (it has no settings.toml), so it is not overwritten.",
                "Choose another one with --run.",
            )
        for path in (self.environment, self.log, self.metrics, self.results, self.results_csv):
            path.unlink(missing_ok=True)
        for pattern in _WRITTEN:
            for path in self.path.glob(pattern):
                path.unlink()
        self.settings.unlink(missing_ok=True)

    def forget_from(self, step: int) -> None:
        """Drops checkpoints, metrics and results of ``step`` and later ones, which have been or are trained anew."""
        for number in self.steps():
            if number >= step:
                self.checkpoint(number).unlink()
        if self.metrics.exists():
            kept = [row for row in self.read_metrics() if row["step"] < step]
            _write_whole(self.metrics, "".join(json.dumps(row) + "\n" for row in kept))
        if (results := self.read_results()) is not None:
            results["steps"] = [entry for entry in results["steps"] if entry["step"] < step]
            _write_whole(self.results, json.dumps(results, indent=2) + "\n")

    def append_metrics(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Adds one line per row to the metrics file."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

    def read_metrics(self) -> list[dict[str, Any]]:
        """All rows of the metrics file; a last line that a stop has cut off does not count."""
        if not self.metrics.exists():
            return []
        rows = []
        for line in self.metrics.read_text("utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
        return rows

    def read_environment(self) -> list[dict[str, Any]]:
        """The stamps of all starts of this run so far, the first one first."""
        try:
            last = json.loads(self.environment.read_text("utf-8"))
        except (OSError, ValueError):
            return []
        return [*last.pop("earlier", []), last]

    def read_results(self) -> dict[str, Any] | None:
        """What `results.json` holds, None without one.

        Raises:
            DataError: The file is damaged.
        """
        if not self.results.exists():
            return None
        try:
            results: dict[str, Any] = json.loads(self.results.read_text("utf-8"))
        except ValueError as error:
            raise DataError(
                f"{self.results} is damaged: {error}.", f"`plop evaluate {self.path}` makes it anew."
            ) from error
        return results


def _write_whole(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.part")
    temporary.write_text(text, "utf-8")
    temporary.replace(path)


class RunLog:
    """Says what happens, to the terminal and to the run's log file.

    Args:
        console: The terminal (standard error).
        file: The log file; None while there is no folder yet.
    """

    def __init__(self, console: Console, file: Path | None = None) -> None:
        self.console = console
        self.file = file

    def say(self, message: str, style: str | None = None) -> None:
        """One line, with a time stamp in the file."""
        self.console.print(message, style=style, highlight=False, markup=False, soft_wrap=True)
        if self.file is not None:
            with self.file.open("a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}\n")

    @contextmanager
    def progress(self, description: str, unit: str = "iterations") -> Iterator[ProgressLine]:
        """A bar with the time left on a terminal; nothing elsewhere, where lines of `say` tell."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as bar:
            yield ProgressLine(bar, description)


class ProgressLine:
    """One bar of `RunLog.progress`."""

    def __init__(self, bar: Progress, description: str) -> None:
        self._bar = bar
        self._task = bar.add_task(description, total=None, note="")

    def update(self, done: int, total: int, note: str = "") -> None:
        """Shows ``done`` of ``total``."""
        self._bar.update(self._task, completed=done, total=total, note=note)
