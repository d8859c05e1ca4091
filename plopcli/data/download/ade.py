"""ADE20K scene parsing: one archive with images and annotations."""

from __future__ import annotations

from plopcli.data.download.delivery import Delivery
from plopcli.data.download.sources import ADE

ARCHIVES = (ADE,)
#: Pairs that the published set has.
_PUBLISHED = {"training": 20_210, "validation": 2_000}


def download_ade(delivery: Delivery) -> None:
    """Fills the folder with ``ADEChallengeData2016/{images,annotations}/{training,validation}``.

    Raises:
        DataError: The archive cannot be had, or the folder is not complete.
    """
    base = delivery.root / "ADEChallengeData2016"
    if (delivery.root / "images").is_dir():
        base = delivery.root
    elif not (base / "images").is_dir():
        delivery.verify_own()
        delivery.ensure_room([ADE])
        delivery.place(delivery.unpacked(ADE) / base.name, base)
        delivery.finish(ADE)
    for split, published in _PUBLISHED.items():
        images = {path.stem for path in (base / "images" / split).glob("*.jpg")}
        masks = {path.stem for path in (base / "annotations" / split).glob("*.png")}
        delivery.check_pairs(base, split, images, masks, published)
