"""What training leaves in the log, the metrics file and the event file while it goes on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from plopcli.data.loading import Plan
from plopcli.devices.process import Process
from plopcli.engine.trainer import Iteration, read_iterations
from plopcli.errors import PlopError
from plopcli.reporting.events import EventWriter
from plopcli.runs.folder import RunFolder, RunLog


class Recorder:
    """Writes iterations to the metrics file and the event file, and one line per epoch to the log.

    Args:
        folder: Where the metrics file is.
        events: The event file.
        log: The log.
        process: This process; the main one alone writes, all give their share of the figures.
        plan: The step's batches.
        epochs: Epochs of the step.
        show: Called with (iterations done, a note on the last one).
    """

    def __init__(
        self,
        folder: RunFolder,
        events: EventWriter,
        log: RunLog,
        process: Process,
        plan: Plan,
        epochs: int,
        show: Callable[[int, str], None],
    ) -> None:
        self.folder, self.events, self.log, self.process = folder, events, log, process
        self.plan, self.epochs, self.show = plan, epochs, show
        #: Iterations whose gradients overflowed in fp16, or were not finite and tolerated: they moved nothing.
        self.skipped = 0
        self._terms: dict[str, float] = {}
        self._in_epoch = 0
        self._skipped_in_epoch = 0
        self._lost_in_epoch = 0
        self._last = time.perf_counter()

    def record(self, iterations: list[Iteration]) -> None:
        """Takes up iterations that are done.

        Raises:
            PlopError: A loss term is not finite; all processes raise it together.
        """
        rows = [{"step": self.plan.step, **row} for row in read_iterations(iterations, self.process)]
        now = time.perf_counter()
        speed, self._last = len(rows) * self.plan.batch / (now - self._last), now
        if self.process.is_main:
            # Written first: the rows before a failure are what explains it.
            self.folder.append_metrics(rows)
            self.events.iterations(rows)
        for row in rows:
            check_finite(row, self.plan.step)
            self._add(row, speed)
        self.show(rows[-1]["iteration"] + 1, f"loss {rows[-1]['loss']:.3f}, {speed:.0f} images/s")

    def state_dict(self) -> dict[str, Any]:
        """The sums of the epoch that is under way."""
        return {
            "terms": dict(self._terms),
            "in_epoch": self._in_epoch,
            "skipped_in_epoch": self._skipped_in_epoch,
            "lost_in_epoch": self._lost_in_epoch,
            "skipped": self.skipped,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state_dict` gave.

        Raises:
            KeyError, TypeError, ValueError: The state is of something else.
        """
        self._terms = {str(name): float(value) for name, value in state["terms"].items()}
        self._in_epoch, self._skipped_in_epoch = int(state["in_epoch"]), int(state["skipped_in_epoch"])
        self._lost_in_epoch = int(state["lost_in_epoch"])
        self.skipped = int(state["skipped"])

    def _add(self, row: Mapping[str, Any], speed: float) -> None:
        if row["diagnostics"].get("not_finite"):
            self._lost_in_epoch += 1
        else:
            for name, value in row["terms"].items():
                self._terms[name] = self._terms.get(name, 0.0) + value
        self._in_epoch += 1
        self._skipped_in_epoch += int(row["diagnostics"].get("skipped", 0))
        if self._in_epoch < self.plan.iterations_per_epoch:
            return
        epoch = (row["iteration"] + 1) // self.plan.iterations_per_epoch
        counted = self._in_epoch - self._lost_in_epoch
        terms = ", ".join(f"{name} {value / counted:.4f}" for name, value in self._terms.items())
        reason = "not finite" if self._lost_in_epoch else "fp16 overflow"
        skipped = f", {self._skipped_in_epoch} iterations skipped ({reason})" if self._skipped_in_epoch else ""
        self.log.say(f"  step {self.plan.step} epoch {epoch}/{self.epochs}: {terms}   {speed:.0f} images/s{skipped}")
        self.skipped += self._skipped_in_epoch
        self._terms, self._in_epoch, self._skipped_in_epoch, self._lost_in_epoch = {}, 0, 0, 0


def check_finite(row: Mapping[str, Any], step: int) -> None:
    """Stops a run whose loss has a term that is not finite.

    Raises:
        PlopError: Names the terms and where training stood.
    """
    bad = [name for name, value in row["terms"].items() if not math.isfinite(value)]
    if bad and not row["diagnostics"].get("not_finite"):
        raise PlopError(
            f"Loss term {', '.join(bad)} is not finite at step {step}, iteration {row['iteration']} "
            f"({', '.join(f'{name} {value:g}' for name, value in row['terms'].items())}).",
            "What was saved before is intact. Where this is a rare accident, go on from there by --resume --set "
            "train.skip_non_finite=10: such iterations then move nothing, and are counted. Else a lower learning rate "
            "helps most often: another run with --lr or --lr-later, which can take step 0 over by --init-from.",
        )
