"""EWF on top of PLOP."""

from __future__ import annotations

from typing import Literal

from plopcli.methods.plop import Plop, PlopSettings
from plopcli.methods.weight_fusion import EWF_SOURCE, FUSED, FusionSettings, WeightFusion


class PlopEwfSettings(FusionSettings, PlopSettings):
    """PLOP's settings, and those of the fusion."""

    name: Literal["plop-ewf"] = "plop-ewf"  # type: ignore[assignment]  # a method of its own
    """Name of the method."""


class PlopEwf(WeightFusion, Plop):
    """PLOP with frozen old classifiers; after each later step, the mean of the previous and the trained weights."""

    Settings = PlopEwfSettings
    summary = "PLOP, and after each step a mean of the old and the new weights (endpoints weight fusion)"
    source = EWF_SOURCE
    later_steps = f"{Plop.later_steps}; {FUSED}"
    like = "plop"

    settings: PlopEwfSettings
