"""The time that is left."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from plopcli.engine.eta import Rate, StepWork, TimeLeft, time_left_of
from plopcli.engine.scenario_run import ScenarioChoices, check_run_scenario
from plopcli.resolution.layers import Resolved

THREE = [StepWork(100, 50), StepWork(10, 60), StepWork(10, 70)]


def test_nothing_is_known_before_anything_was_measured() -> None:
    assert TimeLeft(THREE, 8).left(0, 0) is None


def test_first_and_later_steps_count_apart() -> None:
    time_left = TimeLeft(THREE, 8)
    time_left.trained(0, 10, 20.0)
    time_left.measured(50, 5.0)
    time_left.trained(1, 2, 6.0)
    # 6 and 10 iterations of 3 s; 60 and 70 images of 0.1 s
    assert time_left.left(1, 4) == pytest.approx(6 * 3 + 10 * 3 + 6 + 7)
    assert time_left.left(0, 90) == pytest.approx(10 * 2 + 20 * 3 + 5 + 6 + 7)
    assert time_left.left(2, 10) == pytest.approx(7)


def test_what_was_not_measured_yet_is_estimated_from_the_rest() -> None:
    time_left = TimeLeft(THREE, 8)
    time_left.trained(0, 10, 10.0)
    image = 1 / 8 / 3
    assert time_left.left(0, 0) == pytest.approx(100 + 20 * 4 / 3 + 180 * image)
    later = TimeLeft(THREE, 8)
    later.trained(1, 1, 4.0)
    assert later.left(0, 99) == pytest.approx(3 + 20 * 4 + 180 * 3 * image)


def test_warming_up_is_forgotten_and_the_recent_counts_most() -> None:
    rate = Rate()
    rate.add(0, 5.0)
    assert rate.value is None
    rate.add(2, 60.0)
    assert rate.value == 30.0
    rate.add(2, 2.0)
    assert rate.value == 1.0
    for _ in range(50):
        rate.add(2, 4.0)
    assert rate.value == pytest.approx(2.0, abs=0.01)


def test_the_outlook_of_a_scenario(tiny: Callable[..., Resolved], quiet: object) -> None:
    from plopcli.devices.process import planned_process

    resolved = tiny(train__first__epochs=5, train__validate_every=2)
    process = planned_process(resolved.settings.compute)
    run, _ = check_run_scenario(resolved, ScenarioChoices(), process=process, console=quiet)  # type: ignore[arg-type]
    time_left = time_left_of(run.settings, run.scenario, run.layout)
    assert [work.iterations for work in time_left.steps] == [30, 1, 1]
    assert [work.images for work in time_left.steps] == [23] * 3
    assert time_left.steps[0].validated == 2 * 16
    assert time_left.steps[1].validated == 0
