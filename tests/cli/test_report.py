"""`plop report` reads run folders and says which one is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plopcli.cli.app import main

RESULTS = {
    "dataset": "toy",
    "task": "1-1",
    "protocol": "overlapped",
    "method": "plop",
    "seed": 0,
    "classes": ["background", "cat", "dog"],
    "steps": [
        {
            "step": 0,
            "checkpoint": "a",
            "iou": {"background": 90.0, "cat": 50.0},
            "miou": {"all": 70.0, "old": 70.0, "new": None},
        },
        {
            "step": 1,
            "checkpoint": "b",
            "iou": {"background": 88.0, "cat": 42.0, "dog": 23.0},
            "miou": {"all": 51.0, "old": 65.0, "new": 23.0},
        },
    ],
    "avg": 60.5,
}


def _run(path: Path, method: str) -> str:
    path.mkdir()
    (path / "results.json").write_text(json.dumps({**RESULTS, "method": method}))
    return str(path)


def test_runs_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [_run(tmp_path / "a", "plop"), _run(tmp_path / "b", "ft")]
    assert main(["report", *runs, "--curves", str(tmp_path / "c.png")]) == 0
    shown = capsys.readouterr().out
    for text in ("plop", "ft", "65.0", "23.0", "51.0", "60.5"):
        assert text in shown
    assert (tmp_path / "c.png").stat().st_size > 1000
    assert main(["report", *runs, "--markdown"]) == 0
    assert "| plop" in capsys.readouterr().out


def test_runs_of_one_method_are_told_apart_by_their_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [_run(tmp_path / "seed-0", "plop"), _run(tmp_path / "seed-1", "plop")]
    assert main(["report", *runs, "--json"]) == 0
    assert [run["label"] for run in json.loads(capsys.readouterr().out)] == ["seed-0", "seed-1"]


def test_seeds_are_averaged_by_method(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [_run(tmp_path / "p0", "plop"), _run(tmp_path / "p1", "plop"), _run(tmp_path / "f0", "ft")]
    other = json.loads((tmp_path / "p1" / "results.json").read_text())
    other["steps"][1]["miou"]["all"] = 55.0
    (tmp_path / "p1" / "results.json").write_text(json.dumps(other))
    assert main(["report", *runs, "--seeds", "--markdown"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[2] == "| plop | 2 | 70.0 ± 0.0 | 92.9 ± 0.0 | 65.0 ± 0.0 | 23.0 ± 0.0 | 53.0 ± 2.8 | 60.5 ± 0.0 |"
    assert rows[3] == "| ft | 1 | 70.0 | 92.9 | 65.0 | 23.0 | 51.0 | 60.5 |"
    assert main(["report", *runs, "--seeds"]) == 0
    assert "53.0 ± 2.8" in capsys.readouterr().out


def test_unfinished_runs_are_not_averaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [_run(tmp_path / "p0", "plop"), _run(tmp_path / "p1", "plop")]
    cut = json.loads((tmp_path / "p1" / "results.json").read_text())
    cut["steps"].pop()
    (tmp_path / "p1" / "results.json").write_text(json.dumps(cut))
    assert main(["report", *runs, "--seeds"]) == 3
    assert "different numbers of steps (seed 0: 2, seed 0: 1)" in capsys.readouterr().err


def test_a_folder_without_results_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 3
    assert "no results.json" in capsys.readouterr().err
