"""Cityscapes: two archives that only their owners may hand out."""

from __future__ import annotations

from pathlib import Path

from plopcli.data.download.delivery import Delivery
from plopcli.data.download.sources import CITYSCAPES_IMAGES, CITYSCAPES_LABELS, Archive
from plopcli.errors import DataError

ARCHIVES = (CITYSCAPES_IMAGES, CITYSCAPES_LABELS)
#: Pairs that the published set has.
_PUBLISHED = {"train": 2_975, "val": 500}
_IMAGE, _LABEL = "_leftImg8bit.png", "_gtFine_labelIds.png"


def download_cityscapes(delivery: Delivery) -> None:
    """Fills the folder with ``leftImg8bit/{train,val,test}/CITY`` and ``gtFine/{train,val,test}/CITY``.

    Raises:
        DataError: The user has not brought the archives (the hint says how to get them), or pairs are incomplete.
    """
    root = delivery.root
    needed = [archive for archive in ARCHIVES if _find(root, archive) is None]
    if absent := [archive for archive in needed if not delivery.has(archive) and not delivery.can_fetch(archive)]:
        names = " and ".join(archive.name for archive in absent)
        words = " ".join(f"--from {archive.name}" for archive in ARCHIVES if archive in needed)
        raise DataError(
            f"Cityscapes needs {names}, which its owners hand out to registered users only.",
            "Register at https://www.cityscapes-dataset.com (free for research), log in, open Downloads, and get\n"
            f"  {names}.\nThen, with the paths of these files: plop download cityscapes {words}",
        )
    delivery.verify_own()
    delivery.ensure_room(needed)
    for archive in needed:
        delivery.place(delivery.unpacked(archive) / archive.holds, root / archive.holds)
        delivery.finish(archive)
    for split, published in _PUBLISHED.items():
        images, labels = (
            {path.name.removesuffix(end) for path in (_find(root, archive) or root).glob(f"{split}/*/*{end}")}
            for archive, end in ((CITYSCAPES_IMAGES, _IMAGE), (CITYSCAPES_LABELS, _LABEL))
        )
        delivery.check_pairs(root, split, images, labels, published)


def _find(root: Path, archive: Archive) -> Path | None:
    """The folder that an archive fills; some unpack each archive into a folder of its name."""
    places = (root / archive.holds, root / archive.name.removesuffix(".zip") / archive.holds)
    return next((place for place in places if place.is_dir()), None)
