"""What has become of the images of a run since it was trained: pictures come and go, and lists change."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from plopcli.data.samples import some
from plopcli.errors import DataError
from plopcli.scenarios.scenario import Scenario

#: Split -> name of an image -> its mark (`plopcli.data.checking.Checked.mark`).
Images = Mapping[str, Mapping[str, int]]
_MEASURED = ("test", "val")


@dataclass(frozen=True)
class DataChanges:
    """How the images of now differ from those of then.

    Args:
        lines: What has changed, for people; empty where nothing has.
        leaked: Names of images that were for training and are now for validation or test.
    """

    lines: tuple[str, ...] = ()
    leaked: tuple[str, ...] = ()

    def __str__(self) -> str:
        """In one sentence."""
        return "; ".join(self.lines)

    def refuse_leaks(self, since: str) -> None:
        """Refuses figures that would be measured on images that were learned by heart.

        Args:
            since: What was trained on them.

        Raises:
            DataError: Names the images.
        """
        if self.leaked:
            raise DataError(
                f"{len(self.leaked)} images that {since} was trained on are now for validation or test: "
                f"{some(self.leaked)}.",
                "Put them back: lists of the data set decide (train.txt, val.txt, test.txt in data set folder); or "
                "begin anew with --overwrite or another --run.",
            )


def changes_since(scenario: Scenario, fingerprint: str, images: Images) -> DataChanges:
    """How the images of ``scenario`` differ from those of a checkpoint or snapshot.

    Args:
        scenario: The images as they are now.
        fingerprint: That of then; empty where nothing is known.
        images: Those of then; empty in files of earlier versions.
    """
    if not images:
        if not fingerprint or scenario.is_known_as(fingerprint):
            return DataChanges()
        return DataChanges(("images, masks or lists have changed (an earlier version did not note which)",))
    now = scenario.images
    then_names, now_names = (dict.fromkeys(name for names in one.values() for name in names) for one in (images, now))
    then_marks, now_marks = (
        {name: mark for names in one.values() for name, mark in names.items()} for one in (images, now)
    )
    both = [name for name in now_names if name in then_names]
    changed = [name for name in both if then_marks[name] != now_marks[name]]
    lines = [
        _line([name for name in now_names if name not in then_names], "added"),
        _line([name for name in then_names if name not in now_names], "removed"),
        _line(changed, "changed (image or mask)"),
    ]
    leaked: list[str] = []
    for before, names in images.items():
        for split, others in now.items():
            if split == before:
                continue
            moved = [
                n for n in others if n in names and n not in images.get(split, {}) and n not in now.get(before, {})
            ]
            lines.append(_line(moved, f"now for {split}, not {before}"))
            if before == "train" and split in _MEASURED:
                leaked += [name for name in others if name in names and name not in images.get(split, {})]
    if not any(lines) and not scenario.is_known_as(fingerprint):
        lines.append("the order of the lists, the names of the classes or the split files have changed")
    return DataChanges(tuple(line for line in lines if line), tuple(leaked))


def _line(names: list[str], what: str) -> str:
    return f"{len(names)} {'image' if len(names) == 1 else 'images'} {what}: {some(names)}" if names else ""


def digest_of(images: Iterable[tuple[str, int]]) -> str:
    """By which a set of images and masks is known, whatever their order."""
    listed = "\n".join(f"{mark} {name}" for name, mark in sorted(images))
    return hashlib.sha256(listed.encode(errors="surrogateescape")).hexdigest()[:16]


def measured_images(scenario: Scenario, split: str, names: Iterable[str]) -> dict[str, Any]:
    """What the results say of the images that they are measured on: digests of ``names`` and of all in ``split``."""
    marks = scenario.images[split]
    return {
        "images_digest": digest_of((name, marks[name]) for name in names),
        "split_digest": digest_of(marks.items()),
    }
