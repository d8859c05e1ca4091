"""What the last version left behind opens: `stored.tar.xz`, which `make.py` wrote with that version's code.

Commands alone, so that the inside may change. Figures may differ where another processor rounds differently: by a few
pixels, no more.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

from plopcli.cli.app import main

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="session")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("last-version")
    with tarfile.open(Path(__file__).with_name("stored.tar.xz")) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def folder(unpacked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder in which that version worked, as the working folder: its runs name their data from there."""
    monkeypatch.chdir(shutil.copytree(unpacked, tmp_path / "home"))
    return Path()


def told(capsys: Capture, *words: str) -> Any:
    capsys.readouterr()
    code = main([*words, "--json"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return json.loads(captured.out)


def figures(results: Any) -> list[dict[str, Any]]:
    """Figures after every step; None, which approx takes no number for, as -1."""
    steps = [step["iou"] | {f"mIoU {over}": share for over, share in step["miou"].items()} for step in results["steps"]]
    return [{name: -1 if share is None else share for name, share in step.items()} for step in steps]


def same_figures(ours: Any, theirs: Any) -> None:
    ours, theirs = figures(ours), figures(theirs)
    assert len(ours) == len(theirs)
    for step, (now, then) in enumerate(zip(ours, theirs, strict=True)):
        assert now == pytest.approx(then, abs=0.05), f"step {step}"


def norms(model: dict[str, torch.Tensor]) -> dict[str, float]:
    return {name: tensor.double().norm().item() for name, tensor in model.items() if tensor.is_floating_point()}


@pytest.mark.parametrize("run", ["plop", "ewc"])
def test_evaluate_gives_the_figures_of_that_version(folder: Path, capsys: Capture, run: str) -> None:
    stored = json.loads((folder / run / "results.json").read_text())
    same_figures(told(capsys, "evaluate", run), stored)
    last = len(stored["steps"]) - 1
    (step,) = told(capsys, "evaluate", f"{run}/checkpoints/step-{last}.pt")["steps"]
    assert step["miou"]["all"] == pytest.approx(stored["steps"][last]["miou"]["all"], abs=0.05)


@pytest.mark.parametrize("run", ["plop", "ewc"])
def test_a_stopped_run_goes_on_to_the_end_that_version_gave_it(folder: Path, capsys: Capture, run: str) -> None:
    """With snapshot, method tables, optimizer, schedule and random numbers as they were."""
    assert list(folder.glob(f"{run}/checkpoints/snapshot-*.pt")), "it was stopped within a step"
    results = told(capsys, "run-scenario", "--run", run, "--resume")
    expected = json.loads((folder / "expected.json").read_text())[run]
    same_figures(results, expected)
    assert results["avg"] == pytest.approx(expected["avg"], abs=0.05)
    stored = torch.load(folder / run / "checkpoints" / "step-2.pt", weights_only=True)
    assert norms(stored["model"]) == pytest.approx(expected["norms"], rel=1e-4)
    assert "goes on after epoch" in (folder / run / "log.txt").read_text()


def test_step_0_of_that_version_is_taken_over(folder: Path, capsys: Capture) -> None:
    words = json.loads((folder / "plop" / "environment.json").read_text())["command"][1:]
    words[words.index("--method") + 1] = words[words.index("--run") + 1] = "ft"
    results = told(capsys, *words, "--init-from", "plop")
    stored = json.loads((folder / "plop" / "results.json").read_text())
    assert figures(results)[0] == pytest.approx(figures(stored)[0], abs=0.05)
    first = (torch.load(f"{run}/checkpoints/step-0.pt", weights_only=True)["model"] for run in ("ft", "plop"))
    assert norms(next(first)) == norms(next(first))


def test_a_finished_run_is_reported_as_it_was(folder: Path, capsys: Capture) -> None:
    reported = told(capsys, "report", "plop", "ewc")
    for run, told_of in zip(("plop", "ewc"), reported, strict=True):
        same_figures(told_of, json.loads((folder / run / "results.json").read_text()))
    assert main(["report", "plop", "ewc", "--html", "page.html", "--curves", "curves.png"]) == 0
    page = Path("page.html").read_text()
    assert all(f"{run} (after step {last}, not finished)" in page for run, last in (("plop", 1), ("ewc", 0)))
    assert Path("curves.png").stat().st_size > 1000


def test_its_checkpoints_are_drawn_exported_and_used(folder: Path, capsys: Capture) -> None:
    drawn = told(capsys, "visualize", "plop", "ewc", "--count", "2", "--step", "0", "--output", "drawn")
    assert [Path(file).stat().st_size > 1000 for file in drawn["files"]] == [True]
    # Beside the file that is written, export compares it with the model.
    assert main(["export", "plop/checkpoints/step-1.pt", "model.safetensors"]) == 0
    pictures = sorted(folder.glob("data/**/test_00000?.jpg"))[:3]
    capsys.readouterr()
    assert main(["predict", "plop", *map(str, pictures), "--output", "by-run"]) == 0
    assert main(["predict", "model.safetensors", *map(str, pictures), "--output", "by-export"]) == 0
    by_run, by_export = (json.loads(Path(out, "areas.json").read_text()) for out in ("by-run", "by-export"))
    assert by_run
    assert by_run.keys() == by_export.keys()
