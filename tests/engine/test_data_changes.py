"""Data that change between the steps of a run, or between training and measuring."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console
from running import evaluate_path, run_scenario, run_single_step

from plopcli.errors import DataError, UsageError
from plopcli.resolution.layers import Resolved, read_settings
from plopcli.resolution.stored import restore_settings
from plopcli.runs.checkpoint import load_checkpoint, save_checkpoint
from plopcli.runs.folder import RunFolder

Make = Callable[..., Resolved]
Settings = Callable[..., Resolved]


@pytest.fixture
def pictures(folder_data: Callable[..., Path]) -> Path:
    return folder_data({f"p{number}": [0, 1, 2, 3] for number in range(20)})


@pytest.fixture
def own(tiny: Make, pictures: Path, tmp_path: Path) -> Settings:
    keys = {"data__dataset": "folder", "scenario__task": "2-1", "method__name": "ft", "data__crop": 32}
    return lambda **more: tiny(**{"data__path": pictures, "run": tmp_path / "own", **keys, **more})


def add(root: Path, name: str) -> None:
    for folder, suffix in (("images", "jpg"), ("masks", "png")):
        shutil.copy(root / folder / f"p0.{suffix}", root / folder / f"{name}.{suffix}")


def remove(root: Path, name: str) -> None:
    for path in root.glob(f"*/{name}.*"):
        path.unlink()


def mirror(path: Path) -> None:
    """Changes a mask without changing any of its counts."""
    Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)


def heard(act: Callable[[Console], object]) -> str:
    file = StringIO()
    act(Console(file=file, width=10000))
    return file.getvalue()


def test_pictures_that_come_go_and_change_between_steps_are_told(own: Settings, pictures: Path, quiet: Console) -> None:
    first = run_single_step(own(), console=quiet, step=0).steps[0]
    assert heard(lambda console: evaluate_path(own().settings.run_folder, console)).count("data") == 0
    add(pictures, "a")  # for training, by its name
    remove(pictures, "p6")  # a test image
    mirror(pictures / "masks" / "p2.png")
    said = heard(lambda console: run_single_step(own(), console=console, step=1))
    assert "since step 0: 1 image added: a\n" in said
    assert "since step 0: 1 image removed: p6\n" in said
    assert "since step 0: 1 image changed (image or mask): p2\n" in said
    run = own().settings.run_folder
    assert (run / "log.txt").read_text().count("since step 0") == 3
    results = json.loads((run / "results.json").read_text())
    assert [step["images"] for step in results["steps"]] == [first.images, (first.images or 0) - 1]
    assert len({step["split_digest"] for step in results["steps"]}) == 2
    stored = RunFolder(run).read_results()
    assert stored is not None
    assert stored.doubts == ["step 0 was measured on other images than step 1: the data set has changed"]
    # Measured anew, both steps are measured on the same images, and what the first one was trained with is said.
    again = evaluate_path(run, quiet)
    assert len({step.split_digest for step in again.steps}) == 1
    assert [len(step.data_changes or ()) for step in again.steps] == [3, 0]


def test_a_resumed_scenario_tells_it_as_well(own: Settings, pictures: Path, tmp_path: Path, quiet: Console) -> None:
    run_single_step(own(), console=quiet, step=0)
    add(pictures, "a")
    said = heard(lambda console: run_scenario(own(), console=console, resume=True))
    assert "since step 0: 1 image added: a\n" in said
    add(pictures, "b")
    with pytest.raises(UsageError, match=r"the images and masks \(2 images added: a, b\)"):
        run_scenario(own(run=tmp_path / "other"), console=quiet, init_from=tmp_path / "own")


def test_images_that_were_trained_on_never_become_the_test(own: Settings, pictures: Path, quiet: Console) -> None:
    lists = {"train": [f"p{number}" for number in range(12)], "test": [f"p{number}" for number in range(12, 20)]}

    def write() -> None:
        for split, names in lists.items():
            (pictures / f"{split}.txt").write_text("\n".join(names))

    write()
    run_single_step(own(), console=quiet, step=0)
    lists["train"][3], lists["test"][0] = "p12", "p3"
    write()
    told = "1 images that step 0 was trained on are now for validation or test: p3"
    with pytest.raises(DataError, match=told):
        run_single_step(own(), console=quiet, step=1)
    with pytest.raises(DataError, match=told):
        run_scenario(own(), console=quiet, resume=True)
    results = evaluate_path(own().settings.run_folder, quiet)
    assert results.steps[0].data_changes == [
        "1 image now for test, not train: p3",
        "1 image now for train, not test: p12",
        "1 of the images measured on were trained on: p3",
    ]


def test_runs_of_earlier_versions_are_dealt_as_they_were(
    own: Settings, pictures: Path, tmp_path: Path, quiet: Console
) -> None:
    before = own(data__dealt_by="position", data__val_fraction=0.25)
    run_single_step(before, console=quiet, step=0)
    run = RunFolder(tmp_path / "own")
    checkpoint = load_checkpoint(run.checkpoint(0))
    assert sorted(checkpoint.images["test"]) == ["p12", "p17", "p4", "p9"]
    del checkpoint.settings["data"]["dealt_by"]
    assert restore_settings(checkpoint.settings).data.dealt_by == "position"
    stored = [line for line in run.settings.read_text().splitlines() if not line.startswith("dealt_by")]
    run.settings.write_text("\n".join(stored))
    assert read_settings(run.settings).data.dealt_by == "position"
    # Where nothing is dealt, the rule of then and that of now are one.
    listed = {"data": checkpoint.settings["data"] | {"dataset": "toy", "val_fraction": 0.0}}
    assert restore_settings(checkpoint.settings | listed).data.dealt_by == "name"
    # One that notes no images knows but that something has changed.
    save_checkpoint(run.checkpoint(0), type(checkpoint)(**vars(checkpoint) | {"images": {}}))
    assert evaluate_path(run.path, quiet).steps[0].data_changes is None
    add(pictures, "z")
    assert evaluate_path(run.path, quiet).steps[0].data_changes == [
        "images, masks or lists have changed (an earlier version did not note which)"
    ]
