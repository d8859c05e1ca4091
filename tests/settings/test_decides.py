"""What a setting decides: one mark on its field, read by resume, --init-from and reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from plopcli.engine.checks import check_same_settings, shares_first_step
from plopcli.errors import UsageError
from plopcli.methods import METHODS
from plopcli.reporting.differences import settings_that_matter
from plopcli.resolution.layers import resolve_settings
from plopcli.settings.keys import leaves
from plopcli.settings.sections import RunSettings

KEYS = leaves(METHODS["ft"].Settings)
OTHER: dict[str, Any] = {
    "data.root": "elsewhere",
    "data.path": "elsewhere",
    "data.workers": 3,
    "data.cache": True,
    "data.results_on": "val",
    "data.evaluation": "full",
    "data.crop": 64,
    "model.weights": "elsewhere/resnet101.pth",
    "model.pretrained": False,
    "train.validate_every": 2,
    "train.skip_non_finite": 2,
    "train.batch": 12,
    "method.classification": "bce",
    "output.overlays": 0,
    "run": "elsewhere",
    "compute.compile": "aot_eager",
}


def settings(**changes: Any) -> RunSettings:
    return resolve_settings({"method.name": "ft"} | changes, environment={}).settings


@pytest.mark.parametrize("key", OTHER)
def test_resume_shared_steps_and_reports_agree_on_what_a_setting_decides(key: str) -> None:
    plain, other, decides = settings(), settings(**{key: OTHER[key]}), KEYS[key].decides
    assert plain != other
    assert (settings_that_matter(plain) == settings_that_matter(other)) == (decides == "nothing")
    assert shares_first_step(plain, other) == (decides != "weights")
    if decides == "nothing":
        check_same_settings(Path("step-0.pt"), plain.model_dump(mode="json"), other)
    else:
        with pytest.raises(UsageError, match=key):
            check_same_settings(Path("step-0.pt"), plain.model_dump(mode="json"), other)


def test_marks() -> None:
    def keys(what: str, section: str = "") -> set[str]:
        return {key for key, leaf in KEYS.items() if leaf.decides == what and key.startswith(section)}

    assert keys("results") == {"data.results_on", "data.evaluation"}
    assert keys("weights", "compute.") == {"compute.micro_batch", "compute.precision", "compute.sync_norm"}
    assert not keys("weights", "output.")
    assert not keys("nothing", "method.") | keys("nothing", "scenario.") | keys("nothing", "train.later")
    assert keys("nothing", "train.") == {"train.validate_every", "train.skip_non_finite"}
    assert KEYS["seed"].decides == "weights"


def test_seeds_on_machines_with_other_paths_are_pooled() -> None:
    here, there = settings(), settings(**{"seed": 1, "model.weights": "/there/w.pth", "data.root": "/there"})
    assert settings_that_matter(here) == settings_that_matter(there)
