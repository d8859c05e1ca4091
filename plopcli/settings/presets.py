"""Presets: recipes as plain data, chosen by data set, task and method.

The entries of a family apply in the order of the list, later ones over earlier ones, each where its task and method
fit. The family is the one named like the data set, or the one that ``--preset`` names; ``none`` applies nothing of any
data set. A variant changes some settings of a method on top of that; it is named behind the family, or alone
(``auto,plop-exact``, ``plop-exact``). A method that is built on another takes the entries of that one as well, and what
a method itself asks of the recipe comes last, as a preset of the family ``method``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from plopcli.errors import UsageError, unknown_name

AUTOMATIC = "auto"
NO_PRESET = "none"

_PAPER = "PLOP, CVPR 2021, and its published training scripts"
_REMINDER = "REMINDER, CVPR 2022, and its published training scripts"
_EXACT = "PLOP, CVPR 2021, as its text has it: entropies from 0 to 1, true medians per class"
_NAIVE = "measured on the generated data: docs/results.md"
_MIB = "MiB, CVPR 2020: the numbers of its author's own code, where PLOP's comparison has others"


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

PRESETS: tuple[Preset, ...] = (
    Preset("voc", _PAPER, _VOC_RECIPE),
    Preset("voc", _PAPER, {"train": {"later": {"epochs": 10}}}, task="10-1"),
    Preset("voc", _PAPER, {"method": {"pod_factor": 0.01, "pod_logits_factor": 0.0005}}, method="plop"),
    Preset("voc", _REMINDER, {"method": {"similarity_factor": 0.5, "similarity_delta": 0.0}}, method="reminder"),
    Preset("plop-exact", _EXACT, {"method": {"estimator": "exact"}}, method="plop", variant=True),
    Preset("plop-naive", _NAIVE, {"method": {"pseudo": "naive"}}, method="plop", variant=True),
    Preset("voc-mib", _PAPER, _VOC_RECIPE),
    Preset("voc-mib", _MIB, {"method": {"kd_factor": 100.0}}, task="15-1", method="mib"),
    Preset("voc-mib", _MIB, {"method": {"kd_factor": 100.0}}, task="15-5s", method="mib"),
    Preset("voc-mib", _MIB, {"method": {"importance": 500.0}}, method="ewc"),
    Preset("voc-mib", _MIB, {"method": {"importance": 500.0}}, method="pi"),
    Preset(
        "ade",
        _PAPER,
        {
            "data": {"crop": 512},
            "model": {"backbone": "resnet101", "pretrained": True, "output_stride": 16},
            "train": {"batch": 24, "first": {"epochs": 60, "lr": 0.01}, "later": {"epochs": 60, "lr": 0.001}},
        },
    ),
    Preset("ade", _PAPER, {"method": {"pod_factor": 0.001, "pod_logits_factor": 0.00001}}, method="plop"),
    Preset("ade", _REMINDER, {"method": {"similarity_factor": 0.5, "similarity_delta": 1.0}}, method="reminder"),
    Preset("cityscapes-domain", _PAPER, _CITIES_RECIPE),
    Preset(
        "cityscapes-domain",
        _PAPER,
        {"method": {"pod_factor": 0.0001, "pod_logits_factor": 0.0001}},
        method="plop",
    ),
    Preset("cityscapes-domain", _PAPER, {"method": {"pod_logits_factor": 0.001}}, task="1-1", method="plop"),
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
        "toy",
        "from the same trial: the paper's factors are too strong for few iterations; docs/results.md",
        {"method": {"pod_factor": 0.0003, "pod_logits_factor": 0.00001}},
        method="plop",
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
        "photos-small",
        "chosen on a fifth of the training images; few images make the published thresholds erratic; docs/results.md",
        {"method": {"pod_factor": 0.0001, "pod_logits_factor": 0.00005, "estimator": "exact"}},
        method="plop",
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


def preset_families() -> tuple[str, ...]:
    """Names of families that ``--preset`` takes, `auto` and `none` aside."""
    return tuple(dict.fromkeys(preset.family for preset in PRESETS if not preset.variant))


def preset_variants() -> tuple[str, ...]:
    """Names of variants that ``--preset`` takes, alone or behind a family."""
    return tuple(dict.fromkeys(preset.family for preset in PRESETS if preset.variant))


def presets_of(method: str) -> tuple[Preset, ...]:
    """Every preset that a run of ``method`` can take, whatever its data set and task."""
    like, own = _built_on(method)
    return (*_attributed(PRESETS, method, like), *own)


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
    like, own = _built_on(method)
    name, variants = _family_and_variants(name)
    family = {NO_PRESET: None, AUTOMATIC: dataset}.get(name, name)
    fitting = [
        preset
        for wanted in (family, *variants)
        for preset in _attributed(PRESETS, method, like)
        if preset.family == wanted and preset.task in (None, task)
    ]
    for variant in variants:
        if all(preset.family != variant for preset in fitting):
            raise UsageError(f"Preset {variant} is not for method {method} on {dataset} {task}.", _described(variant))
    return (*fitting, *own)


def _built_on(method: str) -> tuple[str | None, tuple[Preset, ...]]:
    """The method that ``method`` is built on, if any, and what it asks of the recipe itself."""
    # The methods import torch; nothing that has no method to look up should wait for it.
    from plopcli.methods import METHODS

    kind = METHODS.get(method)
    if kind is None:
        return None, ()
    if not kind.recipe:
        return kind.like, ()
    asked = ", ".join(f"{key} = {value:g}" for key, value in kind.recipe.items())
    return kind.like, (Preset("method", f"{asked} is part of it; {kind.source}", dict(kind.recipe), method=method),)


def _attributed(presets: Iterable[Preset], method: str, like: str | None) -> list[Preset]:
    """Those of ``presets`` that are for ``method`` or the one that it is built on, which their source then says."""
    said = f"(for {like}, which {method} is built on)"
    return [
        replace(preset, source=f"{preset.source} {said}") if preset.method not in (None, method) else preset
        for preset in presets
        if preset.method in (None, method) or preset.method == like
    ]


def _family_and_variants(name: str) -> tuple[str, list[str]]:
    """What ``--preset`` names."""
    families = (*preset_families(), AUTOMATIC, NO_PRESET)
    names = [part.strip() for part in name.split(",")]
    for part in names:
        if part not in (*families, *preset_variants()):
            raise unknown_name("preset", part, (*families, *preset_variants()))
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
        for preset in PRESETS
        if preset.family == variant
    ]
    return f"It is for {' and '.join(dict.fromkeys(kinds))}."
