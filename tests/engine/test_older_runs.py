"""Going on with what an older version of plop has left."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from plopcli.engine import checks
from plopcli.errors import UsageError
from plopcli.resolution.layers import Resolved
from plopcli.runs.folder import RunFolder

Make = Callable[..., Resolved]


def resume_at(tiny: Make, monkeypatch: pytest.MonkeyPatch, stored: dict[str, Any], **changes: str) -> None:
    monkeypatch.setattr(checks, "load_checkpoint", lambda _: SimpleNamespace(settings=stored))
    folder = SimpleNamespace(steps=lambda: [0], checkpoint=lambda step: f"step-{step}.pt", path="run")
    checks.check_folder(cast(RunFolder, folder), tiny(method__name="lwf", **changes).settings)


def test_settings_that_were_not_there_yet_count_as_their_defaults(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = tiny(method__name="lwf").settings.model_dump(mode="json")
    for section, key in (("method", "init"), ("method", "kd_pixels"), ("scenario", "other_labels")):
        del stored[section][key]
    resume_at(tiny, monkeypatch, stored)
    with pytest.raises(UsageError, match=r"method.init: default -> balanced"):
        resume_at(tiny, monkeypatch, stored, method__init="balanced")


@pytest.mark.parametrize(("others", "shared"), [("shown", True), ("background", True), ("ignored", False)])
def test_step_0_is_shared_unless_later_classes_are_ignored(tiny: Make, others: str, shared: bool) -> None:
    plain, other = (tiny(**changes).settings for changes in ({}, {"scenario__other_labels": others}))
    stored, ours = (checks._of_first_step(one.model_dump(mode="json")) for one in (plain, other))
    assert (checks._differences(stored, ours) == []) == shared
