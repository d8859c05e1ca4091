"""What a method brings along: the presets of the one that it is built on, and numbers of the recipe."""

from __future__ import annotations

from typing import Any

import pytest

from plopcli.resolution.layers import Resolved, resolve_settings


def resolve(method: str, preset: str = "auto", task: str = "15-1", **flags: Any) -> Resolved:
    keys = {"method.name": method, "scenario.task": task} | {key.replace("__", "."): v for key, v in flags.items()}
    return resolve_settings(keys, environment={}, preset=preset)


@pytest.mark.parametrize("method", ["plop-ewf", "reminder"])
@pytest.mark.parametrize("family", ["voc", "ade", "toy", "cityscapes-domain", "photos-small"])
@pytest.mark.parametrize("task", ["15-1", "1-1"])
def test_what_is_built_on_plop_has_its_numbers(method: str, family: str, task: str) -> None:
    plain, ours = resolve("plop", family, task), resolve(method, family, task)
    expected, values = plain.settings.method.model_dump(), ours.settings.method.model_dump()
    own = {"name": method} | ({"fusion": "auto"} if method == "plop-ewf" else {})
    assert {key: values[key] for key in expected} == expected | own
    origin = plain.origins["method.pod_factor"]
    assert origin == f"preset {family}/plop"
    assert ours.origins["method.pod_factor"] == origin
    taken = next(preset for preset in ours.presets if preset.name == f"{family}/plop")
    assert taken.source.endswith(f"(for plop, which {method} is built on)")


def test_what_is_built_on_mib_has_its_numbers() -> None:
    assert resolve("mib-ewf", "voc-mib").settings.method.model_dump()["kd_factor"] == 100
    assert resolve("mib-ewf").settings.method.model_dump()["kd_factor"] == 10


def test_nobody_else_has_them() -> None:
    assert [preset.name for preset in resolve("ft").presets] == ["voc"]
    assert [preset.name for preset in resolve("plop").presets] == ["voc", "voc/plop"]


@pytest.mark.parametrize("method", ["mib-ewf", "plop-ewf"])
@pytest.mark.parametrize("preset", ["auto", "ade", "none"])
def test_ewf_freezes_old_classifiers_in_later_steps_whatever_the_preset(method: str, preset: str) -> None:
    resolved = resolve(method, preset)
    assert resolved.settings.train.later.lr_old == 0
    assert resolved.settings.train.first.lr_old == 1
    assert resolved.origins["train.later.lr_old"] == f"preset method/{method}"
    assert "train.later.lr_old = 0" in resolved.presets[-1].source
    assert resolved.overridden == ()


def test_the_user_s_own_rate_wins_and_is_told() -> None:
    resolved = resolve("plop-ewf", train__later__lr_old=0.5)
    assert resolved.settings.train.later.lr_old == 0.5
    assert resolved.overridden == ("train.later.lr_old: preset method/plop-ewf says 0.0, flag says 0.5",)


def test_reminder_drops_classes_below_the_mean_on_ade_alone() -> None:
    for family, delta in (("voc", 0), ("ade", 1)):
        resolved = resolve("reminder", family)
        assert resolved.settings.method.model_dump()["similarity_delta"] == delta
        assert resolved.origins["method.similarity_delta"] == f"preset {family}/reminder"
        assert any("REMINDER, CVPR 2022" in preset.source for preset in resolved.presets)
    assert resolve("reminder", "none").presets == ()
