"""Taking a run folder back to where the run goes on, so that nothing stands there twice.

What was written about iterations after that point will be written again. Metrics of that time are cut off, the log
loses the lines that will be repeated and keeps the rest of its history. TensorBoard is told by the next event file
(`plopcli.runs.events`).
"""

from __future__ import annotations

import re
from typing import NamedTuple

from plopcli.files.atomic import write_atomic
from plopcli.files.digest import remove_with_digest
from plopcli.files.strict_json import to_json
from plopcli.runs.folder import RunFolder
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


def rewind(folder: RunFolder, position: Position) -> None:
    """Drops what was written after ``position``, damaged ends of files included.

    That is checkpoints of the position's step and later ones, later snapshots, and what metrics, results and log
    say of iterations that are to be done and of figures that are to be measured.
    """
    step = position.step
    for number in folder.steps():
        if number >= step:
            remove_with_digest(folder.checkpoint(number))
            remove_with_digest(folder.weights(number))
    for path in snapshot_paths(folder):
        number, iteration = (int(part) for part in path.stem.split("-")[1:])
        if number != step or iteration > position.iteration:
            path.unlink()
    if folder.metrics.is_file():
        kept = [row for row in folder.read_metrics() if position.has_trained(row["step"], row["iteration"])]
        write_atomic(folder.metrics, "".join(to_json(row) + "\n" for row in kept))
    if (results := folder.read_results()) is not None:
        kept_steps = [entry for entry in results.steps if entry.step < position.measured]
        write_results(results.with_steps(kept_steps), folder.results)
    folder.forget_confusion(position.measured)
    if folder.log.is_file():
        lines = folder.log.read_text("utf-8", errors="replace").splitlines(keepends=True)
        write_atomic(folder.log, "".join(line for line in lines if _stays(line, position)))


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
