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

from dataclasses import dataclass
from itertools import groupby
from typing import Any

from plopcli.plugins import Registry

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
