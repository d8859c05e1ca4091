"""PASCAL VOC 2012 with augmented labels: VOC's own archive, the labels of SBD, and the lists of both."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from plopcli.data.disk import replace_whole, writing
from plopcli.data.download.delivery import Delivery
from plopcli.data.download.sources import SBD, VOC_AUGMENTED, VOC_TRAINVAL
from plopcli.data.matlab import read_segmentation
from plopcli.errors import DataError
from plopcli.visualization.palette import voc_palette

ARCHIVES = (VOC_TRAINVAL, VOC_AUGMENTED, SBD)
#: Images that the published lists have.
_PUBLISHED = {"train_aug": 10_582, "val": 1_449}
_AUGMENTED = "SegmentationClassAug"
#: Where lists may be; that of VOC itself is the second.
_LISTS = (".", "ImageSets/Segmentation", "list", "splits")


def download_voc(delivery: Delivery) -> None:
    """Fills the folder with ``VOCdevkit/VOC2012``: images, VOC's masks, augmented masks and the lists of both.

    Raises:
        DataError: An archive cannot be had, or an image or mask of a list is missing.
    """
    base = _find_base(delivery.root)
    labels = SBD if delivery.has(SBD) and not delivery.has(VOC_AUGMENTED) else VOC_AUGMENTED
    missing = [] if base is not None else [VOC_TRAINVAL]
    if base is None or not (base / _AUGMENTED).is_dir():
        missing.append(labels)
    if missing:
        delivery.verify_own()
        delivery.ensure_room(missing)
    if base is None:
        base = delivery.root / "VOCdevkit" / "VOC2012"
        delivery.place(delivery.unpacked(VOC_TRAINVAL) / "VOCdevkit" / "VOC2012", base)
        delivery.finish(VOC_TRAINVAL)
    if labels in missing:
        _add_labels(delivery, base, from_sbd=labels is SBD)
    _complete_lists(delivery, base)


def _find_base(root: Path) -> Path | None:
    """The folder with the images, in any of the layouts that the data set is read from."""
    places = ("VOCdevkit/VOC2012", "PascalVOC12", "VOC2012", ".")
    return next((root / place for place in places if (root / place / "JPEGImages").is_dir()), None)


def _add_labels(delivery: Delivery, base: Path, *, from_sbd: bool) -> None:
    """Puts the augmented masks into place: from their archive, or else built from SBD."""
    if not from_sbd:
        try:
            folder = delivery.unpacked(VOC_AUGMENTED) / _AUGMENTED
        except DataError as error:
            if delivery.has(VOC_AUGMENTED):
                raise
            delivery.log.say(f"{error.message}\nBuilding the same labels from {SBD.name} instead.", style="yellow")
            from_sbd = True
            delivery.ensure_room([SBD])
    if from_sbd:
        folder = _labels_from_sbd(delivery, base)
    else:
        _add_masks_of_voc(base, folder, {path.stem for path in folder.glob("*.png")})
    delivery.place(folder, base / _AUGMENTED)
    delivery.finish(SBD if from_sbd else VOC_AUGMENTED)


def _labels_from_sbd(delivery: Delivery, base: Path) -> Path:
    """Draws the masks of SBD; where VOC has one of its own, that is taken, as in the published labels."""
    cls = "benchmark_RELEASE/dataset/cls/"
    workshop = delivery.unpacked(SBD, lambda name: name.startswith(cls) and name.endswith(".mat"))
    folder = workshop / _AUGMENTED
    with writing(folder):
        folder.mkdir()
    _add_masks_of_voc(base, folder, set())
    sources = [path for path in sorted((workshop / cls).glob("*.mat")) if not (folder / f"{path.stem}.png").exists()]
    with delivery.log.progress("drawing SBD's labels", "masks") as bar:
        _draw_all(sources, folder, bar.update)
    delivery.log.say(f"{SBD.name}: {len(sources):,} masks drawn")
    return folder


def _draw_all(sources: list[Path], folder: Path, progress: Callable[[int, int], None]) -> None:
    palette = voc_palette().tobytes()

    def draw(source: Path) -> None:
        image = Image.fromarray(read_segmentation(source))
        image.putpalette(palette)
        target = folder / f"{source.stem}.png"
        with writing(target):
            image.save(target)

    # Threads do: reading, unpacking and packing release the interpreter.
    with ThreadPoolExecutor(os.cpu_count()) as workers:
        try:
            for done, _ in enumerate(workers.map(draw, sources), start=1):
                progress(done, len(sources))
        except BaseException:
            workers.shutdown(cancel_futures=True)
            raise


def _add_masks_of_voc(base: Path, folder: Path, there: set[str]) -> None:
    """Copies VOC's own masks, but for those that are ``there``."""
    for mask in sorted((base / "SegmentationClass").glob("*.png")):
        if mask.stem not in there:
            with writing(folder / mask.name):
                shutil.copyfile(mask, folder / mask.name)


def _complete_lists(delivery: Delivery, base: Path) -> None:
    """Writes the lists that are missing, and checks that every image of both lists is there with its mask."""
    lists = base / "ImageSets" / "Segmentation"
    images = {path.stem for path in (base / "JPEGImages").glob("*.jpg")}
    augmented = {path.stem for path in (base / _AUGMENTED).glob("*.png")}
    genuine = {path.stem for path in (base / "SegmentationClass").glob("*.png")}

    val = _read_list(base, "val.txt")
    if val is None:
        train = _read_list(base, "train.txt")
        if train is None or not genuine:
            raise DataError(
                f"{base} has no list val.txt, and nothing to make it from.",
                f"ImageSets/Segmentation/val.txt belongs to {VOC_TRAINVAL.name}.",
            )
        val = _write_list(lists / "val.txt", genuine - set(train))
        delivery.log.say(f"wrote {lists / 'val.txt'}")
    train_aug = _read_list(base, "train_aug.txt", "trainaug.txt")
    if train_aug is None:
        train_aug = _write_list(lists / "trainaug.txt", (augmented & images) - set(val))
        delivery.log.say(f"wrote {lists / 'trainaug.txt'}")
    for name, listed, masks in (("train_aug", train_aug, augmented), ("val", val, genuine | augmented)):
        if lost := sorted(set(listed) - (images & masks)):
            raise DataError(
                f"{base}: {len(lost)} of {len(listed):,} images of the list {name} lack the image or the mask, "
                f"such as {lost[0]}.",
                f"Move {base} away (or remove it) and start the same command again.",
            )
        note = "" if len(listed) == _PUBLISHED[name] else f" (the published list has {_PUBLISHED[name]:,})"
        delivery.log.say(f"{name}: {len(listed):,} images with masks{note}")


def _read_list(base: Path, *names: str) -> list[str] | None:
    """The names in the first list that exists; a line is a name, or the path of an image and that of its mask."""
    for path in (base / folder / name for folder in _LISTS for name in names):
        if path.is_file():
            lines = path.read_text("utf-8-sig").splitlines()
            return [Path(line.split()[0]).stem for line in lines if line.strip()]
    return None


def _write_list(path: Path, names: Iterable[str]) -> list[str]:
    ordered = sorted(names)
    temporary = path.with_name(f"{path.name}.part")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text("".join(f"{name}\n" for name in ordered), "utf-8")
    replace_whole(temporary, path)
    return ordered
