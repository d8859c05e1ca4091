"""Tiny archives laid out like the published ones."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

TRAIN = ("2007_000032", "2007_000039")
VAL = ("2007_000033", "2007_000042")
EXTRA = ("2008_000015", "2008_000019", "2011_003276")
SBD_FILE = Path(__file__).parent / "data" / "sbd" / "compressed.mat"
SIZE = (7, 5)


def jpeg() -> bytes:
    return _saved(Image.new("RGB", SIZE, (10, 200, 30)), "JPEG")


def mask(label: int) -> bytes:
    image = Image.fromarray(np.full(SIZE[::-1], label, np.uint8))
    image.putpalette(list(range(256)) * 3)
    return _saved(image, "PNG")


def voc_files(val: bool = True) -> dict[str, bytes]:
    base = "VOCdevkit/VOC2012"
    files = {f"{base}/JPEGImages/{name}.jpg": jpeg() for name in (*TRAIN, *VAL, *EXTRA)}
    files |= {f"{base}/SegmentationClass/{name}.png": mask(7) for name in (*TRAIN, *VAL)}
    files |= {f"{base}/Annotations/{name}.xml": b"<a/>" for name in TRAIN}
    files[f"{base}/ImageSets/Segmentation/train.txt"] = "\n".join(TRAIN).encode()
    if val:
        files[f"{base}/ImageSets/Segmentation/val.txt"] = "".join(f"{name}\n" for name in VAL).encode()
    return files


def augmented_files(names: Sequence[str] = (*TRAIN, *VAL, *EXTRA)) -> dict[str, bytes]:
    files = {f"SegmentationClassAug/{name}.png": mask(3) for name in names}
    return files | {"__MACOSX/._SegmentationClassAug": b"junk"}


def sbd_files() -> dict[str, bytes]:
    base = "benchmark_RELEASE/dataset"
    content = SBD_FILE.read_bytes()
    files = {f"{base}/cls/{name}.mat": content for name in (TRAIN[0], VAL[0], *EXTRA)}
    return files | {f"{base}/img/{name}.jpg": jpeg() for name in EXTRA} | {f"{base}/train.txt": b"x"}


def ade_files() -> dict[str, bytes]:
    base, files = "ADEChallengeData2016", {}
    for split, prefix, count in (("training", "train", 5), ("validation", "val", 2)):
        for index in range(1, count + 1):
            name = f"ADE_{prefix}_{index:08d}"
            files[f"{base}/images/{split}/{name}.jpg"] = jpeg()
            files[f"{base}/annotations/{split}/{name}.png"] = mask(index)
    return files | {f"{base}/sceneCategories.txt": b"x"}


def cityscapes_files() -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Of the images, and of the labels."""
    images, labels = {"README": b"x", "license.txt": b"x"}, {"README": b"x", "license.txt": b"x"}
    for split, city in (("train", "aachen"), ("train", "bochum"), ("val", "lindau")):
        for index in range(2):
            name = f"{split}/{city}/{city}_{index:06d}_000019"
            images[f"leftImg8bit/{name}_leftImg8bit.png"] = _saved(Image.new("RGB", SIZE), "PNG")
            for kind in ("labelIds", "instanceIds", "color"):
                labels[f"gtFine/{name}_gtFine_{kind}.png"] = mask(7)
    return images, labels


def zipped(files: Mapping[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def tarred(files: Mapping[str, bytes], mode: str = "w") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def _saved(image: Image.Image, kind: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()
