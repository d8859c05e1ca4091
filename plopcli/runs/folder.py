"""The folder of a run, which explains itself.

::

RUN/settings.toml       every setting, ready for --config
RUN/method.py           the method's code, where --method named a file: never run unless it is named again
RUN/environment.json    versions, machine, revision, command line, data fingerprint
RUN/log.txt             what was printed
RUN/metrics.jsonl       one line per iteration: loss terms, learning rate, diagnostics
RUN/checkpoints/        step-0.pt, step-1.pt, ...; step-N.safetensors: the weights alone, of the last step
                        NAME.sha256: the digest of each of these, for `sha256sum -c`
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

import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plopcli.errors import DamagedFileError, DataError, UsageError
from plopcli.files.atomic import TEMPORARY, append, flush, refuse_links, remove_temporary
from plopcli.files.plain import FIGURES, parse_json, read_plain
from plopcli.files.strict_json import to_json
from plopcli.plugins import METHOD_FILE

if TYPE_CHECKING:
    from plopcli.runs.results import Results

#: Held by the run that writes here (`plopcli.runs.lock`).
LOCK = "run.lock"
_OURS = ("settings.toml", "checkpoints", "results.json")
#: Folders of a run.
_FOLDERS = ("checkpoints", "confusion", "tensorboard", "curves", "overlays", "profile")
#: Files that runs write, beside those with a name of their own.
_WRITTEN = (
    "checkpoints/step-*.pt",
    "checkpoints/step-*.safetensors",
    "checkpoints/step-*.sha256",
    "checkpoints/snapshot-*.pt",
    "checkpoints/*.part",  # of earlier versions, as those of confusion
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
        self.method = path / METHOD_FILE
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

    def refuse_links(self) -> None:
        """Refuses a folder, which may be a stranger's, whose links would lead what a run writes or removes elsewhere.

        Files that are written whole are no matter: they take the place of a link.

        Raises:
            UsageError: There is such a link.
        """
        refuse_links([self.log, self.metrics, *(self.path / name for name in _FOLDERS)])

    def create(self) -> None:
        """Makes the folder, and removes what a run that was killed has left half-written in it.

        Raises:
            UsageError: It cannot be written, or leads elsewhere by links.
        """
        self.refuse_links()
        try:
            (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
            for name in (".", *_FOLDERS):
                remove_temporary(self.path / name)
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def clear(self) -> None:
        """Removes what a run has written here; whatever else lies in the folder stays.

        Raises:
            UsageError: The folder is not empty, and is no run's, or leads elsewhere by links.
        """
        self.refuse_links()
        others = self.path.is_dir() and any(not path.name.startswith(LOCK) for path in self.path.iterdir())
        if others and not self.settings.exists():
            raise UsageError(
                f"{self.path} is not the folder of a run (it has no settings.toml), so it is not overwritten.",
                "Choose another one with --run.",
            )
        for path in (
            self.environment,
            self.method,
            self.log,
            self.metrics,
            self.results,
            self.results_csv,
            self.diagnosis,
        ):
            path.unlink(missing_ok=True)
        for pattern in (*_WRITTEN, TEMPORARY, f"*/{TEMPORARY}"):
            for path in self.path.glob(pattern):
                path.unlink()
        self.settings.unlink(missing_ok=True)

    def append_metrics(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Adds one line per row to the metrics file."""
        with append(self.metrics) as file:
            file.writelines(to_json(row) + "\n" for row in rows)

    def flush(self) -> None:
        """Makes metrics and events so far survive a power cut, before a checkpoint or snapshot counts on them."""
        for path in (self.metrics, *self.tensorboard.glob("events.out.tfevents.*")):
            if path.is_file():
                flush(path)

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
        return read_plain(path, FIGURES)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error


def _from_json(text: bytes, *, nan: bool = True) -> Any:
    """The value that a JSON text holds, None if it is no JSON; without ``nan``, what Python adds to JSON is none."""
    try:
        return parse_json(text, nan=nan)
    except ValueError:
        return None


def cannot_write(folder: Path, error: OSError) -> UsageError:
    """The error for a run folder that the system does not let us write."""
    return UsageError(
        f"The run folder {folder} cannot be written: {error.strerror or error}.", "Choose another one with --run."
    )
