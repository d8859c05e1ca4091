"""How much of a scenario is left, in seconds, from what its parts have taken so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from plopcli.devices.process import BatchLayout
from plopcli.engine.checks import batch_schedule
from plopcli.methods import get_method
from plopcli.methods.base import StepContext
from plopcli.scenarios.scenario import Scenario
from plopcli.settings.sections import RunSettings

#: An iteration of a later step in iterations of step 0, until one was measured: the old model's forward pass comes on
#: top of a forward pass and a backward one of twice its cost.
_LATER = 4 / 3
#: An image measured in images trained on, until one was measured: the forward pass alone.
_MEASURED = 1 / 3
#: An iteration of a phase in iterations of its step: both networks' forward passes, without the backward pass.
PHASE_COST = 0.5
#: What every measurement leaves of the weight of those before: the speed of about the last ten counts.
_KEPT = 0.9


@dataclass(frozen=True)
class StepWork:
    """What a step has to do.

    Args:
        iterations: Of training.
        images: Measured after training.
        validated: Images measured in between, altogether.
        phase: Iterations of the method's own training before, in which the network only runs forward.
    """

    iterations: int
    images: int
    validated: int = 0
    phase: int = 0


class Rate:
    """Seconds that a unit of work takes."""

    def __init__(self) -> None:
        self._first: float | None = None
        self._units = self._seconds = 0.0

    def add(self, units: int, seconds: float) -> None:
        """Takes up a measurement. The first one, in which things warm up, counts as long as it is the only one."""
        if units <= 0:
            return
        if self._first is None:
            self._first = seconds / units
            return
        self._units, self._seconds = _KEPT * self._units + units, _KEPT * self._seconds + seconds

    @property
    def value(self) -> float | None:
        """None where nothing was measured."""
        return self._seconds / self._units if self._units else self._first


class TimeLeft:
    """What is left of a run, up to step ``last``.

    Args:
        steps: What every step has to do.
        batch: Images of an iteration.
    """

    def __init__(self, steps: Sequence[StepWork], batch: int) -> None:
        self.steps = list(steps)
        #: The last step that is to be trained here.
        self.last = len(self.steps) - 1
        self._batch = batch
        # The first step has no old model, and often another recipe.
        self._training = (Rate(), Rate())
        self._measuring = Rate()

    def trained(self, step: int, iterations: int, seconds: float) -> None:
        """Iterations of ``step`` have taken so long, together."""
        self._training[step > 0].add(iterations, seconds)

    def measured(self, images: int, seconds: float) -> None:
        """Measuring images has taken so long, together."""
        self._measuring.add(images, seconds)

    def left(self, step: int, iterations: int) -> float | None:
        """Seconds from here to the end of step ``last``; None where nothing was measured yet.

        Args:
            step: The step that is being trained; earlier ones are done.
            iterations: Its iterations that are done.
        """
        first, later = self._training[0].value, self._training[1].value
        if first is None and later is None:
            return None
        first = later / _LATER if first is None and later is not None else first
        later = first * _LATER if later is None and first is not None else later
        assert first is not None
        assert later is not None
        measuring = self._measuring.value
        if measuring is None:
            measuring = first / self._batch * _MEASURED
        seconds = 0.0
        for number, work in enumerate(self.steps[step : self.last + 1], start=step):
            to_do: float = work.iterations - (iterations if number == step else 0)
            share = to_do / work.iterations if work.iterations else 0.0
            if number > step:
                to_do += work.phase * PHASE_COST
            seconds += to_do * (later if number else first) + (work.images + share * work.validated) * measuring
        return seconds


def time_left_of(settings: RunSettings, scenario: Scenario, layout: BatchLayout) -> TimeLeft:
    """The time_left of a whole scenario."""
    steps = []
    for step in range(scenario.steps):
        schedule, recipe = batch_schedule(settings, scenario, layout, step), settings.train.recipe(step)
        every = settings.train.validate_every
        validations = (recipe.epochs - 1) // every if every else 0
        validated = validations * len(scenario.evaluation(step, "val")) if validations else 0
        images = len(scenario.evaluation(step, settings.data.results_on))
        context = StepContext(step, scenario.class_counts(step), scenario.shares_classes)
        phase = get_method(settings.method.name)(settings.method, context).phase_epochs * schedule.iterations_per_epoch
        iterations = recipe.epochs * schedule.iterations_per_epoch
        steps.append(StepWork(iterations, images, validated, phase))
    return TimeLeft(steps, layout.total)
