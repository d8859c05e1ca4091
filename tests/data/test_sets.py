"""Finding each data set in every layout that people have, and saying what is missing of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plopcli.data.datasets import DATASETS, class_facts, load_dataset
from plopcli.data.index import class_index
from plopcli.errors import DataError
from plopcli.scenarios.protocols import PROTOCOLS
from plopcli.scenarios.scenario import Scenario, find_task

SAMPLES = Path("/work/shared/data/ade_samples")


def picture(path: Path, ids: np.ndarray | None = None) -> None:
    """An image of 16 x 8 pixels, or a mask with these ids in its columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if ids is None:
        Image.new("RGB", (16, 8), (90, 120, 60)).save(path)
    else:
        Image.fromarray(np.resize(np.asarray(ids, dtype=np.uint8), (8, 16))).save(path)


def voc_tree(root: Path, base: str, lists: dict[str, str], masks: str = "SegmentationClassAug") -> Path:
    """A VOC tree with images a to d; ``lists`` are paths below ``base`` and their content."""
    for number, name in enumerate("abcd"):
        picture(root / base / "JPEGImages" / f"{name}.jpg")
        picture(root / base / masks / f"{name}.png", np.array([0, number + 1, 255]))
    for path, content in lists.items():
        (root / base / path).parent.mkdir(parents=True, exist_ok=True)
        (root / base / path).write_text(content)
    return root


PAIRS = "/JPEGImages/{0}.jpg /SegmentationClassAug/{0}.png\n"
NAMES = {"train": "b\na\n", "val": "c\nd\n"}
AS_PAIRS = {split: "".join(PAIRS.format(name) for name in names.split()) for split, names in NAMES.items()}


@pytest.mark.parametrize(
    ("base", "lists"),
    [
        ("VOCdevkit/VOC2012", {"ImageSets/Segmentation/trainaug.txt": NAMES, "ImageSets/Segmentation/val.txt": NAMES}),
        ("VOCdevkit/VOC2012", {"train_aug.txt": AS_PAIRS, "val.txt": AS_PAIRS}),
        ("PascalVOC12", {"list/train_aug.txt": AS_PAIRS, "list/val.txt": AS_PAIRS}),
        ("PascalVOC12", {"splits/train_aug.txt": AS_PAIRS, "splits/val.txt": AS_PAIRS}),
        ("VOC2012", {"ImageSets/Segmentation/train_aug.txt": NAMES, "ImageSets/Segmentation/val.txt": NAMES}),
        (".", {"ImageSets/Segmentation/train_aug.txt": NAMES, "ImageSets/Segmentation/val.txt": NAMES}),
    ],
)
def test_every_tree_of_voc_is_found(tmp_path: Path, base: str, lists: dict[str, dict[str, str]]) -> None:
    contents = {path: content["val" if path.endswith("val.txt") else "train"] for path, content in lists.items()}
    data = load_dataset("voc", tmp_path, voc_tree(tmp_path, base, contents))
    assert {split: [sample.name for sample in samples] for split, samples in data.splits.items()} == {
        "train": ["b", "a"],
        "test": ["c", "d"],
    }
    counts = class_index(data).counts["train"]
    assert counts[0][[0, 2, 255]].tolist() == [43, 43, 42]


def test_voc_measures_on_its_own_masks(tmp_path: Path) -> None:
    lists = {"ImageSets/Segmentation/trainaug.txt": "a\nc\n", "ImageSets/Segmentation/val.txt": "b\n"}
    root = voc_tree(tmp_path, "VOC2012", lists)
    picture(root / "VOC2012" / "SegmentationClass" / "b.png", np.array([0, 7]))
    picture(root / "VOC2012" / "SegmentationClass" / "c.png", np.array([0, 7]))
    data = load_dataset("voc", tmp_path, root)
    assert data.splits["test"][0].mask.parent.name == "SegmentationClass"
    assert data.splits["train"][1].mask.parent.name == "SegmentationClassAug"


def test_half_of_voc_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no JPEGImages/. Looked for .*VOCdevkit/VOC2012/JPEGImages, .*PascalVOC12"):
        load_dataset("voc", tmp_path, tmp_path)
    root = voc_tree(tmp_path, "VOCdevkit/VOC2012", {"ImageSets/Segmentation/train.txt": "a\n"})
    with pytest.raises(DataError) as error:
        load_dataset("voc", tmp_path, root)
    assert "no list train_aug.txt" in error.value.message
    assert "ImageSets/Segmentation/trainaug.txt, " in error.value.message
    assert error.value.hint is not None
    assert "10,582" in error.value.hint
    for path in (root / "VOCdevkit/VOC2012/SegmentationClassAug").iterdir():
        path.unlink()
    (root / "VOCdevkit/VOC2012/SegmentationClassAug").rmdir()
    with pytest.raises(DataError, match="but no masks: neither SegmentationClassAug/ nor SegmentationClass/"):
        load_dataset("voc", tmp_path, root)


def test_a_list_of_voc_names_no_image_twice_and_names_may_hold_spaces(tmp_path: Path) -> None:
    lists = {"train_aug.txt": "é ü\n", "val.txt": "c\nd\nc\n"}
    root = voc_tree(tmp_path, "VOC2012", lists)
    with pytest.raises(DataError, match=r"val.txt names 'c' twice"):
        load_dataset("voc", tmp_path, root)
    (root / "VOC2012" / "val.txt").write_text("c\n")
    assert load_dataset("voc", tmp_path, root).splits["train"][0].image.name == "é ü.jpg"


def ade_tree(root: Path) -> Path:
    for folder, numbers in (("training", (2, 1)), ("validation", (7,))):
        for number in numbers:
            name = f"ADE_{folder[:5]}_{number:08d}"
            picture(root / "ADEChallengeData2016" / "images" / folder / f"{name}.jpg")
            picture(root / "ADEChallengeData2016" / "annotations" / folder / f"{name}.png", np.array([0, number, 150]))
    return root


def test_ade_is_found_in_order_of_name(tmp_path: Path) -> None:
    data = load_dataset("ade", tmp_path, ade_tree(tmp_path))
    assert [sample.name for sample in data.splits["train"]] == ["ADE_train_00000001", "ADE_train_00000002"]
    assert len(data.classes) == 151
    assert data.notes == ()
    counts = class_index(data).counts
    assert np.flatnonzero(counts["test"][0]).tolist() == [0, 7, 150]
    assert load_dataset("ade", tmp_path, tmp_path / "ADEChallengeData2016").splits["test"]


def test_half_of_ade_says_so(tmp_path: Path) -> None:
    root = ade_tree(tmp_path)
    (root / "ADEChallengeData2016" / "images" / "training").rename(root / "elsewhere")
    data = load_dataset("ade", tmp_path, root)
    assert data.splits["train"] == ()
    assert "images/training does not exist: there is nothing for train" in data.notes[0]
    (root / "ADEChallengeData2016" / "annotations" / "validation").rename(root / "elsewhere too")
    with pytest.raises(DataError, match=r"has no masks: .*annotations/validation does not exist"):
        load_dataset("ade", tmp_path, root)
    with pytest.raises(DataError, match=r"no images/. Looked for"):
        load_dataset("ade", tmp_path, root / "elsewhere")


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="the genuine samples are not on this machine")
def test_genuine_samples_of_ade(tmp_path: Path) -> None:
    (tmp_path / "ADEChallengeData2016").symlink_to(SAMPLES / "ADEChallengeData2016")
    data = load_dataset("ade", tmp_path, tmp_path)
    counts = class_index(data).counts["test"]
    assert counts.shape == (3, 256)
    assert (counts[:, :4] > 0).all(), "each shows unlabelled pixels, wall, building and sky"


def test_cityscapes_turns_label_ids_into_classes_after_a_background(city_root: Path) -> None:
    data = load_dataset("cityscapes", city_root)
    assert data.classes[:3] == ("background", "road", "sidewalk")
    assert len(data.classes) == 20
    assert {split: len(samples) for split, samples in data.splits.items()} == {"train": 24, "test": 16}
    assert data.splits["train"][0].name == "aachen_000000_000019"
    assert {sample.domain for sample in data.splits["train"]} == {""}
    table = data.label_table
    # road, bicycle, unlabeled, licence plate, and what is no id of Cityscapes
    assert table[[7, 33, 0, 255, 200]].tolist() == [1, 19, 255, 255, 254]
    for entry in class_facts()["cityscapes"]:
        assert table[entry["label_id"]] == entry["train_id"] + 1
    counts = class_index(data).counts["train"]
    assert counts[:, 0].sum() == 0, "the background is what is not learned yet"
    assert counts[:, 255].sum() > 0
    assert counts.sum(axis=1).tolist() == [64 * 128] * 24


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_classes_of_cityscapes_are_learned_under_every_protocol(city_root: Path, tmp_path: Path, protocol: str) -> None:
    path = tmp_path / "streets.toml"
    path.write_text('steps = [["road", "building"], ["sky"], ["car", "vegetation"]]')
    data = load_dataset("cityscapes", city_root)
    scenario = Scenario.build(data, class_index(data), find_task(data, str(path)), protocol)
    assert [len(scenario.evaluation(step, "test")) for step in range(3)] == [16, 16, 16]
    # road, sidewalk (in no step), building, vegetation, sky, unlabeled, licence plate
    ids = [7, 8, 11, 21, 23, 0, 255]
    old = [1, 2] if protocol == "sequential" else [0, 0]
    assert scenario.evaluation(1, "test").table[ids].tolist() == [1, 0, 2, 0, 3, 255, 255]
    assert scenario.training(2).table[ids].tolist() == [old[0], 0, old[1], 5, old[1] and 3, 255, 255]
    if protocol == "overlapped":
        assert scenario.training(0).table[ids].tolist() == [1, 0, 2, 0, 0, 255, 255]
    else:
        with pytest.raises(DataError, match="24 of 24 hold road, building, but a class of a later step as well"):
            scenario.training(0)


def test_cities_are_pooled_without_a_background(city_root: Path) -> None:
    data = load_dataset("cityscapes-domain", city_root)
    assert data.classes[0] == "road"
    assert len(data.classes) == 19
    assert [sample.domain for sample in data.splits["all"]][::8] == [
        "aachen",
        "bremen",
        "zurich",
        "frankfurt",
        "lindau",
    ]
    assert data.domains[0] == "aachen"
    assert len(data.domains) == 21


def test_archives_of_cityscapes_may_lie_in_folders_of_their_names(city_root: Path, tmp_path: Path) -> None:
    for name, archive in (("leftImg8bit", "leftImg8bit_trainvaltest"), ("gtFine", "gtFine_trainvaltest")):
        (tmp_path / archive).mkdir()
        (tmp_path / archive / name).symlink_to(city_root / "cityscapes" / name)
    assert len(load_dataset("cityscapes", tmp_path, tmp_path).splits["train"]) == 24


def test_half_of_cityscapes_says_so(city_root: Path, tmp_path: Path) -> None:
    (tmp_path / "leftImg8bit").symlink_to(city_root / "cityscapes" / "leftImg8bit")
    with pytest.raises(DataError, match=r"no gtFine/. Looked for .*gtFine_trainvaltest/gtFine"):
        load_dataset("cityscapes", tmp_path, tmp_path)
    (tmp_path / "gtFine").mkdir()
    (tmp_path / "gtFine" / "train").symlink_to(city_root / "cityscapes" / "gtFine" / "train")
    with pytest.raises(DataError, match=r"leftImg8bit/val has no masks: .*gtFine/val does not exist"):
        load_dataset("cityscapes", tmp_path, tmp_path)


def test_a_city_that_is_none_is_refused(tmp_path: Path) -> None:
    picture(tmp_path / "leftImg8bit" / "train" / "atlantis" / "atlantis_000000_000019_leftImg8bit.png")
    (tmp_path / "gtFine" / "train").mkdir(parents=True)
    with pytest.raises(DataError, match="the city atlantis"):
        load_dataset("cityscapes-domain", tmp_path, tmp_path)


def test_an_id_that_cityscapes_does_not_have_is_a_problem(city_root: Path, tmp_path: Path) -> None:
    stem = "leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png"
    mask = "gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png"
    picture(tmp_path / stem)
    picture(tmp_path / mask, np.array([7, 34]))
    with pytest.raises(DataError, match=r"labelIds.png holds id 34; the classes end at 33: are the ids off by one"):
        class_index(load_dataset("cityscapes", tmp_path, tmp_path))


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "folder"])
def test_the_registry_knows_the_number_of_classes(name: str, city_root: Path, toy_root: Path, tmp_path: Path) -> None:
    roots: dict[str, Callable[[], Path]] = {
        "voc": lambda: voc_tree(tmp_path, "VOC2012", {"train_aug.txt": "a\n", "val.txt": "b\n"}),
        "ade": lambda: ade_tree(tmp_path),
        "toy": lambda: toy_root / "toy",
    }
    root = roots[name]() if name in roots else None
    assert len(load_dataset(name, city_root, root).classes) == DATASETS[name].classes
