"""`plop doctor`: what it finds, what it estimates, and that it leaves no trace."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from running import run_scenario

from plopcli.cli.app import main
from plopcli.console.live import clock
from plopcli.doctor import checks, duration
from plopcli.doctor.examine import examine
from plopcli.doctor.findings import Examination, Finding
from plopcli.engine.scenario_run import ScenarioChoices
from plopcli.errors import DataError, MachineError, UsageError
from plopcli.resolution.layers import Resolved
from plopcli.runs.folder import RunFolder

Make = Callable[..., Resolved]
CHECKS = ["settings", "device", "data", "weights", "folder", "scenario", "memory", "loading", "disk"]


def _examined(settings: Resolved, quiet: Console, iterations: int = 0, **choices: Any) -> Examination:
    found = examine(settings, ScenarioChoices(**choices), iterations=iterations, budget=60, console=quiet)
    assert not any((settings.settings.run_folder).glob("**/*.part"))
    return found


def _about(found: Examination, check: str) -> list[Finding]:
    return [finding for finding in found.findings if finding.check == check]


def _problem(found: Examination, check: str) -> Finding:
    (problem,) = [finding for finding in found.findings if finding.level == "problem"]
    assert problem.check == check
    assert problem.remedy
    assert found.exit_code == problem.exit_code
    return problem


def test_a_run_that_can_begin(tiny: Make, quiet: Console, tmp_path: Path) -> None:
    """A method that passes over its images and keeps thresholds, examined with a few iterations."""
    found = _examined(tiny(method__name="plop", train__first__epochs=3), quiet, iterations=2)
    assert found.exit_code == 0
    assert list(dict.fromkeys(finding.check for finding in found.findings)) == [
        *CHECKS[:-1],
        "training",
        "disk",
        "time",
    ]
    assert [len(_about(found, check)) for check in ("training", "time")] == [2, 1]
    assert not (tmp_path / "run").exists(), "nothing is left"
    assert found.duration is not None
    steps = found.duration.steps
    assert [step.step for step in steps] == [0, 1, 2]
    assert steps[0].iterations == 18
    assert all(step.iteration > 0 and step.evaluation > 0 and step.around > 0 for step in steps)
    assert steps[0].training == pytest.approx(18 * steps[0].iteration)
    assert found.duration.low < found.duration.total < found.duration.high
    as_json = json.loads(json.dumps(found.as_dict()))
    assert as_json["ready"] is True
    assert as_json["duration"]["total"] == pytest.approx(found.duration.total)


def test_twice_the_epochs_take_longer_and_finished_steps_take_nothing(
    tiny: Make, quiet: Console, tmp_path: Path
) -> None:
    settings = tiny(method__name="ft", scenario__task="19-1", train__first__epochs=1)
    run_scenario(settings, console=quiet)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    RunFolder(tmp_path / "run").checkpoint(1).rename(tmp_path / "away.pt")
    assert _problem(_examined(settings, quiet), "scenario").message.endswith("already holds a run.")
    found = _examined(settings, quiet, iterations=1, resume=True)
    assert found.duration is not None
    assert [step.step for step in found.duration.steps] == [1]
    assert "for 1 step, 1 done before" in _about(found, "time")[0].message
    anew = _examined(settings, quiet, iterations=1, overwrite=True)
    assert anew.duration is not None
    assert [step.step for step in anew.duration.steps] == [0, 1]
    other = tiny(run=tmp_path / "other", method__name="ft", scenario__task="19-1", train__first__epochs=1)
    taking = _examined(other, quiet, iterations=1, init_from=tmp_path / "run")
    assert taking.duration is not None
    assert [step.step for step in taking.duration.steps] == [1]
    assert _about(taking, "time")[0].message.endswith("for 1 step, step 0 is taken over")
    (tmp_path / "away.pt").rename(RunFolder(tmp_path / "run").checkpoint(1))
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    assert {path.name for path in after} == {path.name for path in before}
    assert all(after[path] == time for path, time in before.items() if path.is_file()), "nothing was written"


@pytest.fixture
def own_data(toy_root: Path, tmp_path: Path) -> Path:
    shutil.copytree(toy_root, tmp_path / "data")
    return tmp_path / "data"


def test_data_problems_are_counted_by_kind(tiny: Make, quiet: Console, own_data: Path) -> None:
    masks = sorted((own_data / "toy").rglob("train_*.png"))
    masks[0].write_bytes(b"")
    for path in masks[1:3]:
        Image.fromarray(np.zeros((64, 64, 3), dtype=np.uint8)).save(path)
    problem = _problem(_examined(tiny(data__root=own_data), quiet, iterations=1), "data")
    assert "3 pairs are unusable: 2 x mask in colour, 1 x mask empty" in problem.message
    assert "plop prepare toy" in str(problem.remedy)
    assert problem.exit_code == DataError.exit_code
    shutil.rmtree(own_data / "toy")
    assert "plop download toy" in str(_problem(_examined(tiny(data__root=own_data), quiet), "data").remedy)


def test_weights(tiny: Make, quiet: Console, tmp_path: Path) -> None:
    problem = _problem(_examined(tiny(model__pretrained="true"), quiet), "weights")
    assert "plop download weights" in str(problem.remedy)
    (weights,) = _about(_examined(tiny(), quiet), "weights")
    assert (weights.level, weights.remedy) == ("warning", "--pretrained, or --weights FILE")
    file = tmp_path / "weights.pth"
    file.write_bytes(b"no weights")
    found = _examined(tiny(model__pretrained="true", model__weights=file), quiet, iterations=1)
    assert "sha256 " in _about(found, "weights")[0].message
    assert str(file) in _problem(found, "scenario").message


HOLDS = """
import sys
from pathlib import Path
from plopcli.runs.lock import locked
with locked(Path(sys.argv[1]), print):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_folder_and_lock(tiny: Make, quiet: Console, tmp_path: Path) -> None:
    words = [sys.executable, "-c", HOLDS, str(tmp_path / "run")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        problem = _problem(_examined(tiny(), quiet), "folder")
        other.communicate("go\n")
    assert f"in use by another run: process {other.pid}" in problem.message
    (tmp_path / "file").touch()
    problem = _problem(_examined(tiny(run=tmp_path / "file" / "run"), quiet), "folder")
    assert problem.exit_code == UsageError.exit_code


def test_disk_memory_and_loading(tiny: Make, quiet: Console, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = tiny(data__workers=2)
    with monkeypatch.context() as patch:
        patch.setattr(checks, "free_bytes", lambda _: 1000)
        problem = _problem(_examined(settings, quiet), "disk")
        assert "are needed under" in problem.message
        assert "3 checkpoints of up to" in problem.message
        assert problem.exit_code == MachineError.exit_code
    with monkeypatch.context() as patch:
        patch.setattr(checks, "free_memory", lambda: 1 << 20)
        assert "micro_batch" in str(_problem(_examined(settings, quiet), "memory").remedy)
    with monkeypatch.context() as patch:
        patch.setattr(checks, "_open_file_limit", lambda: 64)
        (finding,) = _about(_examined(settings, quiet), "loading")
        assert (finding.level, finding.remedy) == ("warning", "ulimit -n 4096")
    assert 0 < checks.free_memory() < 1 << 45


def test_what_the_device_cannot_do(tiny: Make, quiet: Console) -> None:
    problem = _problem(_examined(tiny(compute__precision="fp16", compute__gpus=0), quiet), "device")
    assert problem.exit_code == MachineError.exit_code


def test_a_scenario_that_would_be_refused(tiny: Make, quiet: Console) -> None:
    problem = _problem(_examined(tiny(train__batch=100), quiet, iterations=1), "scenario")
    assert "fewer than one batch" in problem.message
    assert problem.exit_code == UsageError.exit_code


def test_a_loss_that_is_not_finite_is_found_out_before(
    tiny: Make, quiet: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    from plopcli.methods.ft import FineTuning

    genuine = FineTuning.losses
    monkeypatch.setattr(FineTuning, "losses", lambda *a: {name: term * math.nan for name, term in genuine(*a).items()})
    problem = _problem(_examined(tiny(method__name="ft"), quiet, iterations=1), "training")
    assert "not finite" in problem.message


def test_the_command(toy_root: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = [
        "doctor",
        "--dataset",
        "toy",
        "--task",
        "19-1",
        "--data-root",
        str(toy_root),
        "--run",
        str(tmp_path / "run"),
    ]
    words += ["--no-pretrained", "--iterations", "0", "--batch", "8", "--set", "data.crop=48"]
    assert main(words) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split()[:2] == ["ok", "settings"]
    assert any(line.startswith("warning  weights") for line in shown)
    assert not any(" time " in line for line in shown)
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["duration"] is None
    assert main([*words, "--batch", "zero", "--json"]) == UsageError.exit_code
    (finding,) = json.loads(capsys.readouterr().out)["findings"]
    assert (finding["check"], finding["level"]) == ("settings", "problem")
    assert main(["doctor", "--dataset", "toy", "--data-root", str(tmp_path)]) == DataError.exit_code
    assert not (tmp_path / "run").exists()


def test_processes_are_measured_as_processes(tiny: Make, quiet: Console) -> None:
    settings = tiny(method__name="ft", compute__gpus=0, compute__processes=2, scenario__task="19-1")
    found = _examined(settings, quiet, iterations=1)
    assert found.exit_code == 0, found.findings
    assert "8 = 2 CPU processes x 4" in _about(found, "device")[0].message
    assert len(_about(found, "training")) == 2


def test_loading_beside_computing(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    class _Of:
        def __init__(self, workers: int, kind: str = "cuda") -> None:
            data = tiny(data__workers=workers).settings.data
            self.settings = type("S", (), {"data": data})
            self.process = type("P", (), {"local_world": 1, "device": type("D", (), {"type": kind})})

    monkeypatch.setattr(duration, "cores_here", lambda: 16)
    together: Any = duration._together
    assert together(_Of(0), 1.0, 3.0) == 4.0, "one process does both"
    assert together(_Of(8), 1.0, 3.0) == 1.0, "loading is hidden behind the GPU"
    assert together(_Of(2), 1.0, 3.0) == 1.5, "two loader processes are not enough"
    monkeypatch.setattr(duration, "cores_here", lambda: 2)
    assert together(_Of(8), 1.0, 3.0) == 2.0, "nor are two cores"


def test_times_for_people() -> None:
    assert [clock(seconds) for seconds in (0, 59.6, 3_700, 86_400, 273_600)] == [
        "0 s",
        "1 min",
        "1 h 1 min",
        "1 d",
        "3 d 4 h",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["plop", "ewc"])
def test_the_estimate_holds(tiny: Make, quiet: Console, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """In processor time, which others on the machine do not change: within a factor of two of a real run."""
    monkeypatch.setattr(time, "perf_counter", time.process_time)
    settings = tiny(
        method__name=method,
        scenario__task="17-1",
        data__workers=0,
        train__batch=4,
        train__first__epochs=8,
        train__later__epochs=6,
        compute__gpus=0,
    )
    found = _examined(settings, quiet, iterations=8)
    assert found.duration is not None
    start = time.process_time()
    run_scenario(settings, console=quiet)
    taken = time.process_time() - start
    assert 0.5 < found.duration.total / taken < 2.0, (found.duration, taken)
