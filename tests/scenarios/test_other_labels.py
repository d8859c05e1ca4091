"""Training labels of classes that a step does not bring, where the protocol does not decide."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from plopcli.errors import UsageError
from plopcli.resolution.layers import Resolved
from plopcli.scenarios.scenario import Scenario

Make = Callable[..., Resolved]


def tables(tiny: Make, **changes: str) -> list[list[int]]:
    """Learned ids of every label id in each step of 18-1, of 0 to 20."""
    scenario = Scenario.from_settings(tiny(**changes).settings)
    return [scenario.training(step).table[:21].tolist() for step in range(scenario.steps)]


def test_they_change_labels_and_no_choice_of_images(tiny: Make) -> None:
    base, old, new = list(range(19)), [0] * 19, [19, 0]
    assert tables(tiny)[:2] == [[*base, 0, 0], [*old, *new]]
    assert tables(tiny, scenario__other_labels="shown")[:2] == [[*base, 0, 0], [*base, *new]]
    ignored = tables(tiny, scenario__other_labels="ignored")
    assert ignored[:2] == [[*base, 255, 255], [0, *[255] * 18, 19, 255]]
    shown = tables(tiny, scenario__protocol="sequential")
    assert shown[1] == [*base, *new]
    assert tables(tiny, scenario__protocol="sequential", scenario__other_labels="background")[1] == [*old, *new]

    scenarios = [
        Scenario.from_settings(tiny(scenario__other_labels=others).settings) for others in ("protocol", "ignored")
    ]
    assert scenarios[0].training(1).samples == scenarios[1].training(1).samples
    measured = [scenario.evaluation(1, "test").table for scenario in scenarios]
    assert np.array_equal(*measured)
    assert [any("ignored" in note for note in scenario.notes) for scenario in scenarios] == [False, True]


def test_domains_have_none(tiny: Make, city_root: Path) -> None:
    settings = tiny(
        data__dataset="cityscapes-domain", data__root=city_root, scenario__task="2-1", scenario__other_labels="shown"
    ).settings
    with pytest.raises(UsageError, match="brings domains"):
        Scenario.from_settings(settings)
