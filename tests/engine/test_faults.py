"""What befalls a run in the middle of training: files that break, disks that fill, processes that die, all real."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from running import run_scenario

from plopcli.engine import faults, metrics_log
from plopcli.engine.faults import as_fault, errors_told
from plopcli.errors import DataError, MachineError, PlopError, UsageError
from plopcli.files.lock import holder_of
from plopcli.resolution.layers import Resolved, settings_to_toml
from plopcli.runs.checkpoint import load_checkpoint
from plopcli.runs.events import EventWriter
from plopcli.runs.folder import LOCK, RunFolder

Make = Callable[..., Resolved]
Strike = Callable[[], object]
#: Fine-tuning, long enough for a fault to find it at work.
LONG = {"method__name": "ft", "train__first__epochs": 30, "output__print_every": 1, "compute__gpus": 0}
SHORT = {
    "method__name": "ft",
    "output__print_every": 1,
    "compute__gpus": 0,
    "output__overlays": 1,
    "output__tensorboard": True,
}


@pytest.fixture
def own_data(toy_root: Path, tmp_path: Path) -> Path:
    """A data root of which a test may break what it likes."""
    shutil.copytree(toy_root, tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def strike_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Strike], None]:
    """Lets something happen when so many iterations have been recorded."""

    def arrange(iteration: int, strike: Strike) -> None:
        genuine = metrics_log.MetricsLog.record

        def record(self: Any, iterations: list[Any]) -> None:
            genuine(self, iterations)
            if iterations[-1].number == iteration:
                strike()

        monkeypatch.setattr(metrics_log.MetricsLog, "record", record)

    return arrange


def _fails(settings: Resolved, quiet: Console, kind: type[PlopError], **choices: Any) -> PlopError:
    with pytest.raises(kind) as caught:
        run_scenario(settings, console=quiet, **choices)
    assert not (settings.settings.run_folder / LOCK).exists(), "the folder is free again"
    return caught.value


@pytest.mark.parametrize("broken", ["vanished", "cut off"])
@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_breaks_in_the_middle_of_an_epoch_is_named(
    tiny: Make, own_data: Path, strike_at: Any, quiet: Console, tmp_path: Path, broken: str, workers: int
) -> None:
    victims = sorted((own_data / "toy").rglob("train_*.jpg"))
    assert victims

    def strike() -> None:
        for victim in victims:
            whole = victim.read_bytes()
            victim.unlink()
            if broken == "cut off":
                victim.write_bytes(whole[: len(whole) // 2])

    strike_at(1, strike)
    settings = tiny(data__root=own_data, data__workers=workers, **LONG)
    error = _fails(settings, quiet, DataError)
    assert any(str(victim) in error.message for victim in victims)
    assert ("does not exist" if broken == "vanished" else "cannot be decoded") in error.message
    for way in ("plop prepare toy", "--skip-bad", "--resume"):
        assert way in str(error.hint)
    assert len(RunFolder(tmp_path / "run").read_metrics()) >= 2


def test_a_data_set_that_has_gone_is_told_as_such(
    tiny: Make, own_data: Path, strike_at: Any, quiet: Console, tmp_path: Path
) -> None:
    strike_at(3, lambda: (own_data / "toy").rename(tmp_path / "elsewhere"))
    error = _fails(tiny(data__root=own_data, data__workers=0, **LONG), quiet, DataError)
    assert f"The data set's folder {own_data / 'toy'} has gone" in error.message
    assert "mount it again" in str(error.hint)


def test_a_killed_loader_process_is_told_as_such(tiny: Make, strike_at: Any, quiet: Console) -> None:
    killed: list[int] = []

    def strike() -> None:
        for child in multiprocessing.active_children():
            assert child.pid is not None
            killed.append(child.pid)
            os.kill(child.pid, signal.SIGKILL)

    strike_at(5, strike)
    error = _fails(tiny(data__workers=1, **LONG), quiet, MachineError)
    assert len(killed) == 1
    assert f"An image loader process (pid {killed[0]}) was killed: Killed" in error.message
    for way in ("memory ran out", "data.workers=N", "--resume"):
        assert way in str(error.hint)


def test_a_run_folder_that_was_removed_is_told_as_such(
    tiny: Make, strike_at: Any, quiet: Console, tmp_path: Path
) -> None:
    strike_at(2, lambda: shutil.rmtree(tmp_path / "run"))
    error = _fails(tiny(**LONG), quiet, MachineError)
    assert f"The run folder {tmp_path / 'run'} has gone" in error.message


@pytest.fixture
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A real file system of eight megabytes."""
    folder = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("mounting a file system is not permitted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _fill(disk: Path) -> None:
    with (disk / "ballast").open("ab", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1 << 8, 1):
            with suppress(OSError):
                while True:
                    file.write(b"\0" * size)
    assert shutil.disk_usage(disk).free == 0


MOMENTS = {
    "metrics": ("plopcli.runs.folder.RunFolder.append_metrics", "metrics.jsonl"),
    "events": ("plopcli.runs.events.EventWriter.step", "tensorboard"),
    "log": ("plopcli.console.log.RunLog.say", "log.txt"),
    "checkpoint": ("plopcli.engine.step.save_checkpoint", "step-1.pt"),
    "results": ("plopcli.engine.scenario_run.write_results", "results.json"),
    "curves": ("plopcli.visualization.predictions.plot_miou", "curves"),
    "overlays": ("plopcli.visualization.predictions.draw_overlays", "overlays"),
}


#: A file's last page may have room for a line more; it has none for these.
LARGER: dict[str, Callable[..., tuple[Any, ...]]] = {
    "metrics": lambda folder, rows: (folder, list(rows) * 100),
    "log": lambda log, message, *style: (log, message * 1000, *style),
}
QUICK = ("metrics", "checkpoint")


@pytest.mark.parametrize(
    "moment", [moment if moment in QUICK else pytest.param(moment, marks=pytest.mark.slow) for moment in MOMENTS]
)
def test_a_disk_that_fills_up(
    tiny: Make, small_disk: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Filled just before something is written in step 1: step 0 is intact, and room is all that it takes to go on."""
    run = RunFolder(small_disk / "run")
    place, file = MOMENTS[moment]
    owner, name = place.rsplit(".", 1)
    module, _, kind = owner.rpartition(".")
    target: Any = getattr(sys.modules[module], kind) if kind[0].isupper() else sys.modules[owner]
    genuine = getattr(target, name)

    def filled_before(*arguments: Any, **more: Any) -> Any:
        if run.checkpoint(0).exists():
            _fill(small_disk)
            arguments = LARGER.get(moment, lambda *same: same)(*arguments)
        return genuine(*arguments, **more)

    settings = tiny(run=run.path, scenario__task="19-1", **SHORT)
    with monkeypatch.context() as patch:
        patch.setattr(target, name, filled_before)
        if moment == "events":
            # Events wait in a buffer, and reach the disk when it is flushed.
            patch.setattr(EventWriter, "step", _flooded(filled_before))
        error = _fails(settings, quiet, MachineError)
    assert "The disk is full" in error.message
    assert file in error.message
    assert "free" in str(error)
    assert " MB" in str(error) or " kB" in str(error), "it says how much is needed"
    assert load_checkpoint(run.checkpoint(0)).step == 0, "verified on load"
    (small_disk / "ballast").unlink()
    results = run_scenario(settings, console=quiet, resume=True)
    assert [entry.step for entry in results.steps] == [0, 1]
    assert [(row["step"], row["iteration"]) for row in run.read_metrics()] == [
        (step, iteration) for step, count in ((0, 6), (1, 1)) for iteration in range(count)
    ]


def _flooded(step: Any) -> Any:
    def flooded(self: EventWriter, results: Any) -> None:
        for at in range(20_000):
            self.pace(0, at, {"noise": 0.0})
        step(self, results)

    return flooded


def test_a_disk_that_became_read_only(tiny: Make, small_disk: Path, quiet: Console) -> None:
    run = small_disk / "run"
    settings = tiny(run=run, scenario__task="offline", **SHORT)
    run_scenario(settings, console=quiet)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(UsageError, match="cannot be written: Read-only file system") as refused:
        run_scenario(settings, console=quiet, resume=True)
    assert "--run" in str(refused.value.hint)


STARVED = """
import resource, sys
import plopcli.engine.scenario_run, plopcli.visualization.predictions
from plopcli.cli.app import main
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + (400 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
sys.exit(main(sys.argv[1:]))
"""


def test_memory_that_runs_out_is_told_with_the_ways_out(tiny: Make, tmp_path: Path) -> None:
    """A process that the system gives no more memory: torch's own allocator fails."""
    settings = tiny(data__crop=512, train__batch=48, compute__gpus=0, data__workers=0, scenario__task="offline")
    config = tmp_path / "in.toml"
    config.write_text(settings_to_toml(settings.settings))
    words = [sys.executable, "-c", STARVED, "run-scenario", "--config", str(config), "--preset", "none"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == MachineError.exit_code, done.stderr
    assert "Memory ran out: " in done.stderr
    assert done.stderr.count("Error:") == 1
    assert "Traceback" not in done.stderr
    for way in ("compute.micro_batch", "compute.checkpointing", "--resume"):
        assert way in done.stderr
    assert not (tmp_path / "run" / LOCK).exists()


def _start(settings: Resolved, folder: Path) -> subprocess.Popen[str]:
    config = folder / "settings-in.toml"
    config.write_text(settings_to_toml(settings.settings))
    words = [sys.executable, "-m", "plopcli", "run-scenario", "--config", str(config), "--preset", "none"]
    return subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def test_two_runs_in_one_folder_and_a_killed_one(tiny: Make, tmp_path: Path, quiet: Console) -> None:
    run = tmp_path / "run"
    settings = tiny(run=run, data__workers=1, **(LONG | {"train__first__epochs": 10_000}))
    first = _start(settings, tmp_path)
    try:
        deadline = time.monotonic() + 200
        while not RunFolder(run).read_metrics():
            assert time.monotonic() < deadline, "training has not begun"
            assert first.poll() is None, first.communicate()
            time.sleep(0.1)
        for choices in ({"resume": True}, {"overwrite": True}, {}):
            with pytest.raises(UsageError, match=rf"in use by another run: process {first.pid} on "):
                run_scenario(settings, console=quiet, **choices)
        assert first.poll() is None, "the first one is not disturbed"
    finally:
        first.kill()
        first.communicate()
    assert (run / LOCK).exists()
    assert holder_of(run / LOCK) is None
    said = tmp_path / "said.txt"
    with said.open("w") as file:
        run_scenario(tiny(run=run, scenario__task="offline", **SHORT), console=Console(file=file), overwrite=True)
    assert "The lock of a run that has ended is taken over" in said.read_text()
    assert not (run / LOCK).exists()


def _told(error: Exception, settings: Resolved) -> PlopError:
    with pytest.raises(PlopError) as caught, errors_told(settings.settings):
        raise error
    assert caught.value.__cause__ is error, "--debug shows where it came from"
    return caught.value


@pytest.mark.parametrize(
    ("error", "message", "way"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), "Memory ran out", "micro_batch"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "Memory ran out", "checkpointing"),
        (MemoryError(), "Memory ran out", "micro_batch"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "Memory ran out", "micro_batch"),
        (RuntimeError("Error while creating shared memory segment nccl-a1B2c3"), "Shared memory", "--shm-size"),
        (RuntimeError("can't start new thread"), "process or thread", "ulimit -u"),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "process or thread", "data.workers=0"),
        (OSError(errno.EMFILE, "Too many open files", "a.jpg"), "Too many files", "ulimit -n"),
        (OSError(errno.EIO, "Input/output error", "x.pt"), "The disk under x.pt failed", "--resume"),
        (OSError(errno.EROFS, "Read-only file system", "log.txt"), "log.txt cannot be written", "--resume"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "The GPU failed", "nvidia-smi"),
    ],
)  # fmt: skip
def test_what_the_system_says_becomes_one_message(tiny: Make, error: Exception, message: str, way: str) -> None:
    told = _told(error, tiny())
    assert isinstance(told, MachineError)
    assert message in told.message
    assert way in str(told.hint)
    assert "\n" not in told.message


def test_bugs_and_failures_of_others_stay_what_they_are(tiny: Make) -> None:
    settings = tiny().settings
    for error in (
        RuntimeError("shapes cannot be multiplied"),
        RuntimeError("[gloo/transport/tcp] Connection closed by peer"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "x"),
    ):
        (settings.run_folder).mkdir(exist_ok=True)
        assert as_fault(error, settings) is None
        with pytest.raises(type(error)) as same, errors_told(settings):
            raise error
        assert same.value is error
    with pytest.raises(KeyError), errors_told(settings):
        raise KeyError("a bug")


def test_a_full_disk_says_how_much_a_checkpoint_takes_even_before_there_is_one(tiny: Make, tmp_path: Path) -> None:
    settings = tiny().settings
    before = faults.disk_full("x", settings)
    assert "A checkpoint of this run takes" in str(before.hint)
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "step-0.pt").write_bytes(b"\0" * 7_000_000)
    assert "A checkpoint of this run takes 7.0 MB" in str(faults.disk_full("x", settings).hint)
