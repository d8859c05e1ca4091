"""Presets: recipes as plain data, chosen by data set, task and method.

Those of a data set stand here, or come from installed packages (`plopcli.plugins`); those of a method stand with it
(`Method.presets`), and apply over the former. The entries of a family apply in the order of their list, later ones over
earlier ones, each where its task and method fit. The family is the one named like the data set, or the one that
``--preset`` names; ``none`` applies nothing of any data set. A variant changes some settings of a method on top of
that; it is named behind the family, or alone (``auto,plop-exact``, ``plop-exact``). A method that is built on another
takes the entries of that one as well, and what a method itself asks of the recipe comes last, as a preset of the family
``method``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from plopcli.errors import UsageError, unknown_name
from plopcli.plugins import Registry
from plopcli.settings.keys import toml_value

AUTOMATIC = "auto"
NO_PRESET = "none"

PLOP_PAPER = "PLOP, CVPR 2021, and its published training scripts"
MIB_CODE = "MiB, CVPR 2020: the numbers of its author's own code, where PLOP's comparison has others"


@dataclass(frozen=True)
class Preset:
    """Values for a family of runs.

    Args:
        family: Name of the data set that it is for, or a name of its own.
        source: Where the values come from.
        values: Settings, nested like the TOML file.
        task: The task that it is for; every one if ``None``.
        method: The method that it is for; every one if ``None``.
        variant: It is no family, but changes something on top of one.
    """

    family: str
    source: str
    values: dict[str, Any]
    task: str | None = None
    method: str | None = None
    variant: bool = False

    @property
    def name(self) -> str:
        """The family, and what narrows it down: ``voc/10-1``, ``ade/plop``; of a variant its name alone."""
        parts = (self.family, self.task, None if self.variant else self.method)
        return "/".join(part for part in parts if part is not None)


_VOC_RECIPE: dict[str, Any] = {
    "data": {"crop": 512},
    "model": {"backbone": "resnet101", "pretrained": True, "output_stride": 16},
    "train": {"batch": 24, "first": {"epochs": 30, "lr": 0.01}, "later": {"epochs": 30, "lr": 0.001}},
}

_CITIES_RECIPE: dict[str, Any] = {
    "data": {"crop": 512},
    "model": {"backbone": "resnet101", "pretrained": True, "output_stride": 16},
    "train": {"batch": 24, "first": {"epochs": 50, "lr": 0.01}, "later": {"epochs": 50, "lr": 0.001}},
}

_BUILT_IN = (
    Preset("voc", PLOP_PAPER, _VOC_RECIPE),
    Preset("voc", PLOP_PAPER, {"train": {"later": {"epochs": 10}}}, task="10-1"),
    Preset("voc-mib", PLOP_PAPER, _VOC_RECIPE),
    Preset(
        "ade",
        PLOP_PAPER,
        {
            "data": {"crop": 512},
            "model": {"backbone": "resnet101", "pretrained": True, "output_stride": 16},
            "train": {"batch": 24, "first": {"epochs": 60, "lr": 0.01}, "later": {"epochs": 60, "lr": 0.001}},
        },
    ),
    Preset("cityscapes-domain", PLOP_PAPER, _CITIES_RECIPE),
    Preset("cityscapes", "chosen, not measured: the recipe for its domains", _CITIES_RECIPE),
    Preset(
        "toy",
        "from an earlier small-scale trial, checked on the val list; docs/results.md",
        {
            "data": {"crop": 80, "cache": True, "workers": 0},
            "model": {
                "backbone": "resnet18",
                "pretrained": False,
                "width": 32,
                "output_stride": 8,
                "head_channels": 128,
                "head_dilations": (2, 4, 6),
            },
            "train": {
                "batch": 8,
                "first": {"epochs": 12, "lr": 0.1},
                "later": {"epochs": 6, "lr": 0.01, "freeze_norm": "all"},
            },
        },
    ),
    Preset(
        "photos-small",
        "some hundred photographs, mobilenet_v2 with ImageNet weights, two CPU cores; docs/results.md",
        {
            "data": {"crop": 192, "cache": True, "workers": 0},
            "model": {
                "backbone": "mobilenet_v2",
                "pretrained": True,
                "output_stride": 16,
                "head_channels": 128,
                "head_dilations": (3, 6, 9),
            },
            "train": {
                "batch": 8,
                "first": {"epochs": 10, "lr": 0.1, "lr_body": 0.005, "freeze_norm": "body"},
                "later": {
                    "epochs": 10,
                    "lr": 0.005,
                    "lr_body": 0.005,
                    "freeze_norm": "all",
                    "freeze_norm_affine": True,
                },
            },
        },
    ),
    Preset(
        "folder",
        "chosen, not measured: the recipe for VOC with a lighter network, for one device",
        {
            "data": {"crop": 384},
            "model": {"backbone": "resnet50", "pretrained": True, "output_stride": 16},
            "train": {"batch": 12, "first": {"epochs": 30, "lr": 0.01}, "later": {"epochs": 30, "lr": 0.001}},
        },
    ),
)


def _checked(name: str, found: Any) -> tuple[Preset, ...]:
    presets = (found,) if isinstance(found, Preset) else tuple(found)
    for preset in presets:
        if not isinstance(preset, Preset):
            raise TypeError(f"{preset!r} is no Preset")
        if preset.family != name:
            raise ValueError(f"one of its presets is of family {preset.family!r}; the names must be equal")
    return presets


#: Presets by the name of their family, those that stand with methods aside.
PRESETS: Registry[tuple[Preset, ...]] = Registry(
    "preset",
    "plopcli.presets",
    {family: tuple(entries) for family, entries in groupby(_BUILT_IN, key=lambda preset: preset.family)},
    _checked,
)


def preset_families() -> tuple[str, ...]:
    """Names of families that ``--preset`` takes, `auto` and `none` aside."""
    return tuple(dict.fromkeys(preset.family for preset in _every_preset() if not preset.variant))


def preset_variants() -> tuple[str, ...]:
    """Names of variants that ``--preset`` takes, alone or behind a family."""
    return tuple(dict.fromkeys(preset.family for preset in _every_preset() if preset.variant))


def presets_of(method: str) -> tuple[Preset, ...]:
    """Every preset that a run of ``method`` can take, whatever its data set and task."""
    like, own, asked = _of_method(method)
    return (*_attributed([preset for family in PRESETS.values() for preset in family], method, like), *own, *asked)


def choose_presets(name: str, *, dataset: str, task: str, method: str) -> tuple[Preset, ...]:
    """The presets of a run, in the order in which they apply.

    Args:
        name: A family, `auto` for that of the data set (if it has one), or `none`: only what the method asks for;
            variants, with commas between; or variants alone, on top of `auto`.
        dataset: Name of the data set.
        task: Name of the task.
        method: Name of the method.

    Raises:
        UsageError: There is no such preset, two families, or a variant of another method.
    """
    like, own, asked = _of_method(method)
    name, variants = _family_and_variants(name, own)
    family = {NO_PRESET: None, AUTOMATIC: dataset}.get(name, name)
    fitting = [
        preset
        for wanted in (family, *variants)
        for preset in (*_attributed(PRESETS.get(wanted or "", ()), method, like), *own)
        if preset.family == wanted and preset.task in (None, task)
    ]
    for variant in variants:
        if all(preset.family != variant for preset in fitting):
            raise UsageError(f"Preset {variant} is not for method {method} on {dataset} {task}.", _described(variant))
    return (*fitting, *asked)


def _every_preset() -> list[Preset]:
    """All presets of all methods: every package that brings some is imported."""
    # The methods import torch; nothing that has no method to look up should wait for it.
    from plopcli.methods import METHODS

    shared = [preset for family in PRESETS.values() for preset in family]
    return [*shared, *(preset for method in METHODS for preset in _brought_by(method))]


def _brought_by(method: str) -> list[Preset]:
    """The presets that stand with ``method`` itself."""
    from plopcli.methods import METHODS

    # Its own: those of a class that it merely inherits from hold where it is built `like` that one.
    return [replace(preset, method=method) for preset in vars(METHODS[method]).get("presets", ())]


def _of_method(method: str) -> tuple[str | None, list[Preset], list[Preset]]:
    """The method that ``method`` is built on, if any; the presets of both; and what it asks of the recipe itself."""
    from plopcli.methods import METHODS

    if method not in METHODS:
        return None, [], []
    kind, like = METHODS[method], METHODS[method].like
    own = [*_attributed(_brought_by(like) if like else (), method, like), *_brought_by(method)]
    if not kind.recipe:
        return like, own, []
    asked = ", ".join(f"{key} = {toml_value(value)}" for key, value in kind.recipe.items())
    return like, own, [Preset("method", f"{asked} is part of it; {kind.source}", dict(kind.recipe), method=method)]


def _attributed(presets: Iterable[Preset], method: str, like: str | None) -> list[Preset]:
    """Those of ``presets`` that are for ``method`` or the one that it is built on, which their source then says."""
    said = f"(for {like}, which {method} is built on)"
    return [
        replace(preset, source=f"{preset.source} {said}") if preset.method not in (None, method) else preset
        for preset in presets
        if preset.method in (None, method) or preset.method == like
    ]


def _family_and_variants(name: str, own: Iterable[Preset]) -> tuple[str, list[str]]:
    """What ``--preset`` names, for a method with presets of its ``own``."""
    names = [part.strip() for part in name.split(",")]
    families, variants = {AUTOMATIC, NO_PRESET}, {preset.family for preset in own if preset.variant}
    for part in names:
        if part in PRESETS:
            (variants if PRESETS[part] and PRESETS[part][0].variant else families).add(part)
    if not {*names} <= families | variants:
        families, variants = {*families, *preset_families()}, {*variants, *preset_variants()}
    for part in names:
        if part not in families | variants:
            raise unknown_name("preset", part, (*preset_families(), AUTOMATIC, NO_PRESET, *preset_variants()))
    chosen = [part for part in names if part in families] or [AUTOMATIC]
    if len(chosen) > 1:
        raise UsageError(
            f"{' and '.join(chosen)} are two families of presets, and a run takes one.",
            f"Variants can be added to it: {', '.join(preset_variants())}.",
        )
    return chosen[0], [part for part in names if part not in families]


def _described(variant: str) -> str:
    """What a variant is for."""
    kinds = [
        f"method {preset.method}" + (f" on task {preset.task}" if preset.task else "")
        for preset in _every_preset()
        if preset.family == variant
    ]
    return f"It is for {' and '.join(dict.fromkeys(kinds))}."
