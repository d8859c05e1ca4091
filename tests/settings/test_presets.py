from __future__ import annotations

import pytest

from plopcli.errors import UsageError
from plopcli.methods import METHODS
from plopcli.settings.layers import resolve_settings
from plopcli.settings.presets import PRESETS, choose_presets, preset_families


def names(name: str, **choice: str) -> list[str]:
    return [
        preset.name for preset in choose_presets(name, **({"dataset": "voc", "task": "15-1", "method": "ft"} | choice))
    ]


def test_the_data_set_chooses_the_family():
    assert names("auto") == ["voc"]
    assert names("auto", dataset="toy") == ["toy"]
    assert names("auto", dataset="unheard-of") == []


def test_task_and_method_narrow_it_down():
    assert names("auto", method="plop") == ["voc", "voc/plop"]
    assert names("auto", task="10-1", method="plop") == ["voc", "voc/10-1", "voc/plop"]


def test_a_name_replaces_the_data_sets_own_family_and_none_switches_it_off():
    assert names("photos-small", method="plop") == ["photos-small", "photos-small/plop"]
    assert names("none") == []


def test_unknown_family():
    with pytest.raises(UsageError, match="no preset called 'photos'") as caught:
        names("photos")
    assert "photos-small" in str(caught.value.hint)


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("family", preset_families())
def test_every_preset_is_made_of_settings_that_exist(family, method):
    for task in {"15-1", *(preset.task for preset in PRESETS if preset.task)}:
        flags = {"method.name": method, "scenario.task": task}
        resolved = resolve_settings(flags, environment={}, preset=family)
        assert resolved.presets
        assert all(preset.source for preset in resolved.presets)


def test_recipe_of_the_paper():
    settings = resolve_settings({"method.name": "plop"}, environment={}).settings
    assert (settings.data.dataset, settings.scenario.protocol, settings.train.batch) == ("voc", "overlapped", 24)
    assert (settings.train.first.lr, settings.train.later.lr) == (0.01, 0.001)
    assert (settings.train.first.epochs, settings.train.later.epochs) == (30, 30)
    assert (settings.model.backbone, settings.model.pretrained, settings.data.crop) == ("resnet101", True, 512)
    assert settings.method.model_dump()["pod_factor"] == 0.01
    assert settings.method.model_dump()["pod_logits_factor"] == 0.0005


def test_factors_for_cities():
    for task, factor in (("1-1", 0.001), ("11-1", 0.0001), ("11-5", 0.0001)):
        flags = {"data.dataset": "cityscapes-domain", "scenario.task": task}
        settings = resolve_settings(flags, environment={}).settings
        assert settings.train.later.epochs == 50
        assert settings.method.model_dump()["pod_factor"] == 0.0001
        assert settings.method.model_dump()["pod_logits_factor"] == factor
    assert settings.run_folder.name == "cityscapes-domain-11-5-plop-s42"


def test_factors_for_ade():
    settings = resolve_settings({}, environment={}, preset="ade").settings
    assert settings.method.model_dump()["pod_factor"] == 0.001
    assert settings.method.model_dump()["pod_logits_factor"] == 0.00001
    assert settings.train.first.epochs == 60


def test_mibs_own_numbers_have_to_be_asked_for():
    def method(name: str, preset: str, task: str = "15-1") -> dict[str, object]:
        flags = {"method.name": name, "scenario.task": task}
        return resolve_settings(flags, environment={}, preset=preset).settings.method.model_dump()

    assert method("mib", "auto")["kd_factor"] == method("mib", "voc-mib", "15-5")["kd_factor"] == 10
    assert method("mib", "voc-mib")["kd_factor"] == method("mib", "voc-mib", "15-5s")["kd_factor"] == 100
    for name in ("ewc", "pi"):
        assert (method(name, "auto")["importance"], method(name, "voc-mib")["importance"]) == (100, 500)
    assert method("rw", "voc-mib")["importance"] == 100


def test_mibs_recipe_is_that_of_voc():
    plain, own = (resolve_settings({}, environment={}, preset=name).settings for name in ("voc", "voc-mib"))
    assert own.model_dump(exclude={"method"}) == plain.model_dump(exclude={"method"})
