"""The folder of a run, which explains itself.

::

RUN/settings.toml       every setting, ready for --config
RUN/environment.json    versions, machine, revision, command line, data fingerprint
RUN/log.txt             what was printed
RUN/metrics.jsonl       one line per iteration: loss terms, learning rate, diagnostics
RUN/checkpoints/        step-0.pt, step-1.pt, ...; step-N.safetensors: the weights alone, of the last step
                        snapshot-STEP-ITERATION.pt: the state in the middle of a step, until it is finished
RUN/results.json, .csv  the measured figures
RUN/confusion/          step-0.npz, ...: the confusion matrix of every step (`plopcli.runs.confusion`)
RUN/tensorboard/        the same, as events
RUN/curves/, overlays/  pictures
RUN/diagnosis.json      pseudo-labels against the hidden truth, once a report has asked for it
RUN/profile/            what `--profile` measured
RUN/run.lock            who is writing here, while it does
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from plopcli.errors import DamagedFileError, DataError, UsageError
from plopcli.runs.live import Around, ProgressLine, Silence, is_live, shown

if TYPE_CHECKING:
    from plopcli.runs.results import Results

#: Held by the run that writes here (`plopcli.runs.lock`).
LOCK = "run.lock"
_OURS = ("settings.toml", "checkpoints", "results.json")
#: Files that runs write, beside those with a name of their own.
_WRITTEN = (
    "checkpoints/step-*.pt",
    "checkpoints/step-*.safetensors",
    "checkpoints/snapshot-*.pt",
    "checkpoints/*.part",
    "confusion/step-*.npz",
    "confusion/*.part",
    "tensorboard/events.out.tfevents.*",
    "curves/*.png",
    "overlays/*.png",
    "overlays/*.gif",
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
        self.diagnosis = path / "diagnosis.json"
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

    def weights(self, step: int) -> Path:
        """File of the weights alone after ``step``, which is written for the last step."""
        return self.checkpoint(step).with_suffix(".safetensors")

    def confusion(self, step: int) -> Path:
        """File of the confusion matrix measured after ``step``."""
        return self.path / "confusion" / f"step-{step}.npz"

    def forget_confusion(self, first: int) -> None:
        """Removes the confusion matrices of step ``first`` and later ones."""
        for path in self.path.glob("confusion/step-*.npz"):
            match = re.fullmatch(r"step-(\d+)\.npz", path.name)
            if match and int(match[1]) >= first:
                path.unlink()

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
            raise cannot_write(self.path, error) from error

    def clear(self) -> None:
        """Removes what a run has written here; whatever else lies in the folder stays.

        Raises:
            UsageError: The folder is not empty, and is no run's.
        """
        others = self.path.is_dir() and any(path.name != LOCK for path in self.path.iterdir())
        if others and not self.settings.exists():
            raise UsageError(
                f"{self.path} is not the folder of a run (it has no settings.toml), so it is not overwritten.",
                "Choose another one with --run.",
            )
        for path in (self.environment, self.log, self.metrics, self.results, self.results_csv, self.diagnosis):
            path.unlink(missing_ok=True)
        for pattern in _WRITTEN:
            for path in self.path.glob(pattern):
                path.unlink()
        self.settings.unlink(missing_ok=True)

    def append_metrics(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Adds one line per row to the metrics file."""
        with naming(self.metrics), self.metrics.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

    def read_metrics(self) -> list[dict[str, Any]]:
        """All rows of the metrics file; a line that a stop has cut off or damage has changed, and what follows, is not.

        Raises:
            DataError: The file cannot be read.
        """
        from plopcli.runs.records import is_iteration

        rows = []
        for line in _read(self.metrics).splitlines():
            row = _from_json(line)
            if not is_iteration(row):
                break
            rows.append(row)
        return rows

    def read_environment(self) -> list[dict[str, Any]]:
        """The stamps of all starts of this run so far, the first one first; what is no stamp does not count."""
        last = _from_json(_read(self.environment))
        if not isinstance(last, dict):
            return []
        earlier = last.pop("earlier", [])
        return [*(stamp for stamp in earlier if isinstance(stamp, dict)), last] if isinstance(earlier, list) else [last]

    def read_results(self) -> Results | None:
        """What `results.json` holds, None without one.

        Raises:
            DataError: The file is damaged.
        """
        from pydantic import ValidationError

        from plopcli.runs.results import Results

        if not self.results.exists():
            return None
        content = _from_json(_read(self.results), nan=False)
        try:
            return Results.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            fault = f"{where}: {first['msg'].lower()}" if where else first["msg"].removeprefix("Value error, ")
        if content is None:
            fault = "it is not JSON"
        raise DamagedFileError(
            f"{self.results} is damaged: {fault}.",
            f"Remove it: plop run-scenario --run {self.path} --resume measures the steps again.",
        )


def _read(path: Path) -> bytes:
    """The content of a file, of which nothing is there if the file is not.

    Raises:
        DataError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error


def _from_json(text: bytes, *, nan: bool = True) -> Any:
    """The value that a JSON text holds, None if it is no JSON; without ``nan``, what Python adds to JSON is none."""
    try:
        return json.loads(text.decode("utf-8"), parse_constant=float if nan else _not_json)
    except (ValueError, RecursionError):
        return None


def _not_json(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Lets an error of the system name ``path``: that of a write or a flush does not say which file it was."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def cannot_write(folder: Path, error: OSError) -> UsageError:
    """The error for a run folder that the system does not let us write."""
    return UsageError(
        f"The run folder {folder} cannot be written: {error.strerror or error}.", "Choose another one with --run."
    )


def write_whole_text(path: Path, text: str) -> None:
    """Writes a text file so that it holds the old or the new text whole at any moment."""
    temporary = path.with_name(f"{path.name}.part")
    with naming(path):
        temporary.write_text(text, "utf-8")
        flush(temporary)
    temporary.replace(path)


def flush(path: Path) -> None:
    """Makes what a file holds survive a power cut."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


class RunLog:
    """Says what happens, to the terminal and to the run's log file.

    Args:
        console: The terminal (standard error).
        file: The log file; None while there is no folder yet.
    """

    def __init__(self, console: Console, file: Path | None = None) -> None:
        self.console = console
        self.file = file
        #: What is shown around every bar.
        self.around = Around()
        self._silence = Silence()

    def say(self, message: str, style: str | None = None) -> None:
        """One line, with a time stamp in the file."""
        self._silence.broken()
        self.console.print(message, style=style, highlight=False, markup=False, soft_wrap=True)
        self._write(message)

    @contextmanager
    def progress(self, description: str, unit: str = "iterations") -> Iterator[ProgressLine]:
        """A bar with the time left on a terminal; elsewhere, and in the file, a line when nothing else was said."""
        with shown(self.console, description, unit, lambda: self.around, self._say_at_times) as line:
            yield line

    def _say_at_times(self, line: str) -> None:
        if not self._silence.is_long:
            return
        if is_live(self.console):  # which shows it already
            self._silence.broken()
            self._write(line)
        else:
            self.say(line)

    def _write(self, message: str) -> None:
        if self.file is not None:
            with naming(self.file), self.file.open("a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}\n")
