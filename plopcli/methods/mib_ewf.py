"""EWF on top of MiB."""

from __future__ import annotations

from typing import Literal

from plopcli.methods.mib import Mib, MibSettings
from plopcli.methods.weight_fusion import EWF_SOURCE, FUSED, FusionSettings, WeightFusion


class MibEwfSettings(FusionSettings, MibSettings):
    """MiB's settings, and those of the fusion."""

    name: Literal["mib-ewf"] = "mib-ewf"  # type: ignore[assignment]  # a method of its own
    """Name of the method."""


class MibEwf(WeightFusion, Mib):
    """MiB with frozen old classifiers; after each later step, the mean of the previous and the trained weights."""

    Settings = MibEwfSettings
    summary = "MiB, and after each step a mean of the old and the new weights (endpoints weight fusion)"
    source = EWF_SOURCE
    later_steps = f"{Mib.later_steps}; {FUSED}"
    like = "mib"

    settings: MibEwfSettings
