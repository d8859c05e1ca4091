"""The parts of a report that need models and images: the diagnosis and the gallery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from plopcli.console.log import RunLog
from plopcli.errors import PlopError
from plopcli.evaluation.evaluate import Changes
from plopcli.reporting.comparison import MeasuredRun
from plopcli.reporting.gallery import Gallery, make_gallery
from plopcli.reporting.run_data import RunData, gather, reason
from plopcli.runs.diagnosis import Diagnosis
from plopcli.runs.folder import RunFolder

#: Seconds that the diagnosis of a run may take where it was not asked for.
PATIENCE = 120.0


@dataclass(frozen=True)
class PageChoices:
    """What goes into a report.

    Args:
        changes: Another place of the data, or another device.
        images: Images of the gallery; 0: none, and no model is loaded for them.
        diagnose: Compare pseudo-labels with the hidden truth however long that takes, and fail where it cannot be done.
    """

    changes: Changes
    images: int = 6
    diagnose: bool = False


def gather_all(
    runs: Sequence[MeasuredRun], labels: Mapping[Path, str], choices: PageChoices, log: RunLog
) -> list[RunData]:
    """Gathers the data of each run; ``labels`` are by folder. What could not be shown goes to ``log``.

    Raises:
        PlopError: A diagnosis was asked for and cannot be made.
    """
    gathered = []
    for run in runs:
        label = labels[run.path]
        found = diagnosis_of(run.path, choices, log)
        pictures = _gallery_of(run.path, choices, log)
        for part, what in (("diagnosis", found), ("images", pictures)):
            if isinstance(what, str):
                log.say(f"{label}: no {part}. {what}", "yellow")
        gathered.append(gather(label, run, found, pictures))
    return gathered


def diagnosis_of(path: Path, choices: PageChoices, log: RunLog) -> Diagnosis | str:
    """The pseudo-labels of a run against the hidden truth, or the reason why not, if it was not asked for.

    Raises:
        PlopError: It was asked for and cannot be made.
    """
    from plopcli.evaluation.pseudo_label_audit import audit_run

    patience = None if choices.diagnose else PATIENCE
    try:
        return audit_run(RunFolder(path), choices.changes, log, patience)
    except PlopError as error:
        if choices.diagnose:
            raise
        return reason(error)


def _gallery_of(path: Path, choices: PageChoices, log: RunLog) -> Gallery | str:
    if not choices.images:
        return "None were asked for (--images 0)."
    folder = RunFolder(path)
    if not folder.steps():
        return "The folder holds no checkpoints any more, which predictions are made with."
    try:
        with log.progress("images of the gallery", "steps") as bar:
            return make_gallery(folder, choices.changes, choices.images, bar.update)
    except PlopError as error:
        return reason(error)
