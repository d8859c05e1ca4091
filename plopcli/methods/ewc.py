"""EWC: elastic weight consolidation, in its online form.

Source: Kirkpatrick et al., Overcoming catastrophic forgetting in neural networks, PNAS 2017
(https://arxiv.org/abs/1612.00796), with the running Fisher information of Chaudhry et al., Riemannian Walk for
Incremental Learning, ECCV 2018 (EWC++).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from plopcli.methods.regularised import (
    Parameters,
    Regularised,
    RegulariserSettings,
    Tables,
    accumulate_fisher,
    starting_fisher,
)
from plopcli.settings.presets import MIB_CODE, Preset


class EwcSettings(RegulariserSettings):
    """How strongly EWC holds parameters, and how fast its Fisher information follows the gradients."""

    name: Literal["ewc"] = "ewc"
    """Name of the method."""
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.9
    """Share of an iteration's squared gradients in the running Fisher information."""


class Ewc(Regularised):
    """Cross-entropy, and a penalty weighted by the Fisher information of the previous steps."""

    Settings = EwcSettings
    presets = (Preset("voc-mib", MIB_CODE, {"method": {"importance": 500.0}}),)
    summary = "holds parameters by their Fisher information (elastic weight consolidation)"
    source = "Kirkpatrick et al., PNAS 2017, https://arxiv.org/abs/1612.00796"
    later_steps = "cross-entropy + importance * sum of w (theta - theta_old)^2, w the scaled Fisher information"
    carries = ("fisher",)
    runs = ("fisher",)
    parameter_copies = 4  # its running tables, the weights, and two that the penalty leaves for the backward pass

    settings: EwcSettings

    def begin(self, parameters: Parameters) -> Tables:
        """The Fisher information goes on from where the previous step left it."""
        return {"fisher": starting_fisher(self.carried["fisher"], parameters)}

    def update(self, values: list[Tensor], gradients: list[Tensor]) -> None:
        """Accumulates squared gradients."""
        accumulate_fisher(self.running["fisher"], gradients, self.settings.alpha)

    def finish(self, parameters: Mapping[str, Tensor]) -> Tables:
        """The Fisher information as it is."""
        return self.running
