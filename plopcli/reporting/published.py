"""Figures of papers and repositories, to compare one's own with.

They are in `published.json`, with their sources. There are two conventions for means over classes: with background,
which counts as old (PLOP), and without (MiB). `miou` is compared with the former, `miou_foreground` with the latter.
"""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

from plopcli.reporting.comparison import SameSetting


class PublishedResult(NamedTuple):
    """A published result.

    Attributes:
        method: The authors' name for it.
        old: MIoU in percent after the last step of the classes of step 0; None where it was not given.
        new: Of the classes of later steps.
        all: Of all classes.
        avg: Mean of ``all`` over the steps.
        background: Whether background counts, in ``old`` and ``all``.
        source: The publication.
    """

    method: str
    old: float | None
    new: float | None
    all: float | None
    avg: float | None
    background: bool
    source: str


def published(setting: SameSetting) -> list[PublishedResult]:
    """Results published on the same data set, task and protocol; none for other than test images."""
    if setting.split != "test":
        return []
    found: dict[tuple[object, ...], PublishedResult] = {}
    for table in _content()["tables"]:
        if _matches(table, setting):
            for method, values in table["rows"].items():
                old, new, together, avg = values
                result = PublishedResult(method, old, new, together, avg, table["background"], table["source"])
                # A figure that one paper has copied from another is told once, by its origin.
                found[result._replace(source="")] = result
    return list(found.values())


def remarks(setting: SameSetting) -> list[str]:
    """Notes on comparing with the published figures."""
    return [note["text"] for note in _content()["notes"] if setting.split == "test" and _matches(note, setting)]


def _matches(record: dict[str, Any], setting: SameSetting) -> bool:
    return all(record[name] == getattr(setting, name) for name in ("dataset", "task", "protocol"))


@cache
def _content() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(resources.files("plopcli.reporting").joinpath("published.json").read_text())
    return content
