"""What a run says about itself while it goes on: where it is, its losses, its figures so far, and the time left."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from plopcli.console.live import Around, clock
from plopcli.console.log import RunLog
from plopcli.engine.eta import TimeLeft
from plopcli.runs.results import Results

_NAMES_SHOWN = 4


class Status:
    """Keeps what is shown around the bars of a run up to date.

    Args:
        log: Where it is shown.
        title: What the run is.
        time_left: What is left of it.
    """

    def __init__(self, log: RunLog, title: str, time_left: TimeLeft) -> None:
        self._log, self._title, self.time_left = log, title, time_left
        self._step, self._learned = 0, ""
        self._epoch, self._losses, self._figures = "", "", ""
        self._left: float | None = None

    def takes_up(self, results: Results) -> None:
        """Earlier steps are there already, with the time that they took."""
        for entry in results.steps:
            if entry.step < len(self.time_left.steps) and entry.train_seconds is not None:
                self.time_left.trained(entry.step, self.time_left.steps[entry.step].iterations, entry.train_seconds)
        if results.steps:
            self.measured(results)

    def begin(self, step: int, learned: list[str]) -> None:
        """A step begins, or goes on."""
        more = f" and {len(learned) - _NAMES_SHOWN} more" if len(learned) > _NAMES_SHOWN else ""
        self._step, self._learned = step, ", ".join(learned[:_NAMES_SHOWN]) + more
        self._epoch = self._losses = ""
        self._show()

    def trained(self, row: Mapping[str, Any], iterations: int, seconds: float, epoch: str) -> None:
        """Iterations of the step are done.

        Args:
            row: The last of them, as in the metrics file.
            iterations: How many.
            seconds: What they took together.
            epoch: The one that is under way, as in ``3 of 30``.
        """
        self.time_left.trained(self._step, iterations, seconds)
        terms = " + ".join(f"{name} {value:.3g}" for name, value in row["terms"].items())
        self._epoch, self._losses = f"epoch {epoch}", f"loss {row['loss']:.4g} = {terms}   lr {row['lr']:.3g}"
        self._left = self.time_left.left(self._step, row["iteration"] + 1)
        self._show()

    def measured(self, results: Results) -> None:
        """Steps are measured: the results so far."""
        alls = [(entry.step, entry.miou.all) for entry in results.steps]
        shown = ", ".join("–" if value is None else f"{value:.1f}" for _, value in alls)
        self._figures = f"mIoU after step{'s' if len(alls) > 1 else ''} {_range([step for step, _ in alls])}: {shown}"
        self._show()

    @property
    def left(self) -> str:
        """The time that the run still takes, or nothing where that is unknown."""
        return "" if self._left is None else f"{clock(self._left)} left in the run"

    def _show(self) -> None:
        steps = len(self.time_left.steps)
        place = f"step {self._step} ({self._step + 1} of {steps})"
        heading = f"{self._title}: {place}{', ' + self._epoch if self._epoch else ''}: {self._learned}"
        until = ""
        if self._left is not None:
            end = time.localtime(time.time() + self._left)
            until = f"{self.left}, until {time.strftime('%H:%M' if self._left < 43_200 else '%a %d %b %H:%M', end)}"
        brief = ", ".join(part for part in (self._epoch, self.left) if part)
        self._log.around = Around(heading, (self._losses, self._figures, until), brief)


def _range(steps: list[int]) -> str:
    return f"{steps[0]} to {steps[-1]}" if len(steps) > 1 else str(steps[0])
