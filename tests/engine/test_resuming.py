"""Runs that stop in the middle of a step and go on: the end is that of a run that never stopped."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from running import run_scenario, run_single_step
from torch import nn
from torture import differences

from plopcli.cli.resolution import resolve
from plopcli.engine import snapshots
from plopcli.errors import DamagedFileError, DataError, StoppedError, UsageError
from plopcli.methods.plop import Plop
from plopcli.resolution.layers import Resolved, settings_to_toml
from plopcli.runs.folder import RunFolder
from plopcli.runs.snapshot import Snapshot, newest_snapshot, read_snapshot, snapshot_paths

Make = Callable[..., Resolved]
#: 12 iterations in step 0, 2 epochs of 1 or 2 in later ones.
CHANGES = {
    "method__name": "plop",
    "data__workers": 0,
    "train__first__epochs": 2,
    "train__later__epochs": 3,
    "train__validate_every": 1,
    "output__print_every": 4,
    "output__tensorboard": True,
}


@pytest.fixture
def make(tiny: Make) -> Make:
    return lambda **changes: tiny(**{**CHANGES, **changes})


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resuming")


@pytest.fixture
def undisturbed(make: Make, folders: Path, quiet: Console) -> Path:
    run = folders / "undisturbed"
    if not run.exists():
        run_scenario(make(run=run), console=quiet)
    return run


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sends a SIGTERM, as it were, after so many iterations of this process."""

    def stop(iterations: int) -> None:
        monkeypatch.setattr(snapshots, "stop_asked", lambda: signal.SIGTERM if done[0] >= iterations else 0)
        done[0] = 0

    done = [0]
    pause = snapshots.SnapshotKeeper.should_pause

    def counted(keeper: snapshots.SnapshotKeeper) -> bool:
        done[0] += 1
        return pause(keeper)

    monkeypatch.setattr(snapshots.SnapshotKeeper, "should_pause", counted)
    return stop


def _stopped(settings: Resolved, console: Console, **choices: Any) -> StoppedError:
    with pytest.raises(StoppedError) as stopped:
        run_scenario(settings, console=console, **choices)
    return stopped.value


def test_a_run_stopped_within_every_step_ends_as_the_undisturbed_one(
    make: Make,
    undisturbed: Path,
    stop_after: Callable[[int], None],
    tmp_path: Path,
    quiet: Console,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepared: list[int] = []
    before_step = Plop.before_step

    def counted(method: Plop, step_pass: Any) -> None:
        prepared.append(method.context.step)
        before_step(method, step_pass)

    monkeypatch.setattr(Plop, "before_step", counted)
    run = tmp_path / "stopped"
    settings = make(run=run)
    stop_after(3)
    stopped = _stopped(settings, quiet)
    assert stopped.exit_code == 143
    assert "step 0 is saved after iteration 3 of 12" in stopped.message
    assert f"--run {run} --resume" in str(stopped.hint)
    assert [path.name for path in snapshot_paths(RunFolder(run))] == ["snapshot-0-3.pt"]
    for iterations in (8, 1 + 2, 2):
        stop_after(iterations)
        stopped = _stopped(settings, quiet, resume=True)
    assert "step 2" in stopped.message
    stop_after(10_000)
    run_scenario(settings, console=quiet, resume=True)
    assert differences(undisturbed, run) == []
    assert prepared == [0, 1, 2], "what was prepared is not prepared again"


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    # More than a gap between two records, in which nothing is kept.
    for place in range(len(content) // 2, len(content) // 2 + 128):
        content[place] ^= 16
    path.write_bytes(content)


@pytest.mark.parametrize("damaged", [1, 2])
def test_damaged_snapshots_are_passed_over(
    make: Make,
    undisturbed: Path,
    stop_after: Callable[[int], None],
    tmp_path: Path,
    quiet: Console,
    damaged: int,
) -> None:
    run = tmp_path / "damaged"
    settings = make(run=run, output__snapshot_iterations=1)
    stop_after(9)
    _stopped(settings, quiet)
    paths = snapshot_paths(RunFolder(run))
    assert [path.name for path in paths] == ["snapshot-0-9.pt", "snapshot-0-8.pt"]
    for path in paths[:damaged]:
        _flip(path)
    stop_after(10_000)
    run_scenario(settings, console=quiet, resume=True)
    log = (run / "log.txt").read_text()
    assert log.count("It is passed over.") == damaged
    assert ("the step begins anew" in log) == (damaged == 2)
    assert ("goes on after epoch 1 and 2 iterations" in log) == (damaged == 1)
    assert differences(undisturbed, run) == []


def test_snapshots_come_as_often_and_stay_as_many_as_set(
    make: Make, stop_after: Callable[[int], None], tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    write = snapshots.write_snapshot

    def noted(folder: RunFolder, snapshot: Snapshot, keep: int) -> Path:
        written.append(snapshot.iteration)
        return write(folder, snapshot, keep)

    monkeypatch.setattr(snapshots, "write_snapshot", noted)
    monkeypatch.setattr(snapshots, "_SHARE", 1e9)

    def at(name: str, **changes: object) -> list[int]:
        written.clear()
        stop_after(8)
        _stopped(make(run=tmp_path / name, method__name="ft", **changes), quiet)
        return list(written)

    assert at("epochs") == [6, 8]
    assert at("iterations", output__snapshot_iterations=4, output__snapshots=3) == [4, 6, 8]
    assert len(snapshot_paths(RunFolder(tmp_path / "iterations"))) == 3
    assert at("minutes", output__snapshot_minutes=1e-9, output__snapshots=1) == list(range(1, 9))
    assert len(snapshot_paths(RunFolder(tmp_path / "minutes"))) == 1
    # One that would cost more than a tenth of the time is left out at the end of an epoch.
    monkeypatch.setattr(snapshots, "_SHARE", 1e-9)
    assert at("costly", output__snapshot_iterations=5) == [5, 8]


def test_what_changes_results_is_refused_within_a_step_and_the_rest_is_not(
    make: Make, stop_after: Callable[[int], None], tmp_path: Path, quiet: Console
) -> None:
    run = tmp_path / "changed"
    stop_after(2)
    _stopped(make(run=run), quiet)
    with pytest.raises(UsageError, match=r"train\.later\.lr: 0\.01 -> 0\.5"):
        run_scenario(make(run=run, train__later__lr=0.5), console=quiet, resume=True)
    with pytest.raises(UsageError, match=r"method\.pod_factor"):
        run_scenario(make(run=run, method__pod_factor=0.5), console=quiet, resume=True)
    path = snapshot_paths(RunFolder(run))[0]
    stop_after(1)
    stopped = _stopped(
        make(run=run, data__workers=1, output__tensorboard="false", compute__precision="bf16", output__print_every=1),
        quiet,
        resume=True,
    )
    assert "after iteration 3 of 12" in stopped.message
    assert "step 0 was begun with precision float32, this goes on with bf16" in (run / "log.txt").read_text()
    assert path.exists()


def test_data_that_changed_within_a_step_are_refused(
    make: Make, toy_root: Path, stop_after: Callable[[int], None], tmp_path: Path, quiet: Console
) -> None:
    subprocess.run(["cp", "-r", str(toy_root / "toy"), str(tmp_path / "toy")], check=True)
    settings = make(run=tmp_path / "run", data__root=tmp_path)
    stop_after(2)
    _stopped(settings, quiet)
    listed = tmp_path / "toy" / "lists" / "train.txt"
    lists = [listed] if listed.exists() else sorted((tmp_path / "toy").rglob("train*.txt"))
    lines = lists[0].read_text().splitlines(keepends=True)
    lists[0].write_text("".join(lines[:-1]))
    with pytest.raises(DataError, match="not those that step 0 began with"):
        run_scenario(settings, console=quiet, resume=True)


def test_a_broken_image_in_the_middle_loses_nothing(
    make: Make, undisturbed: Path, tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    from plopcli.data import loading

    run = tmp_path / "broken"
    calls = [0]
    decode = loading._decode

    def broken_once(sample: Any, maps: Any) -> Any:
        calls[0] += 1
        if calls[0] == 30:
            raise DataError("p.jpg is broken.")
        return decode(sample, maps)

    monkeypatch.setattr(loading, "_decode", broken_once)
    with pytest.raises(DataError, match="broken"):
        run_scenario(make(run=run, data__cache="false"), console=quiet)
    assert [path.name for path in snapshot_paths(RunFolder(run))] == ["snapshot-0-3.pt"]
    run_scenario(make(run=run), console=quiet, resume=True)
    assert differences(undisturbed, run) == []


def test_a_single_step_goes_on_too(
    make: Make, undisturbed: Path, stop_after: Callable[[int], None], tmp_path: Path, quiet: Console
) -> None:
    run = tmp_path / "steps"
    settings = make(run=run)
    run_single_step(settings, step=0, console=quiet)
    stop_after(1)
    with pytest.raises(StoppedError) as stopped:
        run_single_step(settings, step=1, console=quiet)
    assert f"plop train-step --step 1 --run {run} --resume" in str(stopped.value.hint)
    stop_after(10_000)
    with pytest.raises(UsageError, match="half trained"):
        run_single_step(settings, step=1, console=quiet)
    run_single_step(settings, step=1, resume=True, console=quiet)
    before = (run / "checkpoints" / "step-1.pt").stat().st_mtime_ns
    run_single_step(settings, step=1, resume=True, console=quiet)
    assert (run / "checkpoints" / "step-1.pt").stat().st_mtime_ns == before
    run_scenario(settings, resume=True, console=quiet)
    assert differences(undisturbed, run) == []


def test_a_stop_before_measuring_loses_no_figure(
    make: Make, undisturbed: Path, tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "unmeasured"

    def stopped(*_: object) -> None:
        raise StoppedError(15, "Stopped.")

    with monkeypatch.context() as patch:
        patch.setattr("plopcli.engine.step.measure_step", stopped)
        _stopped(make(run=run), quiet)
    assert RunFolder(run).steps() == [0]
    run_scenario(make(run=run), resume=True, console=quiet)
    assert differences(undisturbed, run) == []


def test_files_that_only_look_like_snapshots_are_refused(tmp_path: Path) -> None:
    from plopcli.runs.verified import write_verified

    folder = RunFolder(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    path = tmp_path / "checkpoints" / "snapshot-0-1.pt"
    for content in ({"format": "plop-checkpoint"}, {"format": "plop-snapshot", "version": 1, "step": -1}):
        write_verified(path, content)
        with pytest.raises(DamagedFileError):
            read_snapshot(path)
        assert newest_snapshot(folder, 0).snapshot is None
    write_verified(path, {"format": "plop-snapshot", "version": 99})
    with pytest.raises(DataError, match="version 99"):
        newest_snapshot(folder, 0)


def test_statistics_that_each_process_keeps_are_all_saved() -> None:
    def run(rank: int, world: int, rows: list[torch.Tensor]) -> Any:
        process = SimpleNamespace(rank=rank, world=world, gather=lambda own: [rows[0], own])
        return SimpleNamespace(process=process, syncs_norm=False)

    model: Any = nn.BatchNorm2d(3)
    method = nn.Module()
    method.register_buffer("table", torch.full((2,), 7.0))
    other = torch.arange(8.0)
    own = torch.cat([model.running_mean, model.running_var, method.table])
    saved = snapshots._own_statistics(run(1, 2, [other]), model, method)
    assert saved is not None
    assert torch.equal(saved, torch.stack([other, own]))
    snapshots._take_statistics(run(0, 2, []), model, method, saved)
    assert torch.equal(model.running_mean, other[:3])
    assert torch.equal(method.table, other[6:])
    snapshots._take_statistics(run(0, 1, []), model, method, saved)
    assert torch.equal(model.running_var, ((other + own) / 2)[3:6])


def test_settings_come_from_the_run(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from plopcli.cli.run_description import OPTION_OF
    from plopcli.resolution.layers import resolve_settings

    monkeypatch.chdir(tmp_path)
    words: dict[str, Any] = dict.fromkeys([*OPTION_OF, "config", "assignments", "overlapped", "disjoint"])
    words |= {"sequential": None, "deterministic": False, "compile": False, "preset": "auto"}
    words |= {"dataset": "toy", "method": "ft", "resume": True}
    folder = resolve_settings({"data.dataset": "toy", "method.name": "ft"}, environment={}).settings.run_folder
    folder.mkdir(parents=True)
    stored = make(method__name="ft", train__first__epochs=7, scenario__task="15-1")
    (folder / "settings.toml").write_text(settings_to_toml(stored.settings))
    assert resolve(words).settings.train.first.epochs == 7
    assert resolve({**words, "resume": False}).settings.train.first.epochs != 7


def _start(settings: Resolved, folder: Path, *more: str) -> subprocess.Popen[str]:
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "settings-in.toml"
    config.write_text(settings_to_toml(settings.settings))
    words = [sys.executable, "-m", "plopcli", "run-scenario", "--config", str(config), "--preset", "none", *more]
    return subprocess.Popen(
        words,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        # Whoever starts pytest in the background of a shell has SIGINT ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.parametrize(
    ("number", "code", "processes"), [(signal.SIGTERM, 143, 2), (signal.SIGINT, 130, 1)], ids=["TERM", "INT"]
)
def test_a_signal_to_a_real_run(
    make: Make,
    tmp_path: Path,
    quiet: Console,
    stop_after: Callable[[int], None],
    number: int,
    code: int,
    processes: int,
) -> None:
    run = tmp_path / "run"
    changes = {"run": run, "compute__gpus": 0, "method__name": "ft", "train__first__epochs": 10_000}
    process = _start(make(**changes, compute__processes=processes), tmp_path)
    try:
        deadline = time.monotonic() + 250
        while not (run / "metrics.jsonl").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline, "training has not begun"
            time.sleep(0.1)
        children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
        process.send_signal(number)
        message = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == code, message
    assert not any(Path(f"/proc/{pid}/exe").exists() for pid in children)
    assert message.count("is saved after iteration") == 1
    assert f"Go on with: plop run-scenario --run {run} --resume" in message
    assert "Traceback" not in message
    assert "Error" not in message
    snapshot = newest_snapshot(RunFolder(run), 0).snapshot
    assert snapshot is not None
    assert len(RunFolder(run).read_metrics()) == snapshot.iteration
    # Another number of processes goes on from there.
    stop_after(2)
    stopped = _stopped(make(**changes), quiet, resume=True)
    assert f"after iteration {snapshot.iteration + 2} of" in stopped.message


def test_three_kills_at_random_moments() -> None:
    script = Path(__file__).parent.parent / "torture.py"
    words = [sys.executable, str(script), "--kills", "3", "--methods", "plop", "--processes", "1"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 kills" in done.stdout


@pytest.mark.parametrize(
    ("name", "left"),
    [("results.json", b""), ("results.json", b"\0" * 500), ("confusion/step-0.npz", b"PK\3\4"), ("confusion", None)],
)
def test_damaged_figures_are_measured_again_and_said(
    make: Make, undisturbed: Path, tmp_path: Path, quiet: Console, name: str, left: bytes | None
) -> None:
    run = shutil.copytree(undisturbed, tmp_path / "run")
    if left is None:
        for path in (run / name).glob("step-[12].npz"):
            path.unlink()
    else:
        (run / name).write_bytes(left)
    checkpoints = {path: path.stat().st_mtime_ns for path in run.glob("checkpoints/*.pt")}
    run_scenario(make(run=run), console=quiet, resume=True)
    assert differences(undisturbed, run) == []
    assert {path: path.stat().st_mtime_ns for path in run.glob("checkpoints/*.pt")} == checkpoints
    said = (run / "log.txt").read_text()
    assert ("There is no confusion matrix" if left is None else f"{run / name} is damaged") in said
    first = 1 if left is None else 0
    assert [f"Step {step} is trained, and is measured now" in said for step in range(3)] == [
        step >= first for step in range(3)
    ]


def test_a_damaged_line_of_the_metrics_is_left_out_and_said(
    make: Make, undisturbed: Path, tmp_path: Path, quiet: Console
) -> None:
    run = shutil.copytree(undisturbed, tmp_path / "run")
    rows = RunFolder(run).read_metrics()
    content = bytearray((run / "metrics.jsonl").read_bytes())
    content[content.index(b"loss") + 8] ^= 1
    (run / "metrics.jsonl").write_bytes(content)
    run_scenario(make(run=run), console=quiet, resume=True)
    assert RunFolder(run).read_metrics() == rows[1:]
    assert "it lacks 1 iterations that were trained" in (run / "log.txt").read_text()
