"""ADE20K scene parsing: 150 classes, and 0 for what is unlabelled, which serves as background."""

from __future__ import annotations

from pathlib import Path

from plopcli.data.samples import Sample, SegmentationData, class_facts, files_by_stem, find_base
from plopcli.errors import DataError

_GET = "plop download ade"
#: Our split -> the folder of that name in images/ and annotations/.
_FOLDERS = {"train": "training", "test": "validation"}


def load_ade(root: Path) -> SegmentationData:
    """Finds ADEChallengeData2016; its validation images are the test split, as in all papers."""
    base = find_base(root, ("ADEChallengeData2016", "."), "images", _GET)
    splits: dict[str, tuple[Sample, ...]] = {}
    notes = []
    for split, folder in _FOLDERS.items():
        images, masks = base / "images" / folder, base / "annotations" / folder
        if not images.is_dir():
            notes.append(f"{images} does not exist: there is nothing for {split}. Get it with: {_GET}")
            splits[split] = ()
            continue
        if not masks.is_dir():
            raise DataError(f"{images} has no masks: {masks} does not exist.", f"Get the data set with: {_GET}")
        splits[split] = tuple(
            Sample(stem, path, masks / f"{path.stem}.png", drawn_as_stored=True)
            for stem, path in files_by_stem(images, (".jpg",)).items()
        )
    if not any(splits.values()):
        looked = ", ".join(str(base / "images" / folder / "*.jpg") for folder in _FOLDERS.values())
        raise DataError(f"{base} holds no image. Looked for {looked}.", f"Get the data set with: {_GET}")
    return SegmentationData("ade", root, tuple(class_facts()["ade"]), splits, notes=tuple(notes))
