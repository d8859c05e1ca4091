"""The generated data set as a tree of files, laid out like PASCAL VOC 2012.

::

    ROOT/VOCdevkit/VOC2012/
        JPEGImages/train_000000.jpg ...
        SegmentationClassAug/train_000000.png ...   palette PNGs: class ids, 255 for the contours
        ImageSets/Segmentation/{train,val,test}.txt
        classes.txt                                 21 names, background first
        toy.json                                    what the tree was generated from, written last
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from plopcli.data.palettes import voc_palette
from plopcli.data.toy.difficulty import DIFFICULTIES, VARIATIONS, Difficulty
from plopcli.data.toy.scene import OBJECT_CLASSES, draw_scene
from plopcli.errors import DataError, UsageError, unknown_name
from plopcli.files.atomic import write_atomic

TOY_CLASSES: tuple[str, ...] = ("background", *OBJECT_CLASSES)
"""Names of the 21 classes, background first; the position is the id in the masks."""

TOY_VERSION = 1
"""Raised with every change of the generator that changes a picture."""

VOC_FOLDER = Path("VOCdevkit", "VOC2012")
"""Where VOC's folders lie below the root of the data set."""

_LISTS: tuple[Literal["train", "val", "test"], ...] = ("train", "val", "test")
_OBJECTS = (2, 5)
_TWIN_SHARE = 0.15
_SMALLEST_SIZE = 32
_JPEG_QUALITY = 92


@dataclass(frozen=True)
class ToyParameters:
    """Everything that a generated tree follows from: equal parameters, NumPy and Pillow mean equal bytes.

    Attributes:
        seed: Seed of every random choice, 0 or more.
        difficulty: How cluttered and varied the pictures are.
        train: Number of training pictures.
        val: Number of validation pictures.
        test: Number of test pictures.
        size: Side of a picture in pixels, 32 or more.
        version: Version of the generator.
    """

    seed: int = 0
    difficulty: Difficulty = "medium"
    train: int = 800
    val: int = 200
    test: int = 300
    size: int = 96
    version: int = TOY_VERSION

    def problems(self) -> list[str]:
        """What is out of range, one sentence each."""
        return [
            f"{name} is {value}: it must be at least {least}."
            for name, value, least in (
                ("seed", self.seed, 0),
                ("train", self.train, 1),
                ("val", self.val, 1),
                ("test", self.test, 1),
                ("size", self.size, _SMALLEST_SIZE),
            )
            if value < least
        ]


def generate_toy(root: Path, *, progress: Callable[[int, int], None] | None = None, **chosen: Any) -> None:
    """Generate the data set under ``root``, or do nothing where the very same one is there already.

    The tree grows in a hidden folder beside ``root`` and is renamed at the end: ``root`` either holds all of it or is
    left as it was. Two processes may do this at once; the tree is the same whoever finishes first.

    Args:
        root: Folder of the data set; missing or empty, unless it holds this data set.
        progress: Called with the number of pictures done and their total, after each.
        **chosen: Attributes of `ToyParameters`.

    Raises:
        UsageError: A parameter is out of range, or there is no such difficulty.
        DataError: ``root`` holds something else, or cannot be written.
    """
    parameters = ToyParameters(**chosen)
    if parameters.difficulty not in DIFFICULTIES:
        raise unknown_name("difficulty", parameters.difficulty, DIFFICULTIES)
    if problems := parameters.problems():
        raise UsageError(f"The data set cannot be generated: {' '.join(problems)}")
    if _is_there(root, parameters):
        return
    partial = root.absolute().parent / f".{root.name}.partial-{uuid.uuid4().hex[:12]}"
    try:
        partial.mkdir(parents=True)
        _write_tree(partial / VOC_FOLDER, parameters, progress)
        _move(partial, root, parameters)
    except OSError as error:
        raise DataError(
            f"The generated data set could not be written to {root}: {error.strerror or error}.",
            "Make room or choose a folder that you can write to.",
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_toy_parameters(root: Path) -> ToyParameters | None:
    """What the tree under ``root`` was generated from; ``None`` where there is no complete one."""
    try:
        values = json.loads((root / VOC_FOLDER / "toy.json").read_text(encoding="utf-8"))
        return ToyParameters(**values)
    except (OSError, ValueError, TypeError):
        return None


def _is_there(root: Path, wanted: ToyParameters) -> bool:
    """Whether the tree is there; raises ``DataError`` where ``root`` holds anything else."""
    found = read_toy_parameters(root)
    if found == wanted:
        return True
    hint = "Choose another folder, or remove that one to have it generated anew."
    if found is not None:
        now, before = asdict(wanted), asdict(found)
        changes = [f"{name} {before[name]} instead of {now[name]}" for name in now if before[name] != now[name]]
        raise DataError(f"{root} holds a generated data set with {', '.join(changes)}.", hint)
    if root.is_dir() and any(root.iterdir()):
        raise DataError(f"{root} is not empty, and does not hold a complete generated data set.", hint)
    if root.exists() and not root.is_dir():
        raise DataError(f"{root} is a file, not a folder.", "Choose another folder.")
    return False


def _move(partial: Path, root: Path, parameters: ToyParameters) -> None:
    """Put the finished tree in its place; an equal tree that appeared there meanwhile stays."""
    try:
        if root.is_dir():
            root.rmdir()
        partial.rename(root)
    except OSError:
        if not _is_there(root, parameters):
            raise


def _write_tree(folder: Path, parameters: ToyParameters, progress: Callable[[int, int], None] | None) -> None:
    images, masks, lists = folder / "JPEGImages", folder / "SegmentationClassAug", folder / "ImageSets/Segmentation"
    for path in (images, masks, lists):
        path.mkdir(parents=True)
    palette = voc_palette().tobytes()
    variation = VARIATIONS[parameters.difficulty]
    counts = {name: int(getattr(parameters, name)) for name in _LISTS}
    done, total = 0, sum(counts.values())
    for number, name in enumerate(_LISTS):
        stems = [f"{name}_{index:06d}" for index in range(counts[name])]
        deals = _deal_classes(np.random.default_rng([parameters.seed, number]), len(stems))
        for index, (stem, labels) in enumerate(zip(stems, deals, strict=True)):
            # A generator of its own makes each picture independent of how many were drawn before it.
            rng = np.random.default_rng([parameters.seed, number, index])
            picture, mask = draw_scene(rng, labels, parameters.size, variation)
            Image.fromarray(picture).save(images / f"{stem}.jpg", quality=_JPEG_QUALITY, subsampling=0)
            indexed = Image.fromarray(mask)
            indexed.putpalette(palette)
            indexed.save(masks / f"{stem}.png")
            done += 1
            if progress is not None:
                progress(done, total)
        (lists / f"{name}.txt").write_bytes("".join(f"{stem}\n" for stem in stems).encode())
    (folder / "classes.txt").write_bytes("".join(f"{name}\n" for name in TOY_CLASSES).encode())
    write_atomic(folder / "toy.json", json.dumps(asdict(parameters), indent=2) + "\n")


def _deal_classes(rng: np.random.Generator, images: int) -> list[list[int]]:
    """Class ids for each picture of a list, dealt from shuffled decks of all classes so that none is rarer.

    Some pictures show their last class twice. Any class may meet any other, early or late in the class order.
    """
    hands = rng.integers(_OBJECTS[0], _OBJECTS[1] + 1, images)
    decks = -(-int(hands.sum()) // len(OBJECT_CLASSES))
    cards = [int(card) + 1 for _ in range(decks) for card in rng.permutation(len(OBJECT_CLASSES))]
    deals = []
    for hand in hands:
        deal, cards = cards[:hand], cards[hand:]
        if hand < _OBJECTS[1] and rng.random() < _TWIN_SHARE:
            deal.append(deal[-1])
        deals.append(deal)
    return deals
