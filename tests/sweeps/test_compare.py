"""`plop compare`: plans are read as written, runs are trained once, stopped and gone on with, and counted together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from running import TINY
from tensors import assert_same_tensors

from plopcli.cli.app import main
from plopcli.errors import UsageError
from plopcli.runs.checkpoint import load_checkpoint
from plopcli.settings.keys import toml_value
from plopcli.sweeps import jobs
from plopcli.sweeps.plan import planned_runs, read_plan

PLAN = """
folder = {folder}
seeds = {seeds}

[settings]
{settings}

[entries.ft]
method = {{ name = "ft" }}

[entries.mib]
method = {{ name = "mib" }}

[entries."mib 100"]
method = {{ name = "mib", kd_factor = 100.0 }}

[entries.ewc]
method = {{ name = "ewc" }}

[entries.joint]
method = {{ name = "joint" }}
"""


def write_plan(folder: Path, toy_root: Path, seeds: str = "[1, 2]", plan: str = PLAN, **more: object) -> Path:
    settings = {"data.dataset": "toy", "data.root": str(toy_root), "scenario.task": "18-1", **TINY, **more}
    lines = "\n".join(f"{key} = {toml_value(_typed(value))}" for key, value in settings.items())
    path = folder / "plan.toml"
    path.write_text(plan.format(folder=toml_value(str(folder / "runs")), seeds=seeds, settings=lines))
    return path


def _typed(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


def test_runs_share_step_0_where_they_compute_the_same(tmp_path: Path, toy_root: Path) -> None:
    runs = planned_runs(read_plan(write_plan(tmp_path, toy_root)))
    assert [run.folder.name for run in runs[:5]] == ["ft-s1", "mib-s1", "mib-100-s1", "ewc-s1", "joint-s1"]
    assert [run.donor and run.donor.name for run in runs] == [
        None, "ft-s1", "ft-s1", None, None,
        None, "ft-s2", "ft-s2", None, None,
    ]  # fmt: skip
    assert [run.resolved.settings.seed for run in runs] == [1] * 5 + [2] * 5
    assert runs[2].resolved.settings.method.model_dump()["kd_factor"] == 100.0


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("seeds = [1, 2]", "seeds = []", "seeds"),
        ("[entries.ft]", "[entry.ft]", "entry"),
        ('"mib 100"', '"mib"', "mib"),
        ('"mib 100"', '"mib/"', "labels"),
        ("kd_factor = 100.0", "kd_fcator = 100.0", r"Entry mib 100.*kd_factor"),
        ("[settings]", "[settings]\nseed = 4", "seed"),
    ],
)
def test_a_wrong_plan_says_where(tmp_path: Path, toy_root: Path, old: str, new: str, match: str) -> None:
    path = write_plan(tmp_path, toy_root)
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UsageError, match=match) as raised:
        planned_runs(read_plan(path))
    assert raised.value.message


def test_what_is_set_holds_for_all_runs_but_an_entrys_own_settings_stay(tmp_path: Path, toy_root: Path) -> None:
    of_mib = PLAN[: PLAN.index("[entries.ft]")] + PLAN[PLAN.index("[entries.mib]") : PLAN.index("[entries.ewc]")]
    plan = read_plan(write_plan(tmp_path, toy_root, seeds="[1]", plan=of_mib))
    given = ["data.crop=40", "method.kd_factor=7"]
    mib, mib_100 = (run.resolved.settings for run in planned_runs(plan, given))
    assert (mib.data.crop, mib_100.data.crop) == (40, 40)
    assert (mib.method.model_dump()["kd_factor"], mib_100.method.model_dump()["kd_factor"]) == (7, 100)
    with pytest.raises(UsageError, match=r"Entry mib.*train\.bacth"):
        planned_runs(plan, ["train.bacth=3"])
    with pytest.raises(UsageError, match="--set cannot set seed"):
        planned_runs(plan, ["seed=3"])


def test_a_stopped_comparison_goes_on_and_trains_nothing_twice(
    tmp_path: Path, toy_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = write_plan(tmp_path, toy_root, seeds="[1]", plan=PLAN[: PLAN.index('[entries."mib 100"]')])
    command = [sys.executable, "-m", "plopcli", "compare", str(plan)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    shared = tmp_path / "runs" / "ft-s1" / "checkpoints" / "step-0.pt"
    deadline = time.monotonic() + 120
    while not shared.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    assert first.wait(90) == 143
    assert not (tmp_path / "runs" / "mib-s1").exists()
    written = shared.stat().st_mtime_ns

    assert main(["compare", str(plan), "--jobs", "2", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [(entry["method"], len(entry["steps"])) for entry in printed] == [("ft", 3), ("mib", 3)]
    assert shared.stat().st_mtime_ns == written
    weights = [
        dict(load_checkpoint(tmp_path / "runs" / run / "checkpoints/step-0.pt").model) for run in ("ft-s1", "mib-s1")
    ]
    assert_same_tensors(*weights)

    other = write_plan(tmp_path, toy_root, seeds="[1]")
    other.write_text(f"step_0_from = [{toml_value(str(tmp_path / 'runs' / 'ft-s1'))}]\n{other.read_text()}")
    assert [run.donor and run.donor.name for run in planned_runs(read_plan(other))] == [*["ft-s1"] * 3, None, None]
    other.unlink()

    write_plan(tmp_path, toy_root, seeds="[1]", plan=PLAN[: PLAN.index('[entries."mib 100"]')])
    assert main(["compare", str(plan), "--markdown"]) == 0
    captured = capsys.readouterr()
    assert "| ft | 1 |" in captured.out
    assert "2 of 2 runs are finished already" in captured.err

    # What was trained otherwise is neither shown nor gone on with.
    for more in ([], ["--dry-run"]):
        assert main(["compare", str(plan), "--set", "train.first.epochs=2", *more]) == 2
        refused = capsys.readouterr()
        assert "ft, seed 1" in refused.err
        assert "train.first.epochs: 1 -> 2" in refused.err
        assert not refused.out
    assert main(["compare", str(plan), "--set", "data.workers=0", "--dry-run"]) == 0


def test_a_run_that_fails_leaves_the_others_alone(
    tmp_path: Path, toy_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = PLAN[: PLAN.index("[entries.mib]")] + '[entries.bad]\nmethod = {{ name = "lwf" }}\ntrain.later.lr = 1e30\n'
    path = write_plan(tmp_path, toy_root, seeds="[1]", plan=plan, **{"train.later.epochs": 3})
    assert main(["compare", str(path)]) == 1
    error = capsys.readouterr().err
    assert "bad, seed 1" in error
    assert "ft, seed 1: done" in error
    assert "not finite" in (tmp_path / "runs" / "bad-s1.log").read_text()


def test_modules_of_the_working_folder_are_none_of_a_run(tmp_path: Path, toy_root: Path, monkeypatch: Any) -> None:
    (tmp_path / "random.py").write_text("raise SystemExit('a module of the working folder')")
    monkeypatch.chdir(tmp_path)
    started: list[list[str]] = []
    real = subprocess.Popen
    monkeypatch.setattr(jobs.subprocess, "Popen", lambda words, **_: started.append(words))
    jobs._start(planned_runs(read_plan(write_plan(tmp_path, toy_root)))[0], 1)
    monkeypatch.setattr(jobs.subprocess, "Popen", real)
    interpreter = started[0][: started[0].index("-m")]
    assert subprocess.run([*interpreter, "-m", "plopcli", "--version"], check=False).returncode == 0
