"""Checkpoints of the original implementation at the command line, as a user would type it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from original_files import original_content, write_original
from tensors import assert_same_tensors

from plopcli.cli.app import main
from plopcli.runs.checkpoint import load_checkpoint

NETWORK = ["--set", "model.width=8", "--set", "model.head_channels=16"]
#: What a file of the original does not say, and the preset does not either.
SMALL = ["--set", "data.crop=48"]
DESCRIBED = ["--dataset", "toy", "--task", "18-1", *SMALL]
RUN = ["--dataset", "toy", "--task", "18-1", "--batch", "8", "--epochs", "1", "--epochs-later", "1", *SMALL, *NETWORK]
RUN += ["--set", "output.overlays=0", "--set", "output.tensorboard=false"]


@pytest.fixture(scope="module")
def run(toy_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of fine-tuning, and beside its checkpoints the same weights as the original writes them."""
    folder = tmp_path_factory.mktemp("original") / "ft"
    words = ["run-scenario", "--method", "ft", "--run", str(folder), "--data-root", str(toy_root), *RUN]
    assert main(words) == 0
    for step in range(3):
        write_original(folder.parent / f"theirs-{step}.pth", load_checkpoint(ours(folder, step)).model)
    return folder


def ours(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step}.pt"


def theirs(run: Path, step: int) -> Path:
    return run.parent / f"theirs-{step}.pth"


def answer(capsys: pytest.CaptureFixture[str], *words: str | Path) -> Any:
    assert main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def fails(capsys: pytest.CaptureFixture[str], code: int, *words: str | Path) -> str:
    assert main([*map(str, words)]) == code
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return printed.err


def figures(results: dict[str, Any]) -> dict[str, Any]:
    (entry,) = results["steps"]
    return {key: value for key, value in entry.items() if key != "checkpoint"}


@pytest.mark.parametrize("step", [0, 2])
def test_the_same_figures_from_all_three_files(run, toy_root, tmp_path, capsys, step):
    root = ["--data-root", toy_root]
    expected = answer(capsys, "evaluate", ours(run, step), *root)
    read = answer(capsys, "evaluate", theirs(run, step), *DESCRIBED, *root)
    assert figures(read) == figures(expected)
    assert read["steps"][0]["step"] == step
    assert (read["method"], read["protocol"], read["seed"]) == ("method unknown", "protocol unknown", "seed unknown")
    out = tmp_path / "new" / "step.pt"
    told = answer(capsys, "convert", theirs(run, step), out, "--to", "plop", "--method", "FT", *DESCRIBED)
    assert (told["step"], told["class_counts"], told["path"]) == (step, [19, 1, 1][: step + 1], str(out))
    converted = answer(capsys, "evaluate", out, *root)
    assert figures(converted) == figures(expected)
    assert converted["method"] == "ft"
    tensors = load_checkpoint(out).model
    assert_same_tensors(tensors, load_checkpoint(ours(run, step)).model)


def test_ours_to_theirs_at_the_command_line(run, tmp_path, capsys):
    out = tmp_path / "theirs.pth"
    assert main(["convert", str(ours(run, 1)), str(out), "--to", "original"]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{out}\n"
    assert "toy 18-1 after step 1, 19 + 1 classes; resnet18, output stride 8" in printed.err
    assert "model.width is 8" in printed.err
    content = torch.load(out, weights_only=True)
    expected = original_content(load_checkpoint(ours(run, 1)).model)
    assert list(content) == list(expected)
    assert list(content["model_state"]) == list(expected["model_state"])
    assert_same_tensors(content["model_state"], expected["model_state"])
    assert "nothing is overwritten" in fails(capsys, 2, "convert", ours(run, 1), out, "--to", "original")
    assert "Did you mean original" in fails(capsys, 2, "convert", ours(run, 1), tmp_path / "x", "--to", "orignal")


def test_options_that_would_do_nothing_are_refused(run, toy_root, capsys):
    for words in (["--task", "18-1"], ["--set", "data.crop=32"], ["--method", "ft"]):
        assert "is a checkpoint of plop, which knows" in fails(capsys, 2, "evaluate", ours(run, 1), *words)
        assert "is a checkpoint of plop, which knows" in fails(capsys, 2, "visualize", ours(run, 1), *words)
    assert "is a checkpoint of plop" in fails(capsys, 2, "evaluate", run, "--step", "1")
    assert "--step is for run folders" in fails(capsys, 2, "visualize", ours(run, 1), "--step", "1")


def test_without_data_set_and_task_every_command_says_what_to_add(run, tmp_path, capsys):
    for words in (["evaluate"], ["visualize"]):
        message = fails(capsys, 3, *words, theirs(run, 1))
        assert "neither data set nor task" in message
        assert "--dataset voc --task 15-1" in message
    message = fails(capsys, 2, "convert", theirs(run, 1), tmp_path / "o.pt", "--to", "plop")
    assert "--dataset and --task is missing" in message


def test_pictures_are_those_of_our_own_file(run, toy_root, tmp_path, capsys):
    words = ["--count", "2", "--data-root", toy_root]
    mine = answer(capsys, "visualize", ours(run, 2), "--output", tmp_path / "a", *words)
    read = answer(capsys, "visualize", theirs(run, 2), *DESCRIBED, "--method", "ft", "--output", tmp_path / "b", *words)
    for left, right in zip(mine["files"], read["files"], strict=True):
        assert Path(left).read_bytes() == Path(right).read_bytes()
    # Pictures of one's own need no data set at all, and a model of ours may stand beside.
    picture = next((toy_root / "toy").rglob("*.jpg"))
    elsewhere = ["--data-root", tmp_path / "none", "--input", picture, "--output", tmp_path / "c"]
    assert answer(capsys, "visualize", theirs(run, 2), ours(run, 2), *DESCRIBED, *elsewhere)["files"] == [
        str(tmp_path / "c" / "comparison.png")
    ]


def test_a_step_goes_on_from_it_as_from_our_own(run, toy_root, tmp_path, capsys):
    words = ["train-step", "--step", "1", "--method", "ft", "--data-root", toy_root, *RUN]
    assert main([*map(str, words), "--previous", str(theirs(run, 0)), "--run", str(tmp_path / "a")]) == 0
    said = capsys.readouterr().err
    assert "it comes from the original implementation (theirs-0.pth)" in said
    assert "taken on trust" in said
    assert same_weights(ours(run, 1), ours(tmp_path / "a", 1))
    message = fails(capsys, 3, *words[:1], "--step", "2", *words[3:], "--previous", theirs(run, 0), "--run", tmp_path)
    assert "starts from a checkpoint of step 1; this one is of step 0" in message
    words[4] = "ewc"
    message = fails(capsys, 3, *words, "--previous", theirs(run, 0), "--run", tmp_path / "b")
    assert "Method ewc cannot go on from the checkpoint: it holds no state of this method" in message
    words[4] = "ft"
    deeper = [*words, "--backbone", "resnet34", "--previous", theirs(run, 0), "--run", tmp_path / "b"]
    assert "model.backbone: resnet18 -> resnet34" in fails(capsys, 3, *deeper)
    assert not (tmp_path / "b").exists()


def same_weights(left: Path, right: Path) -> bool:
    a, b = load_checkpoint(left).model, load_checkpoint(right).model
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_scenario_starts_from_it(run, toy_root, tmp_path, capsys):
    words = ["run-scenario", "--method", "ft", "--data-root", toy_root, *RUN]
    first = tmp_path / "first"
    results = answer(capsys, *words, "--init-from", theirs(run, 0), "--run", first)
    expected = json.loads((run / "results.json").read_text())
    assert [step["iou"] for step in results["steps"]] == [step["iou"] for step in expected["steps"]]
    assert (results["method"], results["protocol"], results["seed"]) == ("ft", "overlapped", 42)
    log = (first / "log.txt").read_text()
    assert f"Step 0 is taken from {theirs(run, 0)}" in log
    assert "taken on trust" in log
    made = load_checkpoint(ours(first, 0)).made_with
    assert (made["source"], made["file"]) == ("the original implementation", "theirs-0.pth")
    assert "unknown" not in made
    # What a run has taken over, another may take over from it; another step or network it may not.
    resumed = answer(capsys, *words, "--init-from", first, "--run", tmp_path / "second")
    assert [step["iou"] for step in resumed["steps"]] == [step["iou"] for step in expected["steps"]]
    message = fails(capsys, 2, *words, "--init-from", theirs(run, 1), "--run", tmp_path / "third")
    assert "it is of step 1" in message
    wider = [word if word != "model.head_channels=16" else "model.head_channels=24" for word in words]
    message = fails(capsys, 2, *wider, "--init-from", theirs(run, 0), "--run", tmp_path / "third")
    assert "model.head_channels: 16 -> 24" in message
    assert not (tmp_path / "third").exists()


class Payload:
    """Pickled, it makes a folder when it is loaded by a program that trusts it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_payload_is_never_run(run, toy_root, tmp_path, capsys):
    mark = tmp_path / "was-run"
    content = original_content(load_checkpoint(ours(run, 0)).model, scheduler_state=Payload(mark))
    bad = tmp_path / "bad.pth"
    train = ["--data-root", toy_root, "--method", "ft", *RUN, "--run", tmp_path / "run"]
    commands: list[list[str | Path]] = [
        ["evaluate", bad],
        ["evaluate", bad, *DESCRIBED, "--data-root", toy_root],
        ["visualize", bad, *DESCRIBED, "--data-root", toy_root],
        ["convert", bad, tmp_path / "o.pt", "--to", "plop", *DESCRIBED, "--method", "ft"],
        ["convert", bad, tmp_path / "o.pt", "--to", "original"],
        ["run-scenario", *train, "--init-from", bad],
        ["train-step", "--step", "1", *train, "--previous", bad],
        ["train-step", "--step", "0", *train, "--weights", bad],
    ]
    for zipped in (True, False):
        torch.save(content, bad, _use_new_zipfile_serialization=zipped)
        for command in commands:
            message = fails(capsys, 3, *command)
            assert f"was refused: it needs the code of {os.mkdir.__module__}.mkdir" in message, command
            assert "code from a file is never run" in message
    assert not mark.exists()
    torch.load(bad, weights_only=False)
    assert mark.exists(), "the payload works where it is trusted"
    assert not (tmp_path / "o.pt").exists()
    assert not (tmp_path / "run").exists()


def test_as_a_process(run, toy_root, tmp_path):
    """The real program, on the real file, with the environment's data root."""
    words = ["evaluate", str(theirs(run, 2)), *DESCRIBED]
    done = subprocess.run(
        [sys.executable, "-m", "plopcli", *words],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={"PLOP_DATA_ROOT": str(toy_root), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "toy 18-1 protocol unknown, method unknown" in done.stdout
    assert "is from the original implementation, read as toy 18-1 after step 2, 19 + 1 + 1 classes" in done.stderr


def test_backbone_weights_are_not_taken_from_it(run, toy_root, tmp_path, capsys):
    words = ["train-step", "--step", "0", "--method", "ft", "--data-root", toy_root, *RUN, "--run", tmp_path / "r"]
    message = fails(capsys, 3, *words, "--weights", theirs(run, 0))
    assert "is the checkpoint of a training run" in message
    assert "--init-from" in message
