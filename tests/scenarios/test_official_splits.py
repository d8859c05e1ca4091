"""Official split files: positions in the sorted train list, in place of the protocol's choice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from plopcli.data.datasets import load_dataset
from plopcli.data.index import class_index
from plopcli.data.samples import Sample
from plopcli.errors import DataError
from plopcli.scenarios.published_splits import read_splits
from plopcli.scenarios.scenario import Scenario, find_task

Folder = Callable[..., Path]
MIB_ADE = {
    "100-10": [13452, 1130, 1200, 1366, 1550, 1498],
    "100-50": [13452, 6744],
    "50": [8219, 6384, 5593],
}


def write(folder: Path, *steps: object) -> Path:
    folder.mkdir(exist_ok=True)
    for step, positions in enumerate(steps):
        np.save(folder / f"train-{step}.npy", np.array(positions))
    return folder


def samples(count: int) -> tuple[Sample, ...]:
    return tuple(Sample(f"ADE_train_{number:08d}", Path(), Path()) for number in range(1, count + 1))


@pytest.mark.parametrize("task", MIB_ADE)
def test_partitions_of_the_sizes_that_mib_published(task: str, tmp_path: Path) -> None:
    order = np.random.default_rng(0).permutation(20210)
    parts = np.split(order, np.cumsum(MIB_ADE[task]))[: len(MIB_ADE[task])]
    official = read_splits(write(tmp_path, *parts), len(parts), samples(20210))
    assert [len(rows) for rows in official.rows] == MIB_ADE[task]
    for rows, part in zip(official.rows, parts, strict=True):
        np.testing.assert_array_equal(rows, part)


def test_positions_count_in_the_sorted_list_and_labels_follow_the_protocol(folder_data: Folder, tmp_path: Path) -> None:
    root = folder_data({name: [0, 1, 2, 3] for name in ("e", "d", "c", "b", "a", "t")})
    (root / "train.txt").write_text("e\nd\nc\nb\na\n")
    data = load_dataset("folder", root.parent, root)
    index, task = class_index(data), find_task(data, "2-1")
    scenario = Scenario.build(data, index, task, "overlapped", splits=write(tmp_path / "s", [0, 1], [4, 2]))
    assert [sample.name for sample in scenario.training(0).samples] == ["a", "b"]
    assert [sample.name for sample in scenario.training(1).samples] == ["e", "c"]
    assert scenario.training(1).table[:4].tolist() == [0, 0, 0, 3]
    assert len(scenario.evaluation(1, "test")) == 1
    plain = Scenario.build(data, index, task, "overlapped")
    assert scenario.fingerprint != plain.fingerprint
    assert plain.fingerprint == index.content
    assert "as listed in" in scenario.notes[0]
    joint = Scenario.build(data, index, task.joined(), "overlapped", splits=tmp_path / "s")
    assert len(joint.training(0)) == 4


def test_held_out_images_do_not_train(folder_data: Folder, tmp_path: Path) -> None:
    root = folder_data({f"p{number:02d}": [0, 1, 2, 3] for number in range(20)})
    data = load_dataset("folder", root.parent, root)
    splits = write(tmp_path / "s", *[range(len(data.splits["train"]))] * 2)
    task = find_task(data, "2-1")
    scenario = Scenario.build(data, class_index(data), task, "overlapped", 0.25, splits)
    held = {sample.name for sample in scenario.evaluation(1, "val").samples}
    assert 1 <= len(held) <= 8
    assert held.isdisjoint(sample.name for sample in scenario.training(1).samples)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (([0, 1],), r"train-1.npy does not exist. The folder holds train-0.npy"),
        ((), r"The folder holds no .npy file"),
        (([0, 1], []), r"train-1.npy"),
        (([0, 5], [1]), r"names image 5, but the train list has images 0 to 4"),
        (([0, -1], [1]), r"names image -1"),
        (([0, 0], [1]), r"names an image twice"),
        (([0.5], [1]), r"no list of positions"),
        (([[0], [1]], [1]), r"no list of positions"),
    ],
)
def test_wrong_files_say_what_is_wrong(steps: tuple[object, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read_splits(write(tmp_path / "s", *steps), 2, samples(5))


def test_a_damaged_file_and_an_empty_step_say_so(tmp_path: Path) -> None:
    folder = write(tmp_path / "s", [0], np.array([], dtype=np.int64))
    with pytest.raises(DataError, match=r"train-1.npy is empty: step 1"):
        read_splits(folder, 2, samples(5))
    (folder / "train-1.npy").write_bytes(b"nonsense")
    with pytest.raises(DataError, match="cannot be read"):
        read_splits(folder, 2, samples(5))
