"""Two real processes against one: losses, thresholds, evaluation, whole runs, and what becomes of failures."""

from __future__ import annotations

import copy
import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from drawn_outputs import data_of
from rich.console import Console
from running import evaluate_path, run_scenario

from plopcli.cli.app import main
from plopcli.data.batches import Batch
from plopcli.devices.launch import launch
from plopcli.devices.precision import Precision
from plopcli.devices.process import Process, this_process
from plopcli.engine.optim import build_optimizer, build_schedule, prepare_training
from plopcli.engine.trainer import Trainer, read_iterations
from plopcli.errors import DataError, MachineError
from plopcli.methods import get_method
from plopcli.methods.base import StepContext
from plopcli.models.abn import synchronise_statistics
from plopcli.models.segmenter import Segmenter, build_segmenter
from plopcli.resolution.layers import Resolved, settings_to_toml
from plopcli.settings.sections import ComputeSettings, ModelSettings, StepRecipe

Make = Callable[..., Resolved]
CPU = torch.device("cpu")
TWO = ComputeSettings(gpus=0, processes=2, timeout=120)
ITERATIONS, BATCH, SIZE, CLASSES = 10, 4, 32, (4, 2)
METHODS = ("ft", "plop", "mib", "ewc")


@pytest.fixture(autouse=True)
def _one_thread_each(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Sums over as many threads as in the workers."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _batches(dtype: torch.dtype, process: Process, micro: int) -> list[list[Batch]]:
    """The share of ``process`` in each iteration, as micro-batches."""
    generator = torch.Generator().manual_seed(3)
    shares = []
    for _ in range(ITERATIONS):
        images = torch.randn(BATCH, 3, SIZE, SIZE, generator=generator, dtype=torch.float64).to(dtype)
        labels = torch.randint(0, CLASSES[1] + 1, (BATCH, SIZE, SIZE), generator=generator)
        labels = torch.where(labels > 0, labels + CLASSES[0] - 1, labels)
        labels[:, :, :3] = 255
        share = BATCH // process.world
        own = slice(process.rank * share, (process.rank + 1) * share)
        parts = zip(images[own].split(micro), labels[own].split(micro), strict=True)
        shares.append([Batch(*part) for part in parts])
    return shares


def _models(dtype: torch.dtype) -> tuple[Segmenter, Segmenter]:
    torch.manual_seed(0)
    settings = ModelSettings(backbone="resnet18", width=8, head_channels=16, pretrained=False, output_stride=8)
    model = build_segmenter(settings, CLASSES[:1]).to(dtype)
    old = copy.deepcopy(model).eval().requires_grad_(False)
    model.add_classifier(CLASSES[1])
    return model, old


def _train(name: str, dtype: torch.dtype, process: Process, *, norms: str, micro: int | None = None) -> dict[str, Any]:
    """Losses of some iterations, and what the method has prepared."""
    micro = micro or BATCH // process.world
    model, old = _models(dtype)
    kind = get_method(name)
    method = kind(kind.Settings(), StepContext(1, CLASSES))
    if name == "ewc":
        generator = torch.Generator().manual_seed(5)
        fisher = {n: torch.rand(p.shape, generator=generator).to(dtype) for n, p in old.named_parameters()}
        carried = {"method": "ewc", "calls": 0, "carried": {"fisher": fisher}, "running": {"fisher": {}}}
        method.load_carried_state(carried, same_step=False)
    method.initialise(model, old)
    shares = _batches(dtype, process, micro)
    images = [batch for share in shares for batch in share]
    method.before_step(data_of(lambda: iter(images), lambda pictures: old(pictures), process.sum))
    recipe = StepRecipe(lr=0.01, epochs=1, freeze_norm="all" if norms == "frozen" else "none")
    prepare_training(model, method, recipe)
    if norms == "synchronised" and process.world > 1:
        synchronise_statistics(model)
    optimizer = build_optimizer(model, method, recipe)
    schedule = build_schedule(optimizer, recipe, ITERATIONS)
    precision = Precision("float32", CPU)
    trainer = Trainer(model, old, method, optimizer, schedule, precision, process, BATCH // process.world // micro)
    done = [trainer.iterate(share) for share in shares]
    rows = read_iterations(done, process)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    return {"terms": [row["terms"] for row in rows], "prepared": method.report(), "state": state}


CASES = [(name, dtype, "frozen") for name in METHODS for dtype in (torch.float64, torch.float32)]
CASES += [("plop", torch.float64, "synchronised"), ("mib", torch.float64, "synchronised")]


def _cases(cases: list[tuple[str, torch.dtype, str]], compute: ComputeSettings) -> list[dict[str, Any]] | None:
    with this_process(compute) as process:
        trained = [_train(name, dtype, process, norms=norms) for name, dtype, norms in cases]
        trained.append(_train("plop", torch.float64, process, norms="frozen", micro=1))
        return trained if process.is_main else None


def test_two_processes_give_the_losses_of_one() -> None:
    together = launch(_cases, 2, CASES, TWO)
    for (name, dtype, norms), shared in zip(CASES, together, strict=False):
        alone = _train(name, dtype, Process(CPU), norms=norms)
        tolerance = 1e-8 if dtype == torch.float64 else 1e-4
        assert len(alone["terms"]) == ITERATIONS
        for own, theirs in zip(alone["terms"], shared["terms"], strict=True):
            assert own == pytest.approx(theirs, rel=tolerance), (name, dtype, norms)
        assert own != alone["terms"][0], "nothing was trained"
        assert shared["prepared"] == alone["prepared"], "thresholds are those of all images"
        for key, tensor in alone["state"].items():
            torch.testing.assert_close(shared["state"][key], tensor, rtol=100 * tolerance, atol=tolerance)
    # Accumulating over micro-batches in each of two processes: the same again.
    for own, theirs in zip(together[2]["terms"], together[-1]["terms"], strict=True):
        assert own == pytest.approx(theirs, rel=1e-8)


CHANGES = {
    "method__name": "plop",
    "train__later__freeze_norm": "all",
    "compute__gpus": 0,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("processes")


@pytest.fixture
def finished(tiny: Make, folder: Path, quiet: Console) -> Path:
    """A run of one process."""
    run = folder / "one"
    if not run.exists():
        run_scenario(tiny(run=run, **CHANGES), console=quiet)
    return run


def _rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_on_two_processes(tiny: Make, finished: Path, quiet: Console) -> None:
    alone, shared = finished, finished.parent / "two"
    two = run_scenario(tiny(run=shared, compute__processes=2, output__tensorboard=True, **CHANGES), console=quiet)
    # Norms of step 0 are synchronised: the very same training, up to float noise, which training amplifies.
    first, other = _rows(alone), _rows(shared)
    assert [(row["step"], row["iteration"]) for row in other] == [(row["step"], row["iteration"]) for row in first]
    assert other[0]["loss"] == pytest.approx(first[0]["loss"], rel=1e-4)
    assert other[3]["loss"] == pytest.approx(first[3]["loss"], rel=1e-2)
    assert [entry.images for entry in two.steps] == [23] * 3
    log = (shared / "log.txt").read_text()
    assert log.count("step 0 epoch 1/1") == 1
    assert "8 = 2 CPU processes x 4 x 1 accumulation" in log
    assert "synchronised over 2 processes, 8 images" in log
    assert json.loads((shared / "environment.json").read_text())["processes"] == 2
    assert len(list((shared / "tensorboard").iterdir())) == 1
    stored = json.loads((shared / "results.json").read_text())
    again = evaluate_path(shared, quiet)
    assert [step.iou for step in again.steps] == [step["iou"] for step in stored["steps"]]


def test_an_odd_number_of_images_is_measured_exactly(finished: Path, quiet: Console) -> None:
    checkpoint = finished / "checkpoints" / "step-2.pt"
    one = evaluate_path(checkpoint, quiet)
    two = evaluate_path(checkpoint, quiet, processes=2)
    assert one.steps[0].images == 23
    assert one == two


def _start(settings: Resolved, folder: Path, *more: str) -> subprocess.Popen[str]:
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "settings-in.toml"
    config.write_text(settings_to_toml(settings.settings))
    words = [sys.executable, "-m", "plopcli", "run-scenario", "--config", str(config), "--preset", "none", *more]
    return subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def _workers(pid: int) -> list[int]:
    """Workers of the launcher ``pid``, by rank; multiprocessing's own helper process aside."""
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        variables = Path(f"/proc/{child}/cmdline").read_bytes()
        if b"spawn_main" in variables:
            found.append(int(child))
    return found


def _alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def test_a_killed_worker_ends_all_and_is_named(tiny: Make, tmp_path: Path) -> None:
    run = tmp_path / "killed"
    settings = tiny(run=run, compute__gpus=0, compute__processes=2, train__first__epochs=10_000, method__name="ft")
    process = _start(settings, tmp_path)
    try:
        deadline = time.monotonic() + 120
        while not (run / "metrics.jsonl").exists():
            assert time.monotonic() < deadline, "training has not begun"
            assert process.poll() is None
            time.sleep(0.1)
        workers = _workers(process.pid)
        assert len(workers) == 2
        os.kill(workers[1], signal.SIGKILL)
        message = process.communicate(timeout=60)[1]  # far less than the processes' own patience
    finally:
        process.kill()
    assert process.returncode == MachineError.exit_code
    assert f"Process 1 of 2 (pid {workers[1]}) was killed by SIGKILL" in message
    assert message.count("Error:") == 1
    assert "Traceback" not in message
    assert not any(_alive(pid) for pid in workers)


def test_a_workers_error_is_told_once(toy_root: Path, tiny: Make, tmp_path: Path, quiet: Console) -> None:
    root = tmp_path / "data"
    root.mkdir()
    subprocess.run(["cp", "-r", str(toy_root / "toy"), str(root / "toy")], check=True)
    settings = tiny(data__root=root, run=tmp_path / "run", compute__gpus=0, compute__processes=2, data__workers=0)
    # Its header is whole, so that only decoding it in the middle of training finds out.
    broken = max((root / "toy").rglob("train_*.jpg"), key=lambda path: path.name)
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
    with pytest.raises(DataError, match=rf"Process \d of 2: .*{broken.name}"):
        run_scenario(settings, console=quiet)


def test_wrong_arguments_are_refused_before_anything_starts(
    tiny: Make, tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plopcli.devices.launch.elastic_launch", None)
    with pytest.raises(DataError, match="--no-pretrained"):
        run_scenario(tiny(compute__gpus=0, compute__processes=2, model__pretrained="true"), console=quiet)


def _torchrun(*words: str) -> subprocess.CompletedProcess[str]:
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--no-python", "--"]
    plop = str(Path(sys.executable).parent / "plop")
    return subprocess.run([*start, plop, *words], capture_output=True, text=True, timeout=120, check=False)


def test_torchruns_group_is_joined(finished: Path) -> None:
    done = _torchrun("evaluate", str(finished / "checkpoints" / "step-2.pt"), "--json")
    assert done.returncode == 0, done.stderr
    stored = json.loads((finished / "results.json").read_text())["steps"][-1]
    assert json.loads(done.stdout)["steps"][0]["iou"] == stored["iou"]


def test_an_error_under_torchrun_is_told_once(finished: Path, tmp_path: Path) -> None:
    """One that all processes meet in the middle of training."""
    words = ["--config", str(finished / "settings.toml"), "--run", str(tmp_path / "run"), "--method", "ft"]
    done = _torchrun("run-scenario", *words, "--preset", "none", "--lr", "1e30", "--epochs", "3")
    assert done.returncode != 0
    assert done.stderr.count("is not finite at step 0") == 1
    assert (tmp_path / "run" / "metrics.jsonl").exists()


def test_slurms_step_is_joined(finished: Path) -> None:
    checkpoint = finished / "checkpoints" / "step-2.pt"
    step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_TASKS_PER_NODE": "2"}
    step |= {"SLURM_JOB_ID": str(os.getpid()), "SLURM_NODEID": "0"}
    words = [sys.executable, "-m", "plopcli", "evaluate", str(checkpoint), "--json"]
    tasks = [
        subprocess.Popen(
            words,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | step | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
        )
        for rank in range(2)
    ]
    answers = [task.communicate(timeout=120) for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], answers
    stored = json.loads((finished / "results.json").read_text())["steps"][-1]
    assert json.loads(answers[0][0])["steps"][0]["iou"] == stored["iou"]
    assert answers[1][0] == "", "the main process alone speaks"


def _late(compute: ComputeSettings) -> float:
    with this_process(compute) as process:
        if process.rank == 1:
            time.sleep(1.0)
        start = time.monotonic()
        process.barrier()
        return time.monotonic() - start


def _full(compute: ComputeSettings) -> None:
    with this_process(compute) as process:
        if process.rank == 1:
            raise OSError(errno.ENOSPC, "No space left on device", "/full")
        process.barrier()


def test_a_barrier_holds_and_a_full_disk_is_the_machines_fault() -> None:
    assert launch(_late, 2, TWO) > 0.5
    with pytest.raises(MachineError, match="Process 1 of 2: /full: No space left on device"):
        launch(_full, 2, TWO)


def test_evaluation_takes_processes_on_the_cpu_only(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = finished / "checkpoints" / "step-2.pt"
    assert main(["evaluate", str(checkpoint), "--gpus", "1", "--processes", "2"]) == 2
    assert "--processes 2 is for the CPU" in capsys.readouterr().err
