"""Presets: recipes as plain data, chosen by data set, task and method.

The entries of a family apply in the order of the list, later ones over earlier ones, each where its task and method
fit. The family is the one named like the data set, or the one that ``--preset`` names; ``none`` applies nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from plopcli.errors import unknown_name

AUTOMATIC = "auto"
NO_PRESET = "none"

_PAPER = "PLOP, CVPR 2021, and its published training scripts"
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
    """

    family: str
    source: str
    values: dict[str, Any]
    task: str | None = None
    method: str | None = None

    @property
    def name(self) -> str:
        """The family, and what narrows it down: ``voc/10-1``, ``ade/plop``."""
        return "/".join(part for part in (self.family, self.task, self.method) if part is not None)


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
    """Names that ``--preset`` takes, `auto` and `none` aside."""
    return tuple(dict.fromkeys(preset.family for preset in PRESETS))


def choose_presets(name: str, *, dataset: str, task: str, method: str) -> tuple[Preset, ...]:
    """The presets of a run, in the order in which they apply.

    Args:
        name: A family, `auto` for that of the data set (if it has one), or `none`.
        dataset: Name of the data set.
        task: Name of the task.
        method: Name of the method.

    Raises:
        UsageError: There is no such family.
    """
    if name == NO_PRESET:
        return ()
    if name != AUTOMATIC and name not in preset_families():
        raise unknown_name("preset", name, (*preset_families(), AUTOMATIC, NO_PRESET))
    family = dataset if name == AUTOMATIC else name
    return tuple(
        preset
        for preset in PRESETS
        if preset.family == family and preset.task in (None, task) and preset.method in (None, method)
    )
