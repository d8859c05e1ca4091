"""Everything that a run's folder holds about the run, gathered for a report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plopcli.errors import PlopError
from plopcli.reporting.comparison import MeasuredRun
from plopcli.runs.confusion import Confusion, read_confusion
from plopcli.runs.diagnosis import Diagnosis
from plopcli.runs.folder import RunFolder
from plopcli.runs.results import Results
from plopcli.settings.sections import RunSettings

if TYPE_CHECKING:
    from plopcli.reporting.gallery import Gallery


@dataclass(frozen=True)
class RunData:
    """What is known about a run.

    Args:
        label: What distinguishes it from the other runs of the report.
        path: Its folder.
        results: Its `results.json`.
        settings: Its `settings.toml`, None where that is missing.
        stamps: Its `environment.json`: one stamp per start.
        rows: Its `metrics.jsonl`.
        confusion: The confusion matrix of its last step, or why there is none.
        diagnosis: Its pseudo-labels against the hidden truth, or why there is nothing about them.
        gallery: Images with predictions, or why there are none.
    """

    label: str
    path: Path
    results: Results
    settings: RunSettings | None
    stamps: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    confusion: Confusion | str
    diagnosis: Diagnosis | str
    gallery: Gallery | str

    @property
    def title(self) -> str:
        """Title of the run."""
        results = self.results
        return f"{results.method} on {results.dataset} {results.task} ({results.protocol}), seed {results.seed}"

    @property
    def stamp(self) -> dict[str, Any]:
        """The stamp of the last start; empty without one."""
        return self.stamps[-1] if self.stamps else {}


def gather(label: str, run: MeasuredRun, diagnosis: Diagnosis | str, gallery: Gallery | str) -> RunData:
    """The data of a run, to be shown under ``label``.

    Raises:
        DataError: Its metrics cannot be read.
    """
    folder = RunFolder(run.path)
    confusion: Confusion | str
    try:
        confusion = read_confusion(folder.confusion(run.results.steps[-1].step))
    except PlopError as error:
        confusion = reason(error)
    stamps, rows = folder.read_environment(), folder.read_metrics()
    return RunData(label, run.path, run.results, run.settings, stamps, rows, confusion, diagnosis, gallery)


def reason(error: PlopError) -> str:
    """What went wrong, on one line, where a part of a report is missing."""
    return f"{error.message} {error.hint}" if error.hint else error.message


def warnings(data: RunData) -> list[str]:
    """Warnings for a reader of the figures."""
    results, settings, stamp = data.results, data.settings, data.stamp
    said = []
    if not results.is_finished():
        said.append(f"The run is not finished: measured up to step {results.steps[-1].step}.")
    norms = str(stamp.get("batch_norm") or results.batch_norm or "")
    if "NOT synchronised" in norms:
        said.append(f"Batch norm: {norms}. Results fall short of those with synchronised statistics.")
    if results.split not in (None, "test"):
        said.append(f"Measured on the {results.split} images: for choices, not to be compared with published figures.")
    revisions = {str(each.get("revision")) for each in data.stamps if each.get("revision")}
    if any(revision.endswith("-dirty") for revision in revisions):
        said.append("Made with source code that was edited after its revision.")
    if len(revisions) > 1:
        said.append(f"Made with several revisions of plop: {', '.join(sorted(revisions))}.")
    lost = sum(bool(row.get("diagnostics", {}).get("not_finite")) for row in data.rows)
    skipped = sum(bool(row.get("diagnostics", {}).get("skipped")) for row in data.rows) - lost
    if lost:
        said.append(f"{lost} iterations were skipped because their loss or gradient was not finite.")
    if skipped > 0:
        said.append(f"{skipped} iterations were skipped because their gradients overflowed in fp16.")
    if settings is None:
        said.append("The folder has no readable settings.toml: what the run was is told by its results alone.")
    return said
