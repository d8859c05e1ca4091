"""Finding images, masks and lists, and saying what is wrong with them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plopcli.data.datasets import load_dataset
from plopcli.data.index import INDEX_FILE, _meaning, class_index, inspect
from plopcli.data.samples import dealt_apart
from plopcli.errors import DataError, UsageError
from plopcli.scenarios.scenario import Scenario
from plopcli.scenarios.tasks import resolve_task

Folder = Callable[..., Path]


def test_the_generated_data_set_has_three_lists(toy_root: Path) -> None:
    data = load_dataset("toy", toy_root)
    assert {split: len(samples) for split, samples in data.splits.items()} == {"train": 48, "val": 16, "test": 23}
    assert len(data.classes) == 21


def test_a_voc_tree_reads_pair_lists_and_uses_val_as_test(toy_root: Path) -> None:
    base = toy_root / "toy" / "VOCdevkit" / "VOC2012"
    names = (base / "ImageSets" / "Segmentation" / "val.txt").read_text().split()
    pairs = "".join(f"/JPEGImages/{name}.jpg /SegmentationClassAug/{name}.png\n" for name in names)
    (base / "train_aug.txt").write_text(pairs)
    try:
        data = load_dataset("voc", toy_root, toy_root / "toy")
    finally:
        (base / "train_aug.txt").unlink()
    assert [sample.name for sample in data.splits["train"]] == names
    assert set(data.splits) == {"train", "test"}
    assert data.splits["train"][0].mask.is_file()


def test_a_folder_without_lists_keeps_a_fifth_for_the_test_by_name(folder_data: Folder) -> None:
    root = folder_data({f"p{number}": [0, 1, 2] for number in range(10)})
    data = load_dataset("folder", root.parent, root)
    assert [sample.name for sample in data.splits["test"]] == ["p1", "p6"]
    assert len(data.splits["train"]) == 8
    as_before = load_dataset("folder", root.parent, root, dealt_by="position")
    assert [sample.name for sample in as_before.splits["test"]] == ["p4", "p9"]


def test_a_share_is_about_as_large_as_asked_and_others_do_not_move_it() -> None:
    names = [f"{number:05d}" for number in range(4000)]
    for purpose, share in (("test", 0.2), ("val", 0.2), ("val", 0.05)):
        apart = dict(zip(names, dealt_apart(names, share, purpose), strict=True))
        assert abs(sum(apart.values()) / len(names) - share) < 0.02
        some = [*names[7:3000:3], "another", "\udcff"]
        assert all(
            apart.get(name, now) == now for name, now in zip(some, dealt_apart(some, share, purpose), strict=True)
        )
    both = [a and b for a, b in zip(dealt_apart(names, 0.2, "test"), dealt_apart(names, 0.2, "val"), strict=True)]
    assert abs(sum(both) / len(names) - 0.04) < 0.015
    assert dealt_apart(["p0", "p2", "p3"], 0.2, "test").count(True) == 1
    assert not any(dealt_apart(names, 0.0, "val"))
    assert dealt_apart([], 0.2, "val") == []


def test_added_pictures_move_no_other_between_the_splits(folder_data: Folder) -> None:
    root = folder_data({f"p{number}": [0, 1, 2] for number in range(25)})

    def splits() -> dict[str, set[str]]:
        data = load_dataset("folder", root.parent, root)
        task = resolve_task("2-1", data.classes, "folder")
        scenario = Scenario(data, class_index(data), task, "overlapped", val_fraction=0.25)
        found = {split: {s.name for s in scenario.evaluation(0, split).samples} for split in ("train", "val", "test")}
        assert {s.name for s in scenario.training(0).samples} == found["train"]
        return found

    before = splits()
    for number in range(12):
        for folder, suffix in (("images", "jpg"), ("masks", "png")):
            name = f"{'ap'[number % 2]}{number:03d}" if number else "000"
            (root / folder / f"{name}.{suffix}").write_bytes((root / folder / f"p0.{suffix}").read_bytes())
        now = splits()
        assert all(before[split] <= now[split] for split in before)
        before = now
    assert sum(map(len, before.values())) == 37


def test_a_synthetic_background_shifts_the_ids(folder_data: Folder) -> None:
    root = folder_data({name: [0, 1, 255] for name in "abcde"}, classes=["cat", "dog"])
    data = load_dataset("folder", root.parent, root, background=False)
    assert data.classes == ("background", "cat", "dog")
    scenario = Scenario(data, class_index(data), resolve_task("2-1", data.classes, "folder"), "overlapped")
    assert scenario.training(0).table[[0, 1, 255]].tolist() == [1, 2, 255]


def test_lists_leave_the_rest_for_the_test_and_share_nothing(folder_data: Folder) -> None:
    root = folder_data({f"p{number}": [0, 1, 2] for number in range(6)})
    (root / "train.txt").write_text("p0\np1\n")
    (root / "val.txt").write_text("p2\n")
    data = load_dataset("folder", root.parent, root)
    assert {split: [s.name for s in samples] for split, samples in data.splits.items()} == {
        "train": ["p0", "p1"],
        "val": ["p2"],
        "test": ["p3", "p4", "p5"],
    }
    (root / "val.txt").write_text("p1\n")
    with pytest.raises(DataError, match="name 'p1' twice"):
        load_dataset("folder", root.parent, root)
    (root / "val.txt").unlink()
    (root / "train.txt").write_text("".join(f"p{number}\n" for number in range(6)))
    with pytest.raises(DataError, match="no image for test"):
        load_dataset("folder", root.parent, root)


def test_a_copy_of_a_data_set_has_the_same_content(folder_data: Folder) -> None:
    root = folder_data({f"p{number}": [0, 1, 2] for number in range(5)})
    first = class_index(load_dataset("folder", root.parent, root))
    (root / "masks" / "p0.png").touch()
    touched = class_index(load_dataset("folder", root.parent, root))
    assert touched.fingerprint != first.fingerprint
    assert touched.content == first.content


def test_the_index_is_cached_and_notices_a_changed_mask(folder_data: Folder) -> None:
    root = folder_data({f"p{number}": [0, 1, 2] for number in range(5)})
    data = load_dataset("folder", root.parent, root)
    first = class_index(data)
    assert (root / INDEX_FILE).is_file()
    assert first.counts["train"][0][:4].tolist() == [192, 192, 192, 0]
    counted: list[int] = []
    again = class_index(data, lambda done, total: counted.append(done))
    assert counted == []
    assert again.fingerprint == first.fingerprint
    mask = np.full((24, 24), 3, dtype=np.uint8)
    Image.fromarray(mask).save(root / "masks" / "p0.png")
    changed = class_index(data)
    assert changed.counts["train"][0][3] == 576
    assert changed.fingerprint != first.fingerprint


def _in_place(path: Path, mask: np.ndarray) -> None:
    """Another mask in a file of the same size and time, as rsync -t, archives and layers of containers leave it."""
    status = path.stat()
    with path.open("r+b") as file:
        Image.fromarray(mask).save(file, "PNG", compress_level=0)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)


def test_a_changed_mask_of_the_same_size_and_time_is_noticed(folder_data: Folder) -> None:
    root = folder_data({f"p{number}": [0, 1, 2] for number in range(5)})
    data = load_dataset("folder", root.parent, root)
    path, mask = root / "masks" / "p0.png", np.asarray(Image.open(root / "masks" / "p0.png"))
    Image.fromarray(mask).save(path, compress_level=0)
    first = class_index(data)
    _in_place(path, mask[:, ::-1].copy())  # no count changes
    second = class_index(data)
    assert second.content != first.content
    assert second.former_content == first.former_content
    _in_place(path, np.full_like(mask, 3))
    assert class_index(data).counts["train"][0][3] == 576
    # A file that has been put in place of another, with its size and times.
    other = path.with_name("other")
    shutil.copy2(path, other)
    _in_place(other, mask)
    other.rename(path)
    third = class_index(data)
    assert (third.content, third.counts["train"][0][3]) == (first.content, 0)


def test_a_changed_image_is_noticed(folder_data: Folder) -> None:
    root = folder_data({f"p{number}": [0, 1, 2] for number in range(5)})
    data = load_dataset("folder", root.parent, root)
    first = class_index(data)
    Image.new("RGB", (24, 24)).save(root / "images" / "p2.jpg")
    assert class_index(data).content != first.content


def test_an_index_of_the_last_version_keeps_what_was_skipped(folder_data: Folder) -> None:
    root = folder_data({f"p{number}": [0, 1, 2] for number in range(5)})
    (root / "masks" / "p2.png").write_bytes(b"")
    data = load_dataset("folder", root.parent, root)
    inspect(data, skip_bad=True)
    with np.load(root / INDEX_FILE) as file:
        held = dict(file)
    del held["marks"]
    held |= {"states": held["states"][:, [0, 1, 4, 5]], "meaning": np.array(_meaning(data, 2))}
    with (root / INDEX_FILE).open("wb") as written:
        np.savez(written, **held)
    found = inspect(data)
    assert str(found.changes) == "5 pairs checked; nothing changed since the last time"
    assert found.index().skipped == ("p2",)
    assert [bool(mark) for mark in found.marks] == [sample.name != "p2" for _, sample in found.samples]
    assert inspect(data).changes.checked == 0


def test_images_in_two_splits_are_told(folder_data: Folder, toy_root: Path, tmp_path: Path) -> None:
    """Of every data set that has lists, or folders: only data set folder refuses them."""
    root = shutil.copytree(toy_root / "toy", tmp_path / "toy")
    lists = next(root.rglob("val.txt")).parent
    names = (lists / "train.txt").read_text().split()
    with (lists / "test.txt").open("a") as file:
        file.write("\n".join(["", *names[:7]]))
    (lists / "train_aug.txt").write_text("\n".join([*names, *(lists / "val.txt").read_text().split()]))
    told = {"toy": f"7 images are both in train and in test: {', '.join(names[:5])} and 2 more"}
    told["voc"] = "16 images are both in train and in test: "
    for name, text in told.items():
        data = load_dataset(name, tmp_path, root)
        task = resolve_task("15-5", data.classes, name)
        (note,) = Scenario.build(data, class_index(data), task, "overlapped").notes
        assert note.startswith(text)
    # The same picture under another name is in both, too.
    own = folder_data({f"p{number}": [0, 1, 2] for number in range(8)})
    for folder, suffix in (("images", "jpg"), ("masks", "png")):
        shutil.copy(own / folder / f"p1.{suffix}", own / folder / f"p10.{suffix}")
    data = load_dataset("folder", own.parent, own)
    assert class_index(data).twice(data) == ["1 images in test are copies of images in train: p1"]


def test_a_damaged_index_is_made_anew(folder_data: Folder) -> None:
    root = folder_data({f"p{number}": [0, 1, 2] for number in range(5)})
    data = load_dataset("folder", root.parent, root)
    class_index(data)
    good = (root / INDEX_FILE).read_bytes()
    for bad in (b"", b"PK\x03\x04 nonsense", good[:-30], good[:100] + b"\xff" * 8 + good[108:]):
        (root / INDEX_FILE).write_bytes(bad)
        assert class_index(data).counts["train"].shape == (4, 256)


def _wrong_id(root: Path) -> None:
    Image.fromarray(np.full((24, 24), 9, dtype=np.uint8)).save(root / "masks" / "p1.png")


def _off_by_one(root: Path) -> None:
    for path in (root / "masks").iterdir():
        Image.fromarray(np.asarray(Image.open(path)) + np.uint8(2)).save(path)


def _wrong_size(root: Path) -> None:
    Image.fromarray(np.zeros((10, 24), dtype=np.uint8)).save(root / "masks" / "p1.png")


def _mirrored(root: Path) -> None:
    image = Image.new("RGB", (24, 24))
    exif = image.getexif()
    exif[274] = 2
    image.save(root / "images" / "p1.jpg", exif=exif)


def _colours(root: Path) -> None:
    palette = Image.open(root / "masks" / "p1.png").convert("P")
    palette.convert("RGB").save(root / "masks" / "p1.png")


def _deep(root: Path) -> None:
    Image.fromarray(np.zeros((24, 24), dtype=np.uint16)).save(root / "masks" / "p1.png")


def _clear(root: Path) -> None:
    Image.new("LA", (24, 24)).save(root / "masks" / "p1.png")


def _lossy(root: Path) -> None:
    Image.open(root / "masks" / "p1.png").save(root / "masks" / "p1.jpg")
    (root / "masks" / "p1.png").unlink()


def _cut_mask(root: Path) -> None:
    path = root / "masks" / "p1.png"
    path.write_bytes(path.read_bytes()[:40])


def _cut_header(root: Path) -> None:
    path = root / "images" / "p1.jpg"
    path.write_bytes(path.read_bytes()[:100])


def _empty_mask(root: Path) -> None:
    (root / "masks" / "p1.png").write_bytes(b"")


def _empty_image(root: Path) -> None:
    (root / "images" / "p1.jpg").write_bytes(b"")


def _no_mask(root: Path) -> None:
    (root / "masks" / "p1.png").unlink()


def _no_image(root: Path) -> None:
    (root / "images" / "p1.jpg").unlink()


def _two_images(root: Path) -> None:
    Image.new("RGB", (24, 24)).save(root / "images" / "p1.png")


def _empty_list(root: Path) -> None:
    (root / "train.txt").write_text("\n")


def _unknown_in_list(root: Path) -> None:
    (root / "train.txt").write_text("p0\nnobody\n")


def _no_classes(root: Path) -> None:
    (root / "classes.txt").unlink()


def _doubled_class(root: Path) -> None:
    (root / "classes.txt").write_text("background\ncat\ncat\nbird\n")


def _too_many_classes(root: Path) -> None:
    (root / "classes.txt").write_text("".join(f"class {number}\n" for number in range(255)))


@pytest.mark.parametrize(
    ("harm", "message", "hint"),
    [
        (_wrong_id, "p1.png holds id 9; the classes end at 3", "--skip-bad"),
        (_off_by_one, "p0.png holds id 4; the classes end at 3: are the ids off by one?", "--skip-bad"),
        (_wrong_size, "p1.jpg is 24 x 24 but its mask", "--skip-bad"),
        (_mirrored, "shown turned or mirrored (EXIF orientation 2)", "--skip-bad"),
        (_colours, "p1.png is in colour (mode RGB)", "--skip-bad"),
        (_deep, "p1.png has 16 or 32 bits per pixel", "--skip-bad"),
        (_clear, "p1.png is of mode LA", "--skip-bad"),
        (_lossy, "p1.jpg is a JPEG, whose compression changes ids", "--skip-bad"),
        (_cut_mask, "p1.png cannot be decoded", "--skip-bad"),
        (_cut_header, "p1.jpg cannot be decoded", "--skip-bad"),
        (_empty_mask, "p1.png is empty (0 bytes)", "--skip-bad"),
        (_empty_image, "p1.jpg is empty (0 bytes)", "--skip-bad"),
        (_no_mask, "p1.jpg has no mask: ", "--skip-bad"),
        (_no_image, "p1.png has no image: ", "--skip-bad"),
        (_two_images, "holds both p1.jpg and p1.png", "differ before the dot"),
        (_empty_list, "train.txt is empty", "one line per image"),
        (_unknown_in_list, "no image called 'nobody'", "A list names it"),
        (_no_classes, "classes.txt does not exist", "docs/own-data.md"),
        (_doubled_class, "names 'cat' twice", "its own name"),
        (_too_many_classes, "names 255 classes; 2 to 254 are possible", "8 bits"),
    ],
)
def test_bad_data_is_one_clear_error(
    folder_data: Folder, harm: Callable[[Path], None], message: str, hint: str
) -> None:
    root = folder_data({f"p{number}": [0, 1, 2] for number in range(5)})
    harm(root)
    with pytest.raises(DataError) as error:
        class_index(load_dataset("folder", root.parent, root))
    assert message in error.value.message
    assert error.value.hint is not None
    assert hint in error.value.hint


def test_names_may_hold_spaces_and_accents_in_either_of_their_forms(folder_data: Folder) -> None:
    composed, decomposed = "caf\u00e9 \u4e2d 1", "cafe\u0301 \u4e2d 2"
    root = folder_data({name: [0, 1, 2] for name in (composed, decomposed, "c", "d", "e")})
    # As a disk of another system would have it: the mask's name in the other form.
    (root / "masks" / f"{composed}.png").rename(root / "masks" / "cafe\u0301 \u4e2d 1.png")
    (root / "train.txt").write_text(f"{composed}\ncaf\u00e9 \u4e2d 2.jpg\n", "utf-8-sig")
    data = load_dataset("folder", root.parent, root)
    assert len(data.splits["train"]) == 2
    assert class_index(data).counts["train"][:, 1].tolist() == [192, 192]


def test_masks_without_an_image_do_not_matter_where_lists_choose(folder_data: Folder) -> None:
    root = folder_data({f"p{number}": [0, 1, 2] for number in range(5)})
    (root / "train.txt").write_text("p0\np2\n")
    _no_image(root)
    assert len(class_index(load_dataset("folder", root.parent, root)).counts["test"]) == 2


def test_a_class_in_no_image_is_told(folder_data: Folder) -> None:
    root = folder_data({f"p{number}": [0, 1, 2] for number in range(5)})
    data = load_dataset("folder", root.parent, root)
    scenario = Scenario(data, class_index(data), resolve_task("3-1", data.classes, "folder"), "overlapped")
    assert scenario.notes == ["no training image holds bird: nothing can be learned of that"]


def test_missing_data_and_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="plop download toy"):
        load_dataset("toy", tmp_path)
    with pytest.raises(UsageError, match="Did you mean voc"):
        load_dataset("vok", tmp_path)


def test_held_out_images_do_not_train(folder_data: Folder) -> None:
    root = folder_data({f"p{number}": [0, 1, 2] for number in range(25)})
    data = load_dataset("folder", root.parent, root)
    scenario = Scenario(
        data, class_index(data), resolve_task("2-1", data.classes, "folder"), "overlapped", val_fraction=0.25
    )
    train = {sample.name for sample in scenario.training(0).samples}
    val = {sample.name for sample in scenario.evaluation(0, "val").samples}
    assert 2 <= len(val) <= 8
    assert train.isdisjoint(val)
    assert len(train | val) == 20
    assert {sample.name for sample in scenario.evaluation(0, "train").samples} == train


def test_a_step_without_images_and_a_missing_split_are_refused(folder_data: Folder) -> None:
    root = folder_data({f"p{number}": [0, 1, 2] for number in range(5)})
    data = load_dataset("folder", root.parent, root)
    scenario = Scenario(data, class_index(data), resolve_task("2-1", data.classes, "folder"), "overlapped")
    with pytest.raises(DataError, match="none of the 4 holds bird"):
        scenario.training(1)
    with pytest.raises(UsageError, match="--val-fraction"):
        scenario.evaluation(0, "val")
