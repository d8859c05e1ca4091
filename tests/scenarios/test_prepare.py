"""`plop prepare`: every pair decoded, problems listed, bad pairs skipped, changes noticed."""

from __future__ import annotations

import json
import os
import re
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

from plopcli.data.datasets import load_dataset
from plopcli.data.index import INDEX_FILE, class_index, inspect
from plopcli.errors import DataError, UsageError
from plopcli.scenarios.prepare import PROBLEMS_FILE, Preparation, prepare
from plopcli.scenarios.scenario import Scenario, find_task
from plopcli.settings.sections import DataSettings, ScenarioSettings

Folder = Callable[..., Path]
Check = Callable[..., dict[str, Any]]


@pytest.fixture
def check(quiet: Console) -> Check:
    """`prepare` on a folder of one's own."""

    def run(root: Path, **chosen: Any) -> dict[str, Any]:
        settings = DataSettings(dataset="folder", path=root)
        return prepare(settings, ScenarioSettings(task="2-1"), Preparation(**chosen), quiet)

    return run


@pytest.fixture
def pets(folder_data: Folder) -> Path:
    """Ten pairs: p0 to p9, with cat and dog; p5 has bird as well."""
    return folder_data({f"p{number}": [0, 1, 2 if number != 5 else 3] for number in range(10)})


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])


def test_sound_data_gives_counts_and_steps(check: Check, pets: Path) -> None:
    answer = check(pets, steps=True)
    assert answer["images"] == {"train": 8, "test": 2}
    assert answer["classes"][3] == {"name": "bird", "images": 1, "pixels": 192}
    assert answer["steps"] == [
        {"step": 0, "train": 8, "val": 0, "test": 2},
        {"step": 1, "train": 1, "val": 0, "test": 2},
    ]
    assert answer["refused"] is None
    assert answer["problems"] == []
    assert not (pets / PROBLEMS_FILE).exists()
    assert check(pets, steps=True, ids=True)["steps"][1]["train"] == ["p5"]


def test_a_cut_image_is_found_although_its_header_is_sound(check: Check, pets: Path) -> None:
    cut(pets / "images" / "p3.jpg")
    data = load_dataset("folder", pets, pets)
    class_index(data)  # training looks at headers alone
    answer = check(pets)
    assert [(kind["kind"], kind["pairs"]) for kind in answer["problems"]] == [("image broken", 1)]
    with pytest.raises(DataError, match="1 of 10 image and mask pairs are unusable"):
        class_index(data)


def test_problems_are_listed_by_kind_and_in_a_file(check: Check, pets: Path) -> None:
    cut(pets / "images" / "p3.jpg")
    for name in ("p6", "p7"):
        (pets / "masks" / f"{name}.png").unlink()
    answer = check(pets)
    assert "3 of 10" in answer["refused"]
    assert [(kind["kind"], kind["pairs"]) for kind in answer["problems"]] == [("mask missing", 2), ("image broken", 1)]
    listed = json.loads((pets / PROBLEMS_FILE).read_text("utf-8"))
    assert [(entry["name"], entry["kind"], entry["split"]) for entry in listed] == [
        ("p3", "image broken", "train"),
        ("p7", "mask missing", "train"),
        ("p6", "mask missing", "test"),
    ]
    assert listed[0]["image"].endswith("p3.jpg")
    assert not listed[0]["skipped"]


def test_skipped_pairs_are_gone_from_training_and_from_the_fingerprint(check: Check, pets: Path) -> None:
    sound = class_index(load_dataset("folder", pets, pets))
    cut(pets / "images" / "p3.jpg")
    answer = check(pets, skip_bad=True, steps=True)
    assert answer["refused"] is None
    assert answer["skipped"] == ["p3"]
    assert answer["steps"][0]["train"] == 7
    data = load_dataset("folder", pets, pets)
    index = class_index(data)
    scenario = Scenario.build(data, index, find_task(data, "2-1"), "overlapped")
    assert "p3" not in [sample.name for sample in scenario.training(0).samples]
    assert [sample.name for sample in scenario.training(1).samples] == ["p5"], "rows and samples still agree"
    assert scenario.notes == ["without 1 unusable images: p3"]
    assert index.content != sound.content
    # What goes bad later was not agreed to, what is mended comes back.
    (pets / "masks" / "p8.png").write_bytes(b"")
    with pytest.raises(DataError, match="1 of 10"):
        class_index(data)
    Image.new("RGB", (24, 24)).save(pets / "images" / "p3.jpg")
    Image.fromarray(np.zeros((24, 24), dtype=np.uint8)).save(pets / "masks" / "p8.png")
    assert class_index(data).skipped == ()


def test_only_what_has_changed_is_checked_again(check: Check, pets: Path) -> None:
    assert check(pets)["changes"] == "10 pairs checked"
    assert check(pets)["changes"] == "nothing changed since the last time"
    (pets / "images" / "p1.jpg").touch()
    for name in ("p8", "q0"):
        Image.fromarray(np.full((24, 24), 2, dtype=np.uint8)).save(pets / "masks" / f"{name}.png")
        Image.new("RGB", (24, 24)).save(pets / "images" / f"{name}.jpg")
    for folder, suffix in (("images", "jpg"), ("masks", "png")):
        (pets / folder / f"p2.{suffix}").unlink()
    counted: list[int] = []
    found = inspect(load_dataset("folder", pets, pets), lambda done, total: counted.append(total), whole=True)
    assert counted == [3]
    assert str(found.changes) == "3 pairs checked; 1 added, 2 changed, 1 removed since the last time"
    assert found.index().counts["train"][-3:, 2].tolist() == [576, 192, 576]
    # Rows of unchanged pairs have moved, and still are their own.
    again = inspect(load_dataset("folder", pets, pets), whole=True).index()
    (pets / INDEX_FILE).unlink()
    anew = inspect(load_dataset("folder", pets, pets), whole=True).index()
    assert again.content == anew.content


def test_a_moved_data_set_keeps_its_index(check: Check, pets: Path) -> None:
    check(pets)
    moved = pets.rename(pets.with_name("moved"))
    assert check(moved)["changes"] == "nothing changed since the last time"


def test_a_folder_that_cannot_be_written_is_counted_anew(
    check: Check, pets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "replace", refuse)
    answer = check(pets)
    assert "could not be written" in answer["notes"][0]
    assert not list(pets.glob("*.part"))
    (pets / "images" / "p1.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="what is skipped cannot be remembered"):
        check(pets, skip_bad=True)


def test_ids_that_count_from_1_are_suspected(check: Check, folder_data: Folder) -> None:
    root = folder_data({f"p{number}": [1, 2, 3] for number in range(5)})
    assert check(root)["notes"] == ["no mask holds id 0, background: do the ids count from 1?"]


PALETTE = "0 0 0 background\n255, 0, 0 cat\n#00ff00 dog\n0 0 255 bird\n9 9 9 ignored\n200 0 0 cat\n"
COLOURS = np.array([(0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255)], dtype=np.uint8)


def paint(root: Path, *names: str) -> None:
    """Turns masks into colour masks; one pixel is ignored, and one of cat's second colour."""
    for name in names:
        pixels = COLOURS[np.asarray(Image.open(root / "masks" / f"{name}.png"))]
        pixels[0, 0], pixels[1, 0] = 9, (200, 0, 0)
        Image.fromarray(pixels).save(root / "masks" / f"{name}.png")


def test_masks_in_colour_are_converted(check: Check, pets: Path) -> None:
    truth = np.asarray(Image.open(pets / "masks" / "p5.png")).copy()
    paint(pets, *(f"p{number}" for number in range(9)))
    assert check(pets)["problems"][0]["kind"] == "mask in colour"
    palette = pets.parent / "palette.txt"
    palette.write_text(PALETTE)
    target = pets.parent / "ids"
    answer = check(pets, palette=str(palette), convert_to=target)
    assert answer["root"] == str(target)
    assert answer["problems"] == []
    ids = np.asarray(Image.open(target / "masks" / "p5.png")).copy()
    assert (ids[0, 0], ids[1, 0]) == (255, 1)
    truth[0, 0], truth[1, 0] = 255, 1
    np.testing.assert_array_equal(ids, truth)
    assert (target / "masks" / "p9.png").read_bytes() == (pets / "masks" / "p9.png").read_bytes(), "held ids already"
    assert (target / "classes.txt").exists()
    assert not (target / PROBLEMS_FILE).exists()


def test_converted_ids_are_those_of_the_files_where_a_background_is_put_before(
    folder_data: Folder, quiet: Console
) -> None:
    root = folder_data({name: [0, 1, 0] for name in "abcde"}, classes=["cat", "dog"])
    for name in "abcde":
        paint(root, name)
    palette = root.parent / "palette.txt"
    palette.write_text("0 0 0 cat\n255 0 0 dog\n9 9 9 ignored\n200 0 0 ignored\n")
    chosen = Preparation(palette=str(palette), convert_to=root.parent / "ids")
    settings = DataSettings(dataset="folder", path=root, background=False)
    answer = prepare(settings, ScenarioSettings(), chosen, quiet)
    assert [entry["images"] for entry in answer["classes"]] == [0, 5, 5]


def test_unknown_colours_are_named(check: Check, pets: Path) -> None:
    paint(pets, "p0")
    palette = pets.parent / "palette.txt"
    palette.write_text("0 0 0 background\n255 0 0 cat\n9 9 9 ignored\n")
    with pytest.raises(
        DataError, match=r"p0.png holds colours .* \(0, 255, 0\) in 192 pixels, \(200, 0, 0\) in 1 pixels"
    ):
        check(pets, palette=str(palette), convert_to=pets.parent / "ids")
    listed = json.loads((pets.parent / "ids" / PROBLEMS_FILE).read_text("utf-8"))
    assert [entry["kind"] for entry in listed] == ["unknown colours"]


def test_colours_count_in_palette_masks_where_a_palette_is_given(check: Check, pets: Path) -> None:
    """As programs write them that number the colours of each mask by itself."""
    truth = {path.name: np.asarray(Image.open(path)) for path in sorted((pets / "masks").iterdir())}
    rng = np.random.default_rng(0)
    for name, ids in truth.items():
        order = rng.permutation(4).astype(np.uint8)  # the index of each class
        indexed = Image.fromarray(order[ids])
        indexed.putpalette(COLOURS[np.argsort(order)].tobytes())
        indexed.save(pets / "masks" / name)
    notes = check(pets)["notes"]
    assert any("convert by colour with --palette FILE" in note for note in notes), notes
    palette = pets.parent / "palette.txt"
    palette.write_text(PALETTE)
    target = pets.parent / "ids"
    answer = check(pets, palette=str(palette), convert_to=target)
    assert not any("convert by colour" in note for note in answer["notes"])
    for name, ids in truth.items():
        np.testing.assert_array_equal(np.asarray(Image.open(target / "masks" / name)), ids)


def test_masks_of_0_and_255_ask_whether_255_is_a_class(check: Check, folder_data: Folder) -> None:
    root = folder_data({f"p{number}": [0, 255, 0] for number in range(5)}, classes=["background", "disc"])
    assert any("Is 255 your class?" in note for note in check(root)["notes"])
    data = load_dataset("folder", root.parent, root)
    scenario = Scenario.build(data, class_index(data), find_task(data, "offline", 0), "overlapped")
    with pytest.raises(DataError, match=r"Is 255 your class\?"):
        scenario.training(0)
    palette = root.parent / "palette.txt"
    palette.write_text("0 0 0 background\n255 255 255 disc\n")
    answer = check(root, palette=str(palette), convert_to=root.parent / "ids")
    assert [entry["pixels"] for entry in answer["classes"]] == [1920, 960]
    assert not any("255" in note for note in answer["notes"])


def test_palette_masks_of_ids_stay_where_no_colour_of_theirs_is_named(check: Check, pets: Path) -> None:
    for path in (pets / "masks").iterdir():
        indexed = Image.fromarray(np.asarray(Image.open(path)))
        indexed.putpalette([0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
        indexed.save(path)
    palette = pets.parent / "palette.txt"
    palette.write_text(PALETTE)
    check(pets, palette=str(palette), convert_to=pets.parent / "ids")
    for path in (pets / "masks").iterdir():
        assert (pets.parent / "ids" / "masks" / path.name).read_bytes() == path.read_bytes()


def test_tiff_is_read_and_what_is_not_is_named(check: Check, pets: Path) -> None:
    before = check(pets)
    for folder, name in (("images", "p0.jpg"), ("masks", "p1.png")):
        path = pets / folder / name
        Image.open(path).save(path.with_suffix(".tif"))
        path.unlink()
    Image.open(pets / "images" / "p2.jpg").save(pets / "images" / "p2.tif")  # what p2.jpg was made of
    (pets / "images" / "p3.jpg").rename(pets / "images" / "p3.heic")
    (pets / "masks" / "p4.png").rename(pets / "masks" / "p4.npy")
    answer = check(pets)
    assert answer["images"] == before["images"]
    said = {entry["kind"]: entry["first"] for entry in answer["problems"]}
    assert "p3.jpg does not exist (there is p3.heic, which is not read" in said["image missing"]
    assert "p4.png does not exist (there is p4.npy, which is not read" in said["mask missing"]
    assert any("images also holds, not read: 1 file ending in .heic" in note for note in answer["notes"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("0 0 0 background\n255 0 0 cta\n", "names class 'cta'"),
        ("0 0 background\n", "cannot read the line"),
        ("0 0 300 cat\n", "cannot read the line"),
        ("0 0 0 cat\n0 0 0 dog\n", "twice"),
        ("0 0 0 sofa\n", "names no class of"),
        ("", "is empty"),
    ],
)
def test_wrong_palettes_say_what_is_wrong(check: Check, pets: Path, content: str, message: str) -> None:
    palette = pets.parent / "palette.txt"
    palette.write_text(content)
    with pytest.raises(DataError) as error:
        check(pets, palette=str(palette), convert_to=pets.parent / "ids")
    assert message in str(error.value)


def test_a_known_palette_may_have_more_classes_than_the_user(check: Check, folder_data: Folder) -> None:
    root = folder_data({f"p{number}": [0, 8, 12] for number in range(5)}, classes=["background", "cat", "dog"])
    for path in (root / "masks").iterdir():
        indexed = Image.open(path).convert("P")
        ids = np.asarray(Image.open(path))
        voc = {0: (0, 0, 0), 8: (64, 0, 0), 12: (64, 0, 128)}
        pixels = np.zeros((*ids.shape, 3), dtype=np.uint8)
        for label, colour in voc.items():
            pixels[ids == label] = colour
        assert indexed.size == (24, 24)
        Image.fromarray(pixels).save(path)
    answer = check(root, palette="voc", convert_to=root.parent / "ids")
    assert [entry["pixels"] for entry in answer["classes"]] == [960, 960, 960]


def test_where_to_convert_to_must_be_new_and_elsewhere(check: Check, pets: Path) -> None:
    with pytest.raises(UsageError, match="belong together"):
        check(pets, palette="voc")
    with pytest.raises(UsageError, match="in the data set itself"):
        check(pets, palette="voc", convert_to=pets / "ids")
    with pytest.raises(UsageError, match="is not empty"):
        check(pets, palette="voc", convert_to=pets.parent)
    with pytest.raises(DataError, match="There is no palette nowhere"):
        check(pets, palette="nowhere", convert_to=pets.parent / "ids")


def test_the_walk_through_for_own_data_runs_as_it_is_written(
    check: Check, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    text = (request.config.rootpath / "docs" / "own-data.md").read_text("utf-8")
    (script,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    (classes,) = re.findall(r"printf '(.*?)' > shapes/classes.txt", text)
    (tmp_path / "shapes" / "classes.txt").write_text(classes.replace(r"\n", "\n"))
    (palette,) = re.findall(r"<<'END'\n(.*?)END", text, re.DOTALL)
    (tmp_path / "colours.txt").write_text(palette)
    answer = check(
        tmp_path / "shapes", palette=str(tmp_path / "colours.txt"), convert_to=tmp_path / "shapes-ids", steps=True
    )
    assert [step["train"] for step in answer["steps"]] == [70, 34]
    for entry in answer["classes"]:
        assert re.search(rf"{entry['name']} +{entry['images']} +{entry['pixels']}\n", text)


@pytest.fixture(scope="session")
def whole_voc(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """VOC's 12,031 images with placeholder masks that hold the classes of the genuine ones."""
    root = tmp_path_factory.mktemp("whole") / "voc"
    base = root / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClassAug", "ImageSets/Segmentation", "drawn"):
        (base / folder).mkdir(parents=True)
    Image.new("RGB", (22, 1)).save(base / "drawn" / "image.jpg")
    with np.load(request.config.rootpath / "tests/parity_data/voc_classes_present.npz") as file:
        for split, listed in (("train_aug", "trainaug"), ("val", "val")):
            present = np.unpackbits(file[split], axis=1)[:, :22].astype(bool)
            names = [f"{listed}_{number:05d}" for number in range(len(present))]
            (base / "ImageSets" / "Segmentation" / f"{listed}.txt").write_text("\n".join(names))
            for name, row in zip(names, present, strict=True):
                drawn = base / "drawn" / f"{np.packbits(row).tobytes().hex()}.png"
                if not drawn.exists():
                    labels = np.flatnonzero(row)
                    labels[labels == 21] = 255
                    Image.fromarray(np.resize(labels, (1, 22)).astype(np.uint8)).save(drawn)
                os.link(drawn, base / "SegmentationClassAug" / f"{name}.png")
                os.link(base / "drawn" / "image.jpg", base / "JPEGImages" / f"{name}.jpg")
    return root


@pytest.mark.parametrize(
    ("task", "protocol", "sizes"),
    [
        ("19-1", "overlapped", [10410, 548]),
        ("15-5", "disjoint", [8437, 2145]),
        ("15-1", "overlapped", [9568, 487, 299, 491, 500, 548]),
    ],
)
def test_published_sizes_from_files(
    whole_voc: Path, task: str, protocol: str, sizes: list[int], quiet: Console
) -> None:
    chosen = ScenarioSettings(task=task, protocol=protocol)  # type: ignore[arg-type]
    answer = prepare(DataSettings(path=whole_voc), chosen, Preparation(steps=True, ids=True), quiet)
    assert [len(step["train"]) for step in answer["steps"]] == sizes
    for step in answer["steps"]:
        assert step["train"] == sorted(step["train"]), "in the order of the list"
    assert len(answer["steps"][-1]["test"]) == 1449, "every image of val holds a class"


def test_twelve_thousand_unchanged_files_are_noticed_in_no_time(whole_voc: Path) -> None:
    inspect(load_dataset("voc", whole_voc, whole_voc), whole=True)
    start = time.process_time()  # what else runs on the machine must not count
    data = load_dataset("voc", whole_voc, whole_voc)
    found = inspect(data, whole=True)
    index = found.index()
    assert time.process_time() - start < 2
    assert str(found.changes) == "nothing changed since the last time"
    scenario = Scenario.build(data, index, find_task(data, "15-1"), "disjoint")
    for step in range(scenario.steps):
        start = time.process_time()
        scenario.training(step)
        assert time.process_time() - start < 0.05


def test_names_that_are_no_utf8_are_checked_as_any_other(check: Check, pets: Path) -> None:
    for folder, suffix in (("images", "jpg"), ("masks", "png")):
        (pets / folder / f"p1.{suffix}").rename(pets / folder / f"p\udcff.{suffix}")
    assert check(pets, steps=True, ids=True)["images"] == {"train": 8, "test": 2}
    cut(pets / "images" / "p\udcff.jpg")
    answer = check(pets)
    assert answer["problems"][0]["kind"] == "image broken"
    assert json.loads(Path(answer["problems_file"]).read_text())[0]["name"] == "p\udcff"


def test_named_pipes_are_told_and_not_waited_for(check: Check, pets: Path) -> None:
    for path in (pets / "images" / "p1.jpg", pets / "masks" / "p2.png"):
        path.unlink()
        os.mkfifo(path)
    found = {entry["kind"]: entry["first"] for entry in check(pets)["problems"]}
    assert "p1.jpg is not a file" in found["image unreadable"]
    assert "p2.png is not a file" in found["mask unreadable"]
    os.mkfifo(pets / "train.txt")
    check(pets)
    (pets / "classes.txt").unlink()
    os.mkfifo(pets / "classes.txt")
    with pytest.raises(DataError, match=r"classes\.txt does not exist"):
        check(pets)


def test_the_list_of_problems_is_not_written_through_links(check: Check, pets: Path) -> None:
    outside = pets.parent / "outside"
    outside.write_text("mine")
    (pets / PROBLEMS_FILE).symlink_to(outside)
    cut(pets / "images" / "p1.jpg")
    assert Path(check(pets)["problems_file"]).is_file()
    assert not (pets / PROBLEMS_FILE).is_symlink()
    assert outside.read_text() == "mine"


def test_a_copy_follows_links_and_shares_no_text(check: Check, pets: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    for name in ("images", "masks"):
        (pets / name).rename(tmp_path / "elsewhere" / name)
        (pets / name).symlink_to(tmp_path / "elsewhere" / name)
    real = tmp_path / "elsewhere" / "images" / "p1.jpg"
    real.rename(tmp_path / "real.jpg")
    real.symlink_to("../../real.jpg")
    (pets / "loop").symlink_to(pets)
    os.mkfifo(pets / "pipe")
    (tmp_path / "palette").write_text("0 0 0 background\n255 0 0 cat\n")
    target = tmp_path / "ids"
    assert check(pets, palette=str(tmp_path / "palette"), convert_to=target)["images"] == {"train": 8, "test": 2}
    assert (target / "images" / "p1.jpg").samefile(tmp_path / "real.jpg")
    assert not (target / "classes.txt").samefile(pets / "classes.txt")
    assert not (target / "loop").exists()
    assert not (target / "pipe").exists()
