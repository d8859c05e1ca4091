"""Whatever happens, a command ends by itself: real programs with loader processes, given a deadline."""

from __future__ import annotations

import json
import os
import resource
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
from running import TINY

from plopcli.errors import DataError, MachineError
from plopcli.resolution.layers import Resolved, resolve_settings, settings_to_toml
from plopcli.runs.folder import LOCK, RunFolder

Make = Callable[..., Resolved]
#: Seconds for a program that has to end, start and a loaded machine included.
DEADLINE = 240
SHORT = {
    "method__name": "ft",
    "compute__gpus": 0,
    "output__overlays": 0,
    "scenario__task": "offline",
    "data__workers": 2,
}
LONG = SHORT | {"train__first__epochs": 10_000, "output__print_every": 1, "data__timeout": 3}


def _words(*words: str, program: tuple[str, ...] = ("-m", "plopcli")) -> list[str]:
    return [sys.executable, *program, *words]


def _run(settings: Resolved, **how: Any) -> list[str]:
    """The command that trains with ``settings``."""
    folder = settings.settings.run_folder.parent
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / f"{settings.settings.run_folder.name}.toml"
    config.write_text(settings_to_toml(settings.settings))
    return _words("run-scenario", "--config", str(config), "--preset", "none", **how)


class Program:
    """A command at work, all of whose processes are known."""

    def __init__(self, words: list[str], **more: Any) -> None:
        self.process = subprocess.Popen(
            words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True, **more
        )

    def ends(self, seconds: float = DEADLINE) -> str:
        """What it said, once it has ended, all its processes with it."""
        try:
            said = self.process.communicate(timeout=seconds)[1]
        except subprocess.TimeoutExpired:
            pytest.fail(f"still at work after {seconds} s: {self._processes()}")
        deadline = time.monotonic() + 5
        while self._processes():
            assert time.monotonic() < deadline, f"left behind: {self._processes()}"
            time.sleep(0.05)
        return said

    def fails(self, code: int) -> str:
        """What it said when it ended with ``code``: one message, no traceback."""
        said = self.ends()
        assert self.process.returncode == code, said
        assert said.count("Error: ") == 1, said
        assert "Traceback" not in said
        return said

    def _processes(self) -> list[int]:
        """Whoever is in its session."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                facts = (path / "stat").read_text().rpartition(") ")[2].split()
                if int(facts[3]) == self.process.pid and facts[0] != "Z":
                    found.append(int(path.name))
        return found

    def loaders(self, parent: int | None = None) -> list[int]:
        """Its loader processes: forks, which have its command line."""
        parent = self.process.pid if parent is None else parent
        command = Path(f"/proc/{parent}/cmdline").read_bytes()
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        return [int(child) for child in children if Path(f"/proc/{child}/cmdline").read_bytes() == command]

    def workers(self) -> list[int]:
        """Training processes that it has started."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]

    def wait_until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + DEADLINE
        while not condition():
            assert self.process.poll() is None, self.process.communicate()[1]
            assert time.monotonic() < deadline, "it has not come so far"
            time.sleep(0.05)

    def kill(self) -> None:
        for pid in self._processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def start() -> Iterator[Callable[..., Program]]:
    """Starts programs of which nothing is left at the end."""
    programs: list[Program] = []

    def begin(words: list[str], **more: Any) -> Program:
        programs.append(Program(words, **more))
        return programs[-1]

    yield begin
    for program in programs:
        program.kill()


@pytest.fixture
def own_data(toy_root: Path, tmp_path: Path) -> Path:
    """A data root of which a test may break what it likes; indexed, so that nobody looks at headers again."""
    return shutil.copytree(toy_root, tmp_path / "data")


def _cut(root: Path, pattern: str) -> Path:
    """Cuts an image short behind its header, as a disk does that filled up."""
    victim = max(root.rglob(pattern))
    victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    return victim


@pytest.mark.parametrize("processes", [1, 2])
def test_an_image_that_is_cut_off(tiny: Make, own_data: Path, start: Any, tmp_path: Path, processes: int) -> None:
    victim = _cut(own_data, "train_*.jpg")
    more = {"compute__processes": processes} if processes > 1 else {}
    said = start(_run(tiny(data__root=own_data, **SHORT, **more))).fails(DataError.exit_code)
    assert str(victim) in said
    assert "--resume" in said
    assert not (tmp_path / "run" / LOCK).exists()


MEMORY = """
import sys, torch
from plopcli.engine.trainer import Trainer
iterate = Trainer.iterate
def hungry(self, batches):
    if self.iteration == 2:
        torch.empty(1 << 60, dtype=torch.uint8)
    return iterate(self, batches)
Trainer.iterate = hungry
from plopcli.cli.app import main
sys.exit(main(sys.argv[1:]))
"""


def test_memory_that_runs_out_in_an_iteration(tiny: Make, start: Any) -> None:
    said = start(_run(tiny(**SHORT), program=("-c", MEMORY))).fails(MachineError.exit_code)
    assert "Memory ran out: " in said


@pytest.fixture(scope="module")
def measured(toy_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A finished run, and its data root, one test image of which has been cut off since."""
    folder = tmp_path_factory.mktemp("measured")
    root = shutil.copytree(toy_root, folder / "data")
    keys = TINY | {"data.dataset": "toy", "data.root": root, "run": folder / "run"}
    keys |= {key.replace("__", "."): value for key, value in SHORT.items()}
    settings = resolve_settings({}, assignments=[f"{key}={value}" for key, value in keys.items()], environment={})
    subprocess.run(_run(settings), check=True, capture_output=True, timeout=DEADLINE)
    _cut(root, "test_*.jpg")
    return folder / "run", root


@pytest.mark.parametrize(
    "words",
    [
        ("evaluate",),
        ("evaluate", "--processes", "2"),
        ("evaluate", "--evaluation", "full"),
        ("visualize",),
        ("predict",),
    ],
    ids=" ".join,
)
def test_a_broken_image_in_what_measures_and_shows(
    measured: tuple[Path, Path], start: Any, tmp_path: Path, words: tuple[str, ...]
) -> None:
    run, root = measured
    victim = max(root.rglob("test_*.jpg"))
    command, *more = words
    if command == "visualize":
        more = ["--count", "100", "--output", str(tmp_path / "out")]
    elif command == "predict":
        more = [str(victim), "--output", str(tmp_path / "out")]
    program = start(_words(command, str(run), *more))
    said = program.fails(DataError.exit_code)
    assert victim.name in said


def _many(root: Path, tmp_path: Path) -> Path:
    """A plain data set of so many pairs that `prepare` checks them in several processes: 600 links to 12 pairs."""
    source = root / "toy"
    folder = tmp_path / "many"
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    (folder / "classes.txt").write_text("".join(f"c{number}\n" for number in range(21)))
    images = sorted(source.rglob("train_*.jpg"))[:12]
    masks = {path.stem: path for path in source.rglob("train_*.png")}
    for number in range(600):
        image = images[number % len(images)]
        (folder / "images" / f"{number}.jpg").symlink_to(image)
        (folder / "masks" / f"{number}.png").symlink_to(masks[image.stem])
    return folder


def test_a_broken_and_a_dead_image_in_prepare(toy_root: Path, start: Any, tmp_path: Path) -> None:
    folder = _many(toy_root, tmp_path)
    (folder / "images" / "7.jpg").unlink()
    (folder / "images" / "7.jpg").write_bytes(b"\xff\xd8\xff")
    words = _words("prepare", "folder", "--data-path", str(folder))
    program = start(words)
    program.ends()
    assert program.process.returncode == DataError.exit_code
    # One that would never answer.
    (folder / "images" / "300.jpg").unlink()
    os.mkfifo(folder / "images" / "300.jpg")
    (folder / ".plop-index.npz").unlink()
    assert "2 image and mask pairs are unusable" in start(words).fails(DataError.exit_code)


def test_few_open_files_are_enough_or_told(tiny: Make, start: Any) -> None:
    def few(count: int) -> Callable[[], None]:
        return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (count, count))

    program = start(_run(tiny(**SHORT | {"data__workers": 8})), preexec_fn=few(24))
    said = program.fails(MachineError.exit_code)
    assert "Too many files are open" in said
    assert "ulimit -n" in said
    assert "data.workers" in said


REFUSED = """
import os, sys
genuine, started = os.fork, []
def fork():
    import inspect
    if any(frame.filename.endswith("loader_processes.py") for frame in inspect.stack()):
        started.append(1)
        if len(started) == 3:
            raise BlockingIOError(11, "Resource temporarily unavailable")
    return genuine()
os.fork = fork
from plopcli.cli.app import main
sys.exit(main(sys.argv[1:]))
"""


def test_processes_that_the_system_refuses(tiny: Make, start: Any) -> None:
    said = start(_run(tiny(**SHORT | {"data__workers": 4}), program=("-c", REFUSED))).fails(MachineError.exit_code)
    assert "refuses a further process" in said
    assert "--set data.workers=0" in said


@pytest.mark.parametrize("processes", [1, 2])
def test_a_loader_that_is_stopped_is_told(tiny: Make, start: Any, tmp_path: Path, processes: int) -> None:
    more = {"compute__processes": processes} if processes > 1 else {}
    program = start(_run(tiny(**LONG, **more)))
    program.wait_until(lambda: RunFolder(tmp_path / "run").read_metrics())
    parent = program.workers()[1] if processes > 1 else program.process.pid
    victim = program.loaders(parent)[0]
    os.kill(victim, signal.SIGSTOP)
    said = program.fails(MachineError.exit_code)
    assert f"(pid {victim}) has loaded no image for 3 seconds, for it is stopped" in said
    assert "data.timeout" in said
    if processes == 1:
        assert list((tmp_path / "run" / "checkpoints").glob("snapshot-*.pt")), "what was trained is saved"


@pytest.mark.slow
def test_slow_images_are_no_fault(tiny: Make, start: Any, tmp_path: Path) -> None:
    """An image takes 1.5 s and a batch of 8 takes 12 s; nothing is given up after 5 s."""
    slow = """
import sys, time
from plopcli.data.loading import TrainingImages
augmented = TrainingImages.augmented
def slow(*arguments):
    time.sleep(1.5)
    return augmented(*arguments)
TrainingImages.augmented = slow
from plopcli.cli.app import main
sys.exit(main(sys.argv[1:]))
"""
    program = start(_run(tiny(**SHORT | {"data__timeout": 5, "data__workers": 6}), program=("-c", slow)))
    said = program.ends()
    assert program.process.returncode == 0, said


@pytest.mark.parametrize(
    ("number", "processes"), [("SIGTERM", 1), pytest.param("SIGINT", 1, marks=pytest.mark.slow), ("SIGTERM", 2)]
)
def test_a_stop_gets_through_while_no_image_comes(
    tiny: Make, start: Any, tmp_path: Path, number: str, processes: int
) -> None:
    more = {"compute__processes": processes} if processes > 1 else {}
    program = start(_run(tiny(**LONG | {"data__timeout": 1000}, **more)))
    program.wait_until(lambda: RunFolder(tmp_path / "run").read_metrics())
    for parent in program.workers() or [program.process.pid]:
        for victim in program.loaders(parent):
            os.kill(victim, signal.SIGSTOP)
    time.sleep(3)
    os.kill(program.process.pid, getattr(signal, number))
    said = program.ends(40)
    assert program.process.returncode == 128 + getattr(signal, number)
    assert "Error" not in said
    if processes == 1:
        assert "step 0 is saved after iteration" in said
        assert list((tmp_path / "run" / "checkpoints").glob("snapshot-*.pt"))


def test_the_whole_job_is_stopped_in_good_order(tiny: Make, start: Any, tmp_path: Path) -> None:
    """A signal to all processes, as schedulers and terminals send it."""
    program = start(_run(tiny(**LONG)))
    program.wait_until(lambda: RunFolder(tmp_path / "run").read_metrics())
    os.killpg(program.process.pid, signal.SIGTERM)
    said = program.ends()
    assert program.process.returncode == 128 + signal.SIGTERM, said
    assert "step 0 is saved after iteration" in said


def test_loaders_do_not_outlive_a_killed_run(tiny: Make, start: Any, tmp_path: Path) -> None:
    program = start(_run(tiny(**LONG)))
    program.wait_until(lambda: RunFolder(tmp_path / "run").read_metrics())
    program.process.kill()
    program.ends()


@pytest.mark.parametrize(
    ("option", "processes"),
    [("size=64k", 1), pytest.param("size=64k", 2, marks=pytest.mark.slow), ("ro", 1), ("ro", 2)],
)
def test_shared_memory_of_nothing_is_enough(
    tiny: Make, start: Any, tmp_path: Path, option: str, processes: int
) -> None:
    """A container's /dev/shm may be tiny; where it cannot be used at all, several processes cannot find together."""
    more = {"compute__processes": processes} if processes > 1 else {}
    mount = f"mount -t tmpfs -o {option} tmpfs /dev/shm"
    if (
        os.geteuid()
        or subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True, check=False).returncode
    ):
        pytest.skip("mounting a file system is not permitted here")
    words = _run(tiny(**SHORT, **more))
    program = start(["unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "sh", *words])
    if (option, processes) == ("ro", 2):
        assert "Shared memory, through which processes work together" in program.fails(MachineError.exit_code)
        return
    said = program.ends()
    assert program.process.returncode == 0, said
    assert len(json.loads((tmp_path / "run" / "results.json").read_text())["steps"]) == 1
