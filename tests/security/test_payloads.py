"""No command runs code that a file carries: every one is given files that would leave a mark."""

from __future__ import annotations

import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from running import TINY

from plopcli.cli.app import main
from plopcli.data.index import INDEX_FILE
from plopcli.runs.folder import RunFolder
from plopcli.runs.snapshot import newest_snapshot

Make = Callable[[Path, Path], None]


class Payload:
    """An object whose unpickling makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (str(self.mark),)


def _bare(path: Path, mark: Path) -> None:
    path.write_bytes(pickle.dumps(Payload(mark)))


def _checkpoint(path: Path, mark: Path) -> None:
    torch.save({"format": "plop-checkpoint", "version": 3, "model": Payload(mark)}, path)


def _snapshot(path: Path, mark: Path) -> None:
    torch.save({"format": "plop-snapshot", "version": 1, "random": Payload(mark)}, path)


def _original(path: Path, mark: Path) -> None:
    state = {"module.cls.0.weight": torch.zeros(3, 8, 1, 1)}
    torch.save({"model_state": state, "epoch": 1, "best_score": 0.5, "trainer_state": Payload(mark)}, path)


def _state_dict(path: Path, mark: Path) -> None:
    torch.save({"state_dict": {"mod1.conv1.weight": torch.zeros(1)}, "optimizer": Payload(mark)}, path)


def _legacy(path: Path, mark: Path) -> None:
    torch.save({"mod1.conv1.weight": Payload(mark)}, path, _use_new_zipfile_serialization=False)


def _script(path: Path, mark: Path) -> None:
    """A TorchScript archive by its looks: code beside data."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Payload(mark), protocol=2))
        archive.writestr("archive/constants.pkl", pickle.dumps(Payload(mark), protocol=2))
        archive.writestr("archive/code/__torch__.py", f"import os; os.mkdir({str(mark)!r})")
        archive.writestr("archive/version", "3\n")


FILES: tuple[Make, ...] = (_bare, _checkpoint, _original, _state_dict, _legacy, _script)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "code-was-run"


@pytest.fixture
def run(toy_root: Path, tmp_path: Path) -> list[str]:
    """The options of a tiny run."""
    words = ["--dataset", "toy", "--data-root", str(toy_root), "--task", "18-1", "--method", "plop"]
    words += ["--run", str(tmp_path / "run")]
    for key, value in TINY.items():
        words += ["--set", f"{key}={value}"]
    return words


@pytest.mark.parametrize("make", FILES, ids=lambda make: make.__name__.strip("_"))
def test_the_payloads_are_live(make: Make, tmp_path: Path, mark: Path) -> None:
    """Read as many programs read such files, each one runs its code."""
    path = tmp_path / "a.pt"
    make(path, mark)
    if make is _script:
        with zipfile.ZipFile(path) as archive:
            pickle.loads(archive.read("archive/data.pkl"))
    elif make is _bare:
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert mark.exists()


def _refused(words: list[str], mark: Path, capsys: pytest.CaptureFixture[str]) -> str:
    code = main(words)
    said = capsys.readouterr().err
    assert not mark.exists()
    assert code == 3, said
    assert "Traceback" not in said
    return said


COMMANDS: dict[str, Callable[[str, str], list[str]]] = {
    "evaluate": lambda file, _: ["evaluate", file],
    "visualize": lambda file, folder: ["visualize", file, "--output", f"{folder}/pictures"],
    "convert to plop": lambda file, folder: [
        *("convert", file, f"{folder}/out.pt", "--to", "plop", "--dataset", "voc", "--task", "15-1", "--method", "plop")
    ],
    "convert to original": lambda file, folder: ["convert", file, f"{folder}/out.pth", "--to", "original"],
}
TRAINING: dict[str, Callable[[str], list[str]]] = {
    "--init-from": lambda file: ["run-scenario", "--init-from", file],
    "--previous": lambda file: ["train-step", "--step", "1", "--previous", file],
    "--weights": lambda file: ["run-scenario", "--weights", file],
}


@pytest.mark.parametrize("make", FILES, ids=lambda make: make.__name__.strip("_"))
def test_a_file_that_is_read_is_never_run(
    make: Make, tmp_path: Path, mark: Path, run: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.pt"
    make(path, mark)
    for words in COMMANDS.values():
        assert str(path) in _refused(words(str(path), str(tmp_path)), mark, capsys)
    assert not (tmp_path / "out.pt").exists()
    assert not (tmp_path / "out.pth").exists()
    for name, start in TRAINING.items():
        options = [word.replace("model.pretrained=false", "seed=1") for word in run] if name == "--weights" else run
        assert str(path) in _refused([*start(str(path)), *options], mark, capsys)


@pytest.mark.parametrize("make", FILES, ids=lambda make: make.__name__.strip("_"))
def test_nor_is_one_that_lies_in_a_run_folder(
    make: Make, tmp_path: Path, mark: Path, run: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    make(folder / "checkpoints" / "step-0.pt", mark)
    for words in (
        ["evaluate", str(folder)],
        ["visualize", str(folder)],
        ["run-scenario", *run, "--resume"],
        ["train-step", "--step", "1", *run],
    ):
        assert "step-0.pt" in _refused(words, mark, capsys)


def test_a_snapshot_is_not_run_but_passed_over(tmp_path: Path, mark: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.create()
    for make, told in ((_bare, "snapshot-0-2.pt"), (_snapshot, "was refused"), (_legacy, "was refused")):
        make(folder.path / "checkpoints" / "snapshot-0-2.pt", mark)
        path, snapshot, warnings = newest_snapshot(folder, 0)
        assert (path, snapshot) == (None, None)
        assert "snapshot-0-2.pt" in warnings[0]
        assert told in warnings[0]
        assert not mark.exists()


@pytest.mark.slow
def test_a_run_goes_on_without_such_a_snapshot(
    tmp_path: Path, mark: Path, run: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    _snapshot(folder / "checkpoints" / "snapshot-0-2.pt", mark)
    assert main(["run-scenario", *run, "--task", "joint", "--method", "joint", "--resume"]) == 0
    assert not mark.exists()
    assert "snapshot-0-2.pt was refused" in capsys.readouterr().err


def test_split_files_of_objects_are_refused(
    tmp_path: Path, mark: Path, run: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    splits = tmp_path / "splits"
    splits.mkdir()
    np.save(splits / "train-0.npy", np.array([Payload(mark)], dtype=object), allow_pickle=True)
    assert "train-0.npy cannot be read" in _refused(["run-scenario", *run, "--splits", str(splits)], mark, capsys)
    np.load(splits / "train-0.npy", allow_pickle=True)
    assert mark.exists()


def test_an_index_of_objects_is_counted_anew(toy_root: Path, tmp_path: Path, mark: Path) -> None:
    shutil.copytree(toy_root / "toy", tmp_path / "data" / "toy")
    cache = tmp_path / "data" / "toy" / INDEX_FILE
    objects: Any = np.array([Payload(mark)], dtype=object)
    np.savez(cache.with_suffix(""), meaning=objects, listed=objects, states=objects)
    Path(f"{cache.with_suffix('')}.npz").replace(cache)
    assert main(["prepare", "toy", "--data-root", str(tmp_path / "data")]) == 0
    assert not mark.exists()
    with np.load(cache, allow_pickle=False) as file:
        assert file["states"].shape == (87, 8)


def test_downloaded_weights_are_not_run(tmp_path: Path, mark: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _state_dict(tmp_path / "resnet101_iabn_sync.pth.tar", mark)
    words = ["download", "weights", "--from", str(tmp_path / "resnet101_iabn_sync.pth.tar")]
    _refused([*words, "--data-root", str(tmp_path / "data")], mark, capsys)
