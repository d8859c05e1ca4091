"""Taking a run folder back to where the run goes on, so that nothing stands there twice.

What was written about iterations after that point will be written again. Metrics of that time are cut off, the log
loses the lines that will be repeated and keeps the rest of its history. TensorBoard is told by the next event file
(`plopcli.runs.events`).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from plopcli.files.atomic import write_atomic
from plopcli.files.digest import remove_with_digest
from plopcli.runs.folder import RunFolder
from plopcli.runs.records import to_line
from plopcli.runs.results import write_results
from plopcli.runs.snapshot import snapshot_paths

#: Lines of the log about an epoch, its validation, and the figures of a step.
_LINE = re.compile(r"\S+ \S+ +step (?P<step>\d+) (?:epoch (?P<epoch>\d+)(?P<of>/\d+)?:|(?:test|val): mIoU)")


class Position(NamedTuple):
    """Where a run goes on.

    Attributes:
        step: The step to train.
        iteration: Iterations of it that are done.
        per_epoch: Iterations of its epochs.
        measured: Steps whose figures are there and stay; the first of the others is measured next.
    """

    step: int
    iteration: int = 0
    per_epoch: int = 1
    measured: int = 0

    def has_trained(self, step: int, iteration: int) -> bool:
        """Whether iteration number ``iteration``, from 0, of ``step`` is done."""
        return (step, iteration) < (self.step, self.iteration)

    def has_validated(self, step: int, epoch: int) -> bool:
        """Whether the validation after ``epoch`` epochs is done for certain; the snapshot of that epoch precedes it."""
        return step < self.step or (step == self.step and epoch * self.per_epoch < self.iteration)


def rewind(folder: RunFolder, position: Position) -> list[str]:
    """Drops what was written after ``position``, damaged ends of files included.

    That is checkpoints of the position's step and later ones, later snapshots, and what metrics, results and log
    say of iterations that are to be done and of figures that are to be measured.

    Returns:
        A line for what has been lost of that which stays.
    """
    step, lost = position.step, []
    for number in folder.steps():
        if number >= step:
            remove_with_digest(folder.checkpoint(number))
            remove_with_digest(folder.weights(number))
    for path in snapshot_paths(folder):
        number, iteration = (int(part) for part in path.stem.split("-")[1:])
        if number != step or iteration > position.iteration:
            path.unlink()
    if folder.metrics.is_file():
        # A phase before the training of its step is over once that has a snapshot.
        kept = [
            row
            for row in folder.read_metrics()
            if position.has_trained(row["step"], 0 if "phase" in row else row["iteration"])
        ]
        write_atomic(folder.metrics, "".join(map(to_line, kept)))
        if missing := _missing(kept, position):
            lost.append(f"{folder.metrics} was damaged: it lacks {missing} iterations that were trained.")
    if (results := folder.read_results()) is not None:
        kept_steps = [entry for entry in results.steps if entry.step < position.measured]
        write_results(results.with_steps(kept_steps), folder.results)
    folder.forget_confusion(position.measured)
    if folder.log.is_file():
        # A power cut leaves zeros where lines were not on the disk yet.
        lines = folder.log.read_text("utf-8", errors="replace").replace("\0", "").splitlines(keepends=True)
        write_atomic(folder.log, "".join(line for line in lines if _stays(line, position)))
    return lost


def _missing(rows: Iterable[Mapping[str, Any]], position: Position) -> int:
    """How many iterations before ``position`` have no row although others of their step have one."""
    there: dict[tuple[int, str], set[int]] = defaultdict(set)
    for row in rows:
        there[row["step"], row.get("phase", "")].add(row["iteration"])
    now = (position.step, "")
    if position.iteration:
        there[now] |= set()
    return sum((position.iteration if at == now else max(done) + 1) - len(done) for at, done in there.items())


def _stays(line: str, position: Position) -> bool:
    match = _LINE.match(line)
    if match is None:
        return True
    step = int(match["step"])
    if match["epoch"] is None:
        return step < position.measured
    epoch = int(match["epoch"])
    if match["of"] is None:
        return position.has_validated(step, epoch)
    return position.has_trained(step, epoch * position.per_epoch - 1)
