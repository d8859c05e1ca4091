"""Results of several processes, in order; and what becomes of processes that fail."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Generator
from typing import Any

import numpy as np
import pytest

from plopcli.data.loader_processes import LoaderError, in_processes
from plopcli.errors import DataError, MachineError

TIMEOUT = 60.0


@pytest.fixture(autouse=True)
def _nobody_is_left() -> Generator[None]:
    yield
    assert not multiprocessing.active_children()


def _square(number: int) -> int:
    return number * number


@pytest.mark.parametrize("count", [1, 3, 8])
def test_results_come_in_order(count: int) -> None:
    batches = [[number, number + 1] for number in range(20)]
    expected = [[_square(a), _square(b)] for a, b in batches]
    assert list(in_processes(_square, list, batches, count, TIMEOUT)) == expected


def test_arrays_of_any_size_and_layout_arrive_whole_and_can_be_written() -> None:
    def draw(seed: int) -> Any:
        values = np.random.default_rng(seed).integers(0, 256, (seed * 700, 900, 3), dtype=np.uint8)
        return values, values[:, ::-1], {"mean": values.astype(np.float64).mean((0, 1)) if seed else None}

    for seed, ((values, mirrored, facts),) in enumerate(in_processes(draw, tuple, [[0], [1], [5]], 2, TIMEOUT)):
        number = (0, 1, 5)[seed]
        expected, expected_mirrored, expected_facts = draw(number)
        assert np.array_equal(values, expected)
        assert np.array_equal(mirrored, expected_mirrored)
        assert np.array_equal(facts["mean"], expected_facts["mean"])
        values += 1


class _UnpicklableError(Exception):
    def __init__(self, first: str, second: str) -> None:
        super().__init__(first + second)


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (DataError("It is broken.", "Mend it."), DataError, "It is broken"),
        (ZeroDivisionError("by zero"), ZeroDivisionError, "by zero"),
        (MemoryError("of an image"), MemoryError, "of an image"),
        (_UnpicklableError("a", "b"), RuntimeError, "_UnpicklableError: ab"),
    ],
)
def test_an_error_arrives_at_its_place(error: Exception, kind: type[Exception], words: str) -> None:
    def load(number: int) -> int:
        if number == 5:
            raise error
        return number

    results = in_processes(load, sum, [[number] for number in range(20)], 3, TIMEOUT)
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(kind, match=words):
        next(results)


def test_closing_ends_processes_that_work_wait_or_are_stopped() -> None:
    def load(number: int) -> int:
        if number == 2:
            time.sleep(1000)
        return os.getpid()

    results = in_processes(load, sum, ([number] for number in range(10_000)), 3, TIMEOUT)
    os.kill(next(results), signal.SIGSTOP)
    start = time.monotonic()
    results.close()
    assert time.monotonic() - start < 3


def test_a_process_that_is_killed_is_told() -> None:
    results = in_processes(
        lambda _: os.getpid(), sum, ([number] for number in range(10_000)), 1, TIMEOUT, ("Do this.", "")
    )
    victim = next(results)
    os.kill(victim, signal.SIGKILL)
    with pytest.raises(LoaderError, match=rf"pid {victim}\) was killed: Killed") as caught:
        list(results)
    assert "memory ran out" in str(caught.value.hint)
    assert "Do this." in str(caught.value.hint)


def test_a_process_that_stands_still_is_told_and_a_slow_one_is_not() -> None:
    def load(seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    assert list(in_processes(load, sum, [[1.5, 1.5, 1.5]], 1, 3.0)) == [4.5]
    with pytest.raises(MachineError, match="has loaded no image for 2 seconds") as caught:
        list(in_processes(load, sum, [[0.0], [1000.0]], 2, 2.0, ("", "Do that.")))
    assert "Do that." in str(caught.value.hint)


def test_signals_of_a_whole_job_are_left_to_the_main_process() -> None:
    results = in_processes(lambda _: os.getpid(), sum, [[number] for number in range(50)], 1, TIMEOUT)
    victim = next(results)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        os.kill(victim, number)
    assert list(results) == [victim] * 49


def test_processes_that_cannot_be_started_leave_none_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine, calls = os.fork, []

    def fork() -> int:
        calls.append(1)
        if len(calls) == 3:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return genuine()

    monkeypatch.setattr(os, "fork", fork)
    with pytest.raises(BlockingIOError):
        list(in_processes(_square, list, [[1]] * 10, 4, TIMEOUT))
