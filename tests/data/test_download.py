"""Data sets that arrive in archives: what is unpacked where, what is taken from the user, and what is refused."""

from __future__ import annotations

from pathlib import Path

import fake_archives as fake
import numpy as np
from local_host import cut, good, status, without_length
from PIL import Image
from shell import save

from plopcli.data.datasets import load_dataset
from plopcli.data.download import one_writer, sources
from plopcli.errors import DataError, MachineError, UsageError

VOC = "VOCdevkit/VOC2012"


def test_voc_comes_with_augmented_labels_and_lists(shell, mirror, offer):
    offer(sources.VOC_TRAINVAL, fake.tarred(fake.voc_files()))
    offer(sources.VOC_AUGMENTED, fake.zipped(fake.augmented_files()))
    assert shell.get("voc") == shell.root / "voc"
    base = shell.root / "voc" / VOC
    assert (base / "ImageSets/Segmentation/trainaug.txt").read_text().split() == sorted((*fake.TRAIN, *fake.EXTRA))
    assert "train_aug: 5 images with masks (the published list has 10,582)" in shell.said
    assert "val: 2 images with masks (the published list has 1,449)" in shell.said
    expected = {*fake.voc_files(), *(f"{VOC}/{name}" for name in fake.augmented_files() if not name.startswith("_"))}
    assert shell.tree("voc") == expected | {f"{VOC}/ImageSets/Segmentation/trainaug.txt"}

    data = load_dataset("voc", shell.root)
    assert [sample.name for sample in data.splits["train"]] == sorted((*fake.TRAIN, *fake.EXTRA))
    assert [sample.mask.parent.name for sample in data.splits["test"]] == ["SegmentationClass"] * 2

    mirror.requests.clear()
    (shell.root / "voc" / ".unpacking").mkdir()  # killed after the last move
    shell.get("voc")
    assert mirror.requests == []
    assert not (shell.root / "voc" / ".unpacking").exists()


def test_voc_labels_are_built_from_sbd_where_the_archive_cannot_be_had(shell, mirror, offer):
    offer(sources.VOC_TRAINVAL, fake.tarred(fake.voc_files()))
    offer(sources.SBD, fake.tarred(fake.sbd_files(), "w:gz"))
    shell.get("voc")
    assert "SegmentationClassAug.zip could not be fetched" in shell.said
    base = shell.root / "voc" / VOC
    masks = {path.stem: np.asarray(Image.open(path)) for path in (base / "SegmentationClassAug").iterdir()}
    assert set(masks) == {*fake.TRAIN, *fake.VAL, *fake.EXTRA}
    # VOC's own masks take precedence over those of SBD.
    assert all((masks[name] == 7).all() for name in (*fake.TRAIN, *fake.VAL))
    assert all(np.unique(masks[name]).tolist() == [0, 15, 20, 255] for name in fake.EXTRA)
    drawn = Image.open(base / "SegmentationClassAug" / f"{fake.EXTRA[0]}.png")
    assert drawn.mode == "P"
    assert drawn.getpalette()[45:48] == [192, 128, 128]
    assert len(load_dataset("voc", shell.root).splits["train"]) == 5
    assert not (base.parent.parent / "archives").exists()


def test_own_archives_are_recognised_by_what_they_hold(shell, mirror, offer, tmp_path):
    voc, sbd = fake.tarred(fake.voc_files()), fake.tarred(fake.sbd_files(), "w:gz")
    offer(sources.VOC_TRAINVAL, voc)
    offer(sources.SBD, sbd)
    own = save(tmp_path / "x (1).bin", sbd), save(tmp_path / "y", voc)
    shell.get("voc", *own)
    assert mirror.requests == []
    assert len(load_dataset("voc", shell.root).splits["train"]) == 5
    assert all(path.is_file() for path in own)


def test_voc_goes_on_where_it_was_killed(shell, mirror, offer):
    """After VOC itself was moved into place, and its labels were being unpacked."""
    offer(sources.VOC_TRAINVAL, fake.tarred(fake.voc_files()))
    shell.fails(DataError, "voc")
    workshop = shell.root / "voc" / ".unpacking" / "SegmentationClassAug"
    workshop.mkdir(parents=True)
    (workshop / "half.png").write_bytes(b"half")
    offer(sources.VOC_AUGMENTED, fake.zipped(fake.augmented_files()))
    mirror.requests.clear()
    shell.get("voc")
    assert [name for name, _ in mirror.requests] == ["SegmentationClassAug.zip"]
    assert "half.png" not in str(shell.tree("voc"))


def test_a_val_list_that_is_missing_is_generated(shell, offer):
    offer(sources.VOC_TRAINVAL, fake.tarred(fake.voc_files(val=False)))
    offer(sources.VOC_AUGMENTED, fake.zipped(fake.augmented_files()))
    shell.get("voc")
    assert [sample.name for sample in load_dataset("voc", shell.root).splits["test"]] == sorted(fake.VAL)


def test_lists_and_masks_that_are_there_are_kept(shell, offer):
    """The tree of the original implementation, with a pair list and its own masks."""
    base = shell.root / "voc" / "PascalVOC12"
    for name, content in {**fake.voc_files(), **fake.augmented_files()}.items():
        path = base / name.removeprefix(f"{VOC}/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (base / "splits").mkdir()
    line = f"/JPEGImages/{fake.EXTRA[0]}.jpg /SegmentationClassAug/{fake.EXTRA[0]}.png\n"
    (base / "splits" / "train_aug.txt").write_text(line)
    shell.get("voc")
    assert "train_aug: 1 images" in shell.said
    assert not (base / "ImageSets/Segmentation/trainaug.txt").exists()


def test_masks_that_a_list_names_must_be_there(shell, offer):
    offer(sources.VOC_TRAINVAL, fake.tarred(fake.voc_files()))
    offer(sources.VOC_AUGMENTED, fake.zipped(fake.augmented_files()))
    shell.get("voc")
    (shell.root / "voc" / VOC / "JPEGImages" / f"{fake.TRAIN[0]}.jpg").unlink()
    assert f"1 of 5 images of the list train_aug lack the image or the mask, such as {fake.TRAIN[0]}" in shell.fails(
        DataError, "voc"
    )


def test_something_unfinished_in_the_way_is_not_touched(shell, offer):
    offer(sources.VOC_TRAINVAL, fake.tarred(fake.voc_files()))
    mine = shell.root / "voc" / VOC / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    assert "is there already, but is not complete" in shell.fails(DataError, "voc")
    assert mine.read_text() == "mine"


def test_ade(shell, mirror, offer):
    offer(sources.ADE, fake.zipped(fake.ade_files()))
    mirror.answers = [cut(300), good]
    shell.get("ade")
    assert mirror.ranges == [None, "bytes=300-"]
    assert shell.tree("ade") == set(fake.ade_files())
    data = load_dataset("ade", shell.root)
    assert (len(data.splits["train"]), len(data.splits["test"])) == (5, 2)
    shell.get("ade")
    assert len(mirror.requests) == 2
    (shell.root / "ade/ADEChallengeData2016/annotations/training/ADE_train_00000002.png").unlink()
    assert "1 of the training files have no partner, such as ADE_train_00000002" in shell.fails(DataError, "ade")


def test_archives_can_be_kept_and_are_then_not_fetched_again(shell, mirror, offer, tmp_path):
    offer(sources.ADE, fake.zipped(fake.ade_files()))
    shell.get("ade", keep_archives=True)
    assert "archives/ADEChallengeData2016.zip" in shell.tree("ade")
    (shell.root / "ade/ADEChallengeData2016").rename(tmp_path / "away")
    shell.get("ade")
    assert len(mirror.requests) == 1
    assert "archives/ADEChallengeData2016.zip" not in shell.tree("ade")


def test_a_wrong_checksum_is_an_error_until_it_is_accepted(shell, mirror):
    mirror.files["ADEChallengeData2016.zip"] = fake.zipped(fake.ade_files())
    bad = shell.root / "ade/archives/ADEChallengeData2016.zip.bad"
    assert f"instead of 7328b3957e407ddae1d3cbf487f149ef. Kept as {bad}" in shell.fails(DataError, "ade")
    assert bad.is_file()
    mirror.requests.clear()
    shell.get("ade", accept_checksum=True)
    assert mirror.requests == []
    assert shell.tree("ade") == set(fake.ade_files())


def test_own_archives_are_checked_too(shell, mirror, tmp_path):
    own = save(tmp_path / "mine.zip", fake.zipped(fake.ade_files()))
    assert f"{own} is not the ADEChallengeData2016.zip that is expected: md5" in shell.fails(DataError, "ade", own)
    shell.get("ade", own, accept_checksum=True)
    assert f"{own} has md5" in shell.said
    assert shell.tree("ade") == set(fake.ade_files())


def test_an_archive_without_checksum_must_at_least_be_one(shell, mirror, offer):
    offer(sources.VOC_TRAINVAL, fake.tarred(fake.voc_files()))
    mirror.files["SegmentationClassAug.zip"] = fake.zipped(fake.augmented_files())[:-30]
    mirror.answers = [good, without_length]
    message = shell.fails(DataError, "voc")
    assert "benchmark.tgz could not be fetched" in message
    assert "SegmentationClassAug.zip.part is no zip or tar archive, or it is damaged" in shell.said
    assert not (shell.root / "voc" / VOC / "SegmentationClassAug").exists()


def test_an_archive_with_something_else_in_it(shell, offer):
    files = {name.replace("images/", "pictures/"): content for name, content in fake.ade_files().items()}
    offer(sources.ADE, fake.zipped(files))
    shell.fails(DataError, "ade")
    offer(sources.ADE, fake.zipped({"Another/x": b""}))
    Path(shell.root / "ade" / "ADEChallengeData2016").rename(shell.root / "away")
    assert "The archive holds no ADEChallengeData2016" in shell.fails(DataError, "ade")


def test_cityscapes_says_how_to_get_it(shell):
    message = shell.fails(DataError, "cityscapes")
    assert "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip" in message
    assert "https://www.cityscapes-dataset.com" in message
    assert "plop download cityscapes --from leftImg8bit_trainvaltest.zip --from gtFine_trainvaltest.zip" in message
    assert not (shell.root / "cityscapes").exists()


def test_cityscapes_from_both_archives(shell, tmp_path):
    images, labels = fake.cityscapes_files()
    own = save(tmp_path / "a.zip", fake.zipped(labels)), save(tmp_path / "b.zip", fake.zipped(images))
    assert "Cityscapes needs leftImg8bit_trainvaltest.zip, which" in shell.fails(DataError, "cityscapes", own[0])
    shell.get("cityscapes", *own)
    assert shell.tree("cityscapes") == {name for name in (*images, *labels) if "/" in name}
    assert "train: 4 images with labels (the published set has 2,975)" in shell.said
    assert {name: len(split) for name, split in load_dataset("cityscapes", shell.root).splits.items()} == {
        "train": 4,
        "test": 2,
    }
    assert len(load_dataset("cityscapes-domain", shell.root).splits["all"]) == 6
    shell.get("cityscapes")
    next((shell.root / "cityscapes").glob("gtFine/val/lindau/*_labelIds.png")).unlink()
    assert "1 of the val files have no partner" in shell.fails(DataError, "cityscapes")


def test_a_mirror_may_have_cityscapes(shell, mirror, offer):
    images, labels = fake.cityscapes_files()
    offer(sources.CITYSCAPES_IMAGES, fake.zipped(images))
    offer(sources.CITYSCAPES_LABELS, fake.zipped(labels))
    shell.get("cityscapes")
    assert len(mirror.requests) == 2


def test_files_that_are_none_of_the_archives(shell, tmp_path):
    other = save(tmp_path / "VOCtrainval_11-May-2012.tar", fake.tarred({"VOCdevkit/VOC2007/x": b""}))
    message = shell.fails(DataError, "voc", other)
    assert f"{other} is no archive of data set voc: it holds VOCdevkit." in message
    assert "VOCtrainval_11-May-2012.tar (holds VOCdevkit/VOC2012/)" in message
    assert "There is no file" in shell.fails(DataError, "voc", tmp_path / "nothing.tar")
    assert "is no zip or tar" in shell.fails(DataError, "voc", save(tmp_path / "x", b"text"))
    twice = [save(tmp_path / name, fake.zipped(fake.ade_files())) for name in ("a.zip", "b.zip")]
    assert "are both ADEChallengeData2016.zip" in shell.fails(DataError, "ade", *twice)


def test_an_archive_that_escapes_leaves_nothing(shell, mirror, offer, tmp_path):
    offer(sources.ADE, fake.zipped({**fake.ade_files(), "ADEChallengeData2016/../../../evil": b"evil"}))
    assert "'ADEChallengeData2016/../../../evil' would be written outside the folder" in shell.fails(DataError, "ade")
    assert shell.tree("ade") == {"archives/ADEChallengeData2016.zip"}
    assert not list(tmp_path.rglob("evil"))


def test_room_for_everything_is_looked_for_before_anything_is_fetched(shell, mirror, monkeypatch):
    monkeypatch.setattr("plopcli.files.disk.free_bytes", lambda _: 3_000_000_000)
    message = shell.fails(MachineError, "voc")
    assert "4.2 GB are needed (2.0 GB of archives and 2.2 GB unpacked), 3.0 GB are free" in message
    assert "Free 1.2 GB there" in message
    assert mirror.requests == []


def test_one_download_at_a_time(shell, mirror, offer):
    offer(sources.ADE, fake.zipped(fake.ade_files()))
    with one_writer(shell.root / "ade"):
        assert "Another plop download is filling" in shell.fails(MachineError, "ade")
    shell.get("ade")


def test_names(shell):
    assert "Did you mean cityscapes?" in shell.fails(UsageError, "cityscape")
    assert "plop download cityscapes" in shell.fails(UsageError, "cityscapes-domain")
    assert "own-data" in shell.fails(UsageError, "folder")


def test_every_host_down(shell, mirror, monkeypatch):
    mirror.files["ADEChallengeData2016.zip"] = b"x"
    mirror.answers = [status(503)] * 9
    message = shell.fails(DataError, "ade")
    assert "503 Service Unavailable (3 tries)" in message
    assert "--from FILE" in message
    assert not (shell.root / "ade").exists()


def test_addresses_are_well_formed():
    """Every download has a name of its own, and torchvision's digits are those that torchvision itself names."""
    from torchvision import models

    archives = [value for value in vars(sources).values() if isinstance(value, sources.Archive)]
    files = [*archives, *(file for group in sources.WEIGHTS.values() for file in group.values())]
    assert len({file.name for file in files}) == len(files)
    assert {url.partition("://")[0] for file in files for url in file.urls} <= {"http", "https"}
    names = {"mobilenet_v2": "MobileNet_V2"} | {f"resnet{depth}": f"ResNet{depth}" for depth in (18, 34, 50, 101, 152)}
    for backbone, file in sources.WEIGHTS["torchvision"].items():
        assert file.urls == (getattr(models, f"{names[backbone]}_Weights").DEFAULT.url,)
        assert len(file.checksum.digest) == 8
