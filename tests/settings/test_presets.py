from __future__ import annotations

import pytest

from plopcli.errors import UsageError
from plopcli.methods import METHODS
from plopcli.resolution.layers import resolve_settings
from plopcli.resolution.presets import choose_presets, preset_families, preset_variants, presets_of
from plopcli.settings.presets import PRESETS, Preset

TASKS = ("15-1", "10-1", "15-5s", "1-1")


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
    for task in TASKS:
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


def test_variants_go_on_top_of_a_family():
    own = ["voc", "voc/plop", "plop-exact"]
    assert names("plop-exact", method="plop") == names("auto,plop-exact", method="plop") == own
    assert names("voc , plop-exact", method="plop", dataset="toy") == own
    assert names("none,plop-exact", method="plop") == ["plop-exact"]
    assert names("plop-exact,plop-naive", method="plop") == [*own, "plop-naive"]
    assert preset_variants() == ("plop-exact", "plop-naive")
    assert not set(preset_variants()) & set(preset_families())


@pytest.mark.parametrize("method", ["plop", "plop-ewf", "reminder"])
@pytest.mark.parametrize("dataset", ["voc", "toy"])
@pytest.mark.parametrize(
    ("variant", "key", "value"), [("plop-exact", "estimator", "exact"), ("plop-naive", "pseudo", "naive")]
)
def test_a_variant_changes_what_it_says_and_nothing_else(variant, key, value, dataset, method):
    flags = {"method.name": method, "data.dataset": dataset}
    plain, varied = (resolve_settings(flags, environment={}, preset=name) for name in ("auto", variant))
    assert plain.settings.method.model_dump()[key] != value
    assert varied.settings.method.model_dump() == plain.settings.method.model_dump() | {key: value}
    assert varied.settings.model_dump(exclude={"method"}) == plain.settings.model_dump(exclude={"method"})
    assert varied.origins[f"method.{key}"] == f"preset {variant}"


def test_what_a_variant_overrides_in_another_preset_is_told(monkeypatch):
    variant = Preset("gentle", "a trial", {"method": {"pod_factor": 0.002}}, method="plop", variant=True)
    monkeypatch.setitem(PRESETS, "gentle", (variant,))
    resolved = resolve_settings({"method.name": "plop"}, environment={}, preset="gentle")
    assert resolved.overridden == ("method.pod_factor: preset voc/plop says 0.01, preset gentle says 0.002",)


@pytest.mark.parametrize(
    ("name", "method", "complaint", "hint"),
    [
        ("plop-exact", "ft", "plop-exact is not for method ft", "method plop"),
        ("voc,ade", "plop", "voc and ade are two families", "plop-exact"),
        ("plop-exakt", "plop", "no preset called 'plop-exakt'", "plop-exact"),
    ],
)
def test_presets_that_do_not_go_together_are_refused(name, method, complaint, hint):
    with pytest.raises(UsageError, match=complaint) as caught:
        names(name, method=method)
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize("method", list(METHODS))
def test_the_presets_of_a_method_are_all_that_it_can_take(method):
    listed = {preset.name for preset in presets_of(method)}
    taken: set[str] = set()
    for family in (*preset_families(), "none"):
        for task in TASKS:
            taken |= {preset.name for preset in choose_presets(family, dataset="voc", task=task, method=method)}
    assert taken == listed - set(preset_variants())


@pytest.mark.parametrize(
    ("dataset", "task", "epochs", "pod"),
    [
        ("voc", "19-1", (30, 30), (0.01, 0.0005)),
        ("voc", "15-5", (30, 30), (0.01, 0.0005)),
        ("voc", "15-1", (30, 30), (0.01, 0.0005)),
        ("voc", "15-5s", (30, 30), (0.01, 0.0005)),
        ("voc", "10-1", (30, 10), (0.01, 0.0005)),
        ("ade", "100-50", (60, 60), (0.001, 0.00001)),
        ("ade", "100-10", (60, 60), (0.001, 0.00001)),
        ("ade", "100-5", (60, 60), (0.001, 0.00001)),
        ("ade", "50-50", (60, 60), (0.001, 0.00001)),
        ("cityscapes-domain", "11-5", (50, 50), (0.0001, 0.0001)),
        ("cityscapes-domain", "11-1", (50, 50), (0.0001, 0.0001)),
        ("cityscapes-domain", "1-1", (50, 50), (0.0001, 0.001)),
    ],
)
def test_the_papers_numbers_hold_for_every_setting(dataset, task, epochs, pod):
    """spec: the recipe of the papers, and the factors of every method by data set and task."""

    def settings(method: str):
        flags = {"method.name": method, "data.dataset": dataset, "scenario.task": task}
        return resolve_settings(flags, environment={}).settings

    weights = {"lwf": {"kd_factor": 100}, "ilt": {"kd_factor": 100, "encoder_factor": 100}, "mib": {"kd_factor": 10}}
    weights |= {name: {"importance": 100} for name in ("ewc", "rw", "pi")} | {"lwf-mc": {"icarl_factor": 10}}
    weights |= {"ft": {}, "joint": {}, "plop": {"pod_factor": pod[0], "pod_logits_factor": pod[1]}}
    for method, values in weights.items():
        found = settings(method)
        dumped = found.method.model_dump()
        assert {key: dumped[key] for key in values} == values, method
        train, model = found.train, found.model
        assert (train.first.epochs, train.later.epochs) == epochs
        assert (train.first.lr, train.later.lr, train.batch, found.data.crop) == (0.01, 0.001, 24, 512)
        assert (model.backbone, model.pretrained, model.output_stride) == ("resnet101", True, 16)
        for recipe in (train.first, train.later):
            assert (recipe.momentum, recipe.weight_decay, recipe.schedule, recipe.power) == (0.9, 1e-4, "poly", 0.9)
