"""What training leaves in the log, the metrics file and the event file while it goes on."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from plopcli.data.loading import BatchSchedule
from plopcli.engine.optim import learning_rates
from plopcli.engine.run import Run
from plopcli.engine.trainer import Iteration, read_iterations
from plopcli.errors import PlopError
from plopcli.settings.sections import StepRecipe

if sys.platform != "win32":
    import resource


class MetricsLog:
    """Writes iterations to the metrics file and the event file, and one line per epoch to the log.

    Args:
        run: The run; the main process alone writes, all give their share of the figures.
        plan: The step's batches.
        recipe: The step's recipe.
        show: Called with (iterations done, a note on the last ones).
    """

    def __init__(self, run: Run, plan: BatchSchedule, recipe: StepRecipe, show: Callable[[int, str], None]) -> None:
        self.run, self.plan, self.epochs, self.show = run, plan, recipe.epochs, show
        #: Iterations whose gradients overflowed in fp16, or were not finite and tolerated: they moved nothing.
        self.skipped = 0
        # Of every part of the network that is trained, in terms of the rate that the metrics file holds.
        rates = learning_rates(recipe)
        self._factors = {
            part: rate / recipe.lr for part, rate in rates.items() if rate and (plan.step or part != "old")
        }
        self._terms: dict[str, float] = {}
        self._in_epoch = 0
        self._skipped_in_epoch = 0
        self._lost_in_epoch = 0
        self._last = time.perf_counter()
        self._pending: list[Iteration] = []

    def add(self, done: Iteration) -> None:
        """Takes an iteration; the host waits for the device only when ``output.print_every`` of them are there.

        Raises:
            PlopError: A loss term is not finite; all processes raise it together.
        """
        self._pending.append(done)
        if len(self._pending) == self.run.settings.output.print_every:
            self.flush()

    def flush(self) -> None:
        """Writes what was added since the last time.

        Raises:
            PlopError: As `add`.
        """
        if self._pending:
            pending, self._pending = self._pending, []
            self.record(pending)

    def start_clock(self) -> None:
        """Iterations begin, or go on after something else that took time."""
        self._last = time.perf_counter()

    def record(self, iterations: list[Iteration]) -> None:
        """Writes iterations that are done.

        Raises:
            PlopError: A loss term is not finite; all processes raise it together.
        """
        rows = [{"step": self.plan.step, **row} for row in read_iterations(iterations, self.run.process)]
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        speed = len(rows) * self.plan.batch / seconds
        if self.run.process.is_main:
            # Written first: the rows before a failure are what explains it.
            self.run.folder.append_metrics(rows)
            self._tell_events(rows, iterations, seconds)
        for row in rows:
            check_finite(row, self.plan.step)
        done = rows[-1]["iteration"] + 1
        self.run.status.trained(rows[-1], len(rows), seconds, f"{self._epoch(done - 1)} of {self.epochs}")
        for row in rows:
            self._add(row, speed)
        self.show(done, f"{speed:.0f} images/s")

    def _tell_events(self, rows: list[dict[str, Any]], iterations: list[Iteration], seconds: float) -> None:
        if not self.run.events.is_on:
            return
        self.run.events.iterations(rows, self._factors)
        figures = {
            "time/iteration (s)": seconds / len(rows),
            "time/waiting for images (s)": sum(done.waited for done in iterations) / len(rows),
            "time/images per second": len(rows) * self.plan.batch / seconds,
            "memory/peak (GiB)": peak_memory(self.run.process.device) / 2**30,
        }
        self.run.events.pace(self.plan.step, rows[-1]["iteration"], figures)

    def _epoch(self, iteration: int) -> int:
        """The epoch, from 1, that an iteration is of."""
        return iteration // self.plan.iterations_per_epoch + 1

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
        epoch = self._epoch(row["iteration"])
        counted = self._in_epoch - self._lost_in_epoch
        terms = ", ".join(f"{name} {value / counted:.4f}" for name, value in self._terms.items())
        reason = "not finite" if self._lost_in_epoch else "fp16 overflow"
        skipped = f", {self._skipped_in_epoch} iterations skipped ({reason})" if self._skipped_in_epoch else ""
        left = f", {self.run.status.left}" if self.run.status.left else ""
        self.run.log.say(
            f"  step {self.plan.step} epoch {epoch}/{self.epochs}: {terms}   {speed:.0f} images/s{skipped}{left}"
        )
        self.skipped += self._skipped_in_epoch
        self._terms, self._in_epoch, self._skipped_in_epoch, self._lost_in_epoch = {}, 0, 0, 0


def peak_memory(device: torch.device) -> int:
    """The most bytes that tensors took on a GPU so far; on the CPU, that this process took."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


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
