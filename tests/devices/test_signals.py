"""Signals that ask to stop: at once, deferred, ignored, passed on; and the numbers that processes agree on."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import torch

from plopcli.devices import signals
from plopcli.devices.flags import AsyncFlags
from plopcli.devices.process import Process
from plopcli.devices.signals import deferred_for, signals_caught, signals_deferred, stop_asked
from plopcli.errors import StoppedError


@pytest.fixture(autouse=True)
def _nothing_is_ignored() -> Iterator[None]:
    """As SIGINT would be where pytest runs in the background of a shell, and SIGHUP under nohup."""
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
        signal.SIGHUP: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    }
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def _send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.01)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 138), (signal.SIGHUP, 129)])
def test_a_signal_ends_the_work_at_once_and_handlers_come_back(number: int, code: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(StoppedError) as stopped, signals_caught():
        _send(number)
    assert stopped.value.exit_code == code
    assert signal.getsignal(number) is before
    assert stop_asked() == 0


def test_ctrl_c_is_what_it_always_was() -> None:
    with pytest.raises(KeyboardInterrupt), signals_caught():
        _send(signal.SIGINT)


def test_a_deferred_signal_waits_for_the_end() -> None:
    done = []

    def work() -> None:
        with signals_caught(), signals_deferred():
            with signals_deferred():
                _send(signal.SIGTERM)
            assert stop_asked() == signal.SIGTERM
            _send(signal.SIGTERM)
            done.append("iteration")

    with pytest.raises(StoppedError):
        work()
    assert done == ["iteration"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_wait_at_once_or_after_a_while(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(grace: float, *, before: bool = False) -> float:
        with pytest.raises(StoppedError) as stopped, signals_caught(), signals_deferred():  # noqa: PT012
            if before:
                _send(number)
            start = time.monotonic()
            try:
                with deferred_for(grace):
                    if not before:
                        _send(number)
                    time.sleep(20)
            finally:
                took = time.monotonic() - start
        assert stopped.value.exit_code == 128 + number
        return took

    assert wait(0) < 1
    assert wait(0, before=True) < 1
    if number == signal.SIGTERM:
        monkeypatch.setattr(signals, "_SAME", 0.2)
        assert 0.5 <= wait(0.5) < 2
        assert 0.5 <= wait(0.5, before=True) < 2


def test_a_wait_that_ends_in_time_leaves_the_signal_deferred() -> None:
    def work() -> None:
        with signals_caught(), signals_deferred():
            with deferred_for(1.5):
                _send(signal.SIGTERM)
            time.sleep(2)
            done.append("iteration")

    done: list[str] = []
    with pytest.raises(StoppedError):
        work()
    assert done == ["iteration"]


def test_a_second_ctrl_c_ends_even_what_defers_it_and_an_echo_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    done = []

    def work() -> None:
        with signals_caught(), signals_deferred():
            _send(signal.SIGINT)
            _send(signal.SIGINT)  # a launcher passes on what its processes got as well
            done.append("first")
            monkeypatch.setattr(signals, "_SAME", 0.0)
            _send(signal.SIGTERM)
            done.append("second")
            _send(signal.SIGINT)
            done.append("third")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["first", "second"]


def test_ignored_signals_stay_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals_caught():
            _send(signal.SIGHUP)
            assert stop_asked() == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_launcher_passes_signals_on(tmp_path: object) -> None:
    program = (
        "import multiprocessing, os, signal, time\n"
        "from plopcli.devices.signals import signals_caught, signals_forwarded\n"
        "from plopcli.errors import StoppedError\n"
        "def work():\n"
        "    try:\n"
        "        with signals_caught():\n"
        "            print('ready', flush=True); time.sleep(60)\n"
        "    except StoppedError as stopped:\n"
        "        print('worker', stopped.exit_code, flush=True)\n"
        "if __name__ == '__main__':\n"
        "    with signals_forwarded():\n"
        "        process = multiprocessing.get_context('fork').Process(target=work); process.start(); process.join()\n"
        "    print('launcher goes on', flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout is not None
        assert launcher.stdout.readline() == "ready\n"
        launcher.send_signal(signal.SIGUSR1)
        assert launcher.stdout.read() == "worker 138\nlauncher goes on\n"


def test_a_stop_keeps_its_meaning_between_processes() -> None:
    stopped = pickle.loads(pickle.dumps(StoppedError(15, "Stopped.", "Go on.")))
    assert (stopped.exit_code, stopped.signal, stopped.message, stopped.hint) == (143, 15, "Stopped.", "Go on.")


def test_a_process_alone_needs_no_vote() -> None:
    ballot = AsyncFlags(Process(torch.device("cpu")))
    assert ballot.without_waiting(1) == 1
    assert ballot.without_waiting(0) == 0
    assert ballot.now([15, 0]) == [15, 0]
