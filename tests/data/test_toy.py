"""The generated data set: format, traits, determinism, and a tree that is either complete or not there."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plopcli.data.palettes import voc_palette
from plopcli.data.toy import (
    TOY_CLASSES,
    VOC_FOLDER,
    ToyParameters,
    generate_toy,
    read_toy_parameters,
)
from plopcli.data.toy.difficulty import VARIATIONS
from plopcli.data.toy.scene import draw_scene
from plopcli.data.toy.shapes import SHAPES
from plopcli.data.toy.textures import TEXTURES
from plopcli.errors import DataError, UsageError

COUNTS = {"train": 60, "val": 40, "test": 40}
SIZE = 64
TINY = {"train": 3, "val": 1, "test": 1, "size": 32}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("generated") / "toy"
    generate_toy(root, seed=3, size=SIZE, **COUNTS)
    return root


def names(root: Path, split: str) -> list[str]:
    return (root / VOC_FOLDER / "ImageSets" / "Segmentation" / f"{split}.txt").read_text().split()


def picture(root: Path, name: str) -> np.ndarray:
    with Image.open(root / VOC_FOLDER / "JPEGImages" / f"{name}.jpg") as image:
        assert image.mode == "RGB"
        return np.asarray(image)


def mask(root: Path, name: str) -> np.ndarray:
    with Image.open(root / VOC_FOLDER / "SegmentationClassAug" / f"{name}.png") as image:
        assert image.mode == "P"
        return np.asarray(image)


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_tree_is_laid_out_like_voc(tree: Path) -> None:
    folder = tree / VOC_FOLDER
    assert (folder / "classes.txt").read_text().splitlines() == list(TOY_CLASSES)
    stems = [name for split in COUNTS for name in names(tree, split)]
    assert len(set(stems)) == len(stems) == sum(COUNTS.values())
    assert {split: len(names(tree, split)) for split in COUNTS} == COUNTS
    assert sorted(path.stem for path in (folder / "JPEGImages").glob("*.jpg")) == sorted(stems)
    assert sorted(path.stem for path in (folder / "SegmentationClassAug").glob("*.png")) == sorted(stems)
    assert len(list(tree.rglob("*.*"))) == 2 * len(stems) + len(("train", "val", "test", "classes", "toy"))


def test_masks_are_palette_pngs_with_voc_colours(tree: Path) -> None:
    seen = set()
    for split in COUNTS:
        for name in names(tree, split):
            ids = mask(tree, name)
            assert ids.shape == (SIZE, SIZE)
            assert picture(tree, name).shape == (SIZE, SIZE, 3)
            seen |= set(np.unique(ids).tolist())
    assert seen == {*range(21), 255}
    with Image.open(tree / VOC_FOLDER / "SegmentationClassAug" / "train_000000.png") as image:
        assert image.getpalette() == voc_palette().ravel().tolist()


def test_there_are_twenty_classes_each_with_a_shape_and_a_texture_of_its_own() -> None:
    assert len(TOY_CLASSES) == len(set(TOY_CLASSES)) == 21
    assert TOY_CLASSES[0] == "background"
    assert set(TOY_CLASSES[1:]) == set(SHAPES) == set(TEXTURES)
    assert len(set(TEXTURES.values())) == 20


@pytest.mark.parametrize("split", list(COUNTS))
def test_classes_are_equally_frequent_in_every_list(tree: Path, split: str) -> None:
    found = Counter(int(label) for name in names(tree, split) for label in np.unique(mask(tree, name)))
    per_class = [found[label] for label in range(1, 21)]
    expected = 3.5 * COUNTS[split] / 20
    assert min(per_class) >= 0.7 * expected
    assert max(per_class) <= 1.3 * expected + 1


def test_several_objects_meet_in_a_picture_old_with_new(tree: Path) -> None:
    present = [set(np.unique(mask(tree, name)).tolist()) - {0, 255} for name in names(tree, "train")]
    assert sum(len(labels) >= 2 for labels in present) >= 0.9 * len(present)
    assert max(len(labels) for labels in present) <= 5
    late = [labels for labels in present if max(labels) > 15]
    assert sum(min(labels) <= 15 for labels in late) > 0.8 * len(late)


def test_classes_cover_comparable_areas() -> None:
    share = []
    for label in range(1, 21):
        masks = [draw_scene(np.random.default_rng([label, k]), [label], 64, VARIATIONS["easy"])[1] for k in range(12)]
        share.append(float(np.mean([(ids == label).mean() for ids in masks])))
    assert min(share) > 0.07
    assert max(share) < 0.17
    assert max(share) / min(share) < 1.7


def test_a_thin_void_contour_parts_all_labels(tree: Path) -> None:
    void = []
    for name in names(tree, "train"):
        ids = mask(tree, name)
        for near, far in ((ids[:, :-1], ids[:, 1:]), (ids[:-1], ids[1:])):
            assert not np.any((near != far) & (near != 255) & (far != 255)), name
        void.append(float((ids == 255).mean()))
    assert 0.03 < np.mean(void) < 0.12


def test_masks_lie_on_the_objects() -> None:
    aligned, shifted = [], []
    for k in range(12):
        image, ids = draw_scene(np.random.default_rng(k), [1 + k, 20 - k], 96, VARIATIONS["easy"])
        grey = image.astype(np.float32).mean(axis=2)
        edges = np.hypot(*np.gradient(grey))
        contour = ids == 255
        aligned.append(edges[contour].mean())
        shifted += [edges[np.roll(contour, by, axis)].mean() for by in (-3, 3) for axis in (0, 1)]
    assert np.mean(aligned) > 1.5 * np.mean(shifted)


def test_later_objects_hide_earlier_ones_but_leave_them_visible() -> None:
    for k in range(20):
        labels = [1, 5, 10, 15, 20]
        ids = draw_scene(np.random.default_rng(k), labels, 96, VARIATIONS["medium"])[1]
        assert set(labels) <= set(np.unique(ids).tolist())
        assert min(int((ids == label).sum()) for label in labels) > 0.01 * 96 * 96


def test_the_seed_decides_every_byte(tmp_path: Path) -> None:
    for folder, seed in (("one", 7), ("two", 7), ("other", 8)):
        generate_toy(tmp_path / folder, seed=seed, **TINY)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    record = str(VOC_FOLDER / "toy.json")
    one, other = contents(tmp_path / "one"), contents(tmp_path / "other")
    same = [name for name in one if one[name] == other[name]]
    assert not any(name.endswith((".jpg", ".png")) for name in same)
    assert record not in same


def test_lists_show_different_pictures(tree: Path) -> None:
    first = [picture(tree, f"{split}_000000") for split in COUNTS]
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first[1], first[2])


def test_more_difficult_pictures_have_busier_backgrounds_and_more_poses() -> None:
    busy = []
    for difficulty in ("easy", "medium", "hard"):
        rough = []
        for k in range(15):
            image, ids = draw_scene(np.random.default_rng(k), [3, 9], 64, VARIATIONS[difficulty])
            edges = np.hypot(*np.gradient(image.astype(np.float32).mean(axis=2)))
            rough.append(edges[ids == 0].mean())
        busy.append(float(np.mean(rough)))
    assert busy[0] < busy[1] < busy[2]


def test_parameters_can_be_read_back(tree: Path, tmp_path: Path) -> None:
    assert read_toy_parameters(tree) == ToyParameters(seed=3, size=SIZE, **COUNTS)
    assert read_toy_parameters(tree) == ToyParameters(seed=3, size=SIZE, **COUNTS)
    assert read_toy_parameters(tree) != ToyParameters()
    assert read_toy_parameters(tmp_path) is None


def test_a_second_call_changes_nothing(tmp_path: Path) -> None:
    root = tmp_path / "toy"
    steps: list[tuple[int, int]] = []
    generate_toy(root, progress=lambda done, total: steps.append((done, total)), **TINY)
    assert steps == [(done, 5) for done in range(1, 6)]
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    generate_toy(root, progress=lambda done, total: pytest.fail("generated again"), **TINY)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


@pytest.mark.parametrize("change", [{"seed": 1}, {"difficulty": "hard"}, {"train": 4}, {"size": 48}])
def test_other_parameters_never_overwrite_a_tree(tmp_path: Path, change: dict[str, int | str]) -> None:
    root = tmp_path / "toy"
    generate_toy(root, **TINY)
    before = contents(root)
    with pytest.raises(DataError, match=next(iter(change))) as caught:
        generate_toy(root, **{**TINY, **change})
    assert caught.value.hint is not None
    assert contents(root) == before


def test_an_interruption_leaves_nothing(tmp_path: Path) -> None:
    root = tmp_path / "toy"

    def interrupt(done: int, total: int) -> None:
        if done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate_toy(root, progress=interrupt, **TINY)
    assert list(tmp_path.iterdir()) == []
    generate_toy(root, **TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


def test_a_killed_process_leaves_nothing_that_looks_complete(tmp_path: Path) -> None:
    root = tmp_path / "toy"
    program = (
        "import os; from pathlib import Path; from plopcli.data.toy import generate_toy; "
        f"generate_toy(Path({str(root)!r}), **{TINY!r}, progress=lambda done, total: done < total or os._exit(9))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 9
    assert not root.exists()
    (left,) = tmp_path.iterdir()
    assert len(list(left.rglob("*.jpg"))) == 5
    assert read_toy_parameters(left) is None
    generate_toy(root, **TINY)
    assert read_toy_parameters(root) == ToyParameters(**TINY)


def test_two_processes_may_generate_the_same_tree(tmp_path: Path) -> None:
    root = tmp_path / "toy"

    def overtake(done: int, total: int) -> None:
        if done == total:
            generate_toy(root, **TINY)

    generate_toy(root, progress=overtake, **TINY)
    assert read_toy_parameters(root) == ToyParameters(**TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


def test_an_empty_folder_is_filled_and_a_full_one_is_left_alone(tmp_path: Path) -> None:
    empty, full, file = tmp_path / "empty", tmp_path / "full", tmp_path / "file"
    empty.mkdir()
    generate_toy(empty, **TINY)
    assert read_toy_parameters(empty) == ToyParameters(**TINY)
    full.mkdir()
    (full / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match="not empty"):
        generate_toy(full, **TINY)
    assert contents(full) == {"thesis.tex": b"years of work"}
    file.write_text("")
    with pytest.raises(DataError, match="is a file"):
        generate_toy(file, **TINY)


@pytest.mark.parametrize("record", ["", "{", "[]", '{"seed": 0, "colour": "red"}'])
def test_a_tree_without_a_good_record_is_not_trusted(tmp_path: Path, record: str) -> None:
    root = tmp_path / "toy"
    generate_toy(root, **TINY)
    (root / VOC_FOLDER / "toy.json").write_text(record)
    assert read_toy_parameters(root) is None
    with pytest.raises(DataError, match="does not hold a complete"):
        generate_toy(root, **TINY)


def test_wrong_arguments_are_all_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="seed is -1") as caught:
        generate_toy(tmp_path / "toy", seed=-1, train=0, size=8)
    assert "train is 0" in caught.value.message
    assert "size is 8" in caught.value.message
    with pytest.raises(UsageError, match="no difficulty") as caught:
        generate_toy(tmp_path / "toy", difficulty="medum")  # type: ignore[arg-type]
    assert caught.value.hint == "Did you mean medium?"
    assert not (tmp_path / "toy").exists()


def test_a_folder_that_cannot_be_written_is_a_data_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="could not be written"):
        generate_toy(tmp_path / "file" / "toy", **TINY)
