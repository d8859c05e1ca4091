"""EWF on top of PLOP: a preset of it with a name of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from plopcli.methods.plop import Plop, PlopSettings
from plopcli.methods.weight_fusion import EWF_SOURCE, FUSED
from plopcli.settings.sections import Fusion


class PlopEwfSettings(PlopSettings):
    """PLOP's settings, with weights fused."""

    name: Literal["plop-ewf"] = "plop-ewf"  # type: ignore[assignment]  # a method of its own
    """Name of the method."""
    fusion: Fusion = "auto"
    """Share of the trained weights in their mean with the previous model's; auto: sqrt(new classes / all classes),
    which is 1, all of it, where steps bring domains."""


class PlopEwf(Plop):
    """PLOP with frozen old classifiers; after each later step, the mean of the previous and the trained weights."""

    Settings = PlopEwfSettings
    summary = "PLOP, and after each step a mean of the old and the new weights (endpoints weight fusion)"
    source = EWF_SOURCE
    later_steps = f"{Plop.later_steps}; {FUSED}"
    like = "plop"
    recipe: ClassVar[Mapping[str, float]] = {"train.later.lr_old": 0.0}

    settings: PlopEwfSettings
