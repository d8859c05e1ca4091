"""PI: path integral, also known as synaptic intelligence.

Source: Zenke, Poole, Ganguli: Continual Learning Through Synaptic Intelligence, ICML 2017
(https://arxiv.org/abs/1703.04200), without its factor on how far a parameter moved but a mere guard against 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from plopcli.methods.regularised import Parameters, Regularised, RegulariserSettings, Tables
from plopcli.settings.presets import MIB_CODE, Preset


class PiSettings(RegulariserSettings):
    """How strongly PI holds parameters."""

    name: Literal["pi"] = "pi"
    """Name of the method."""


class Pi(Regularised):
    """Cross-entropy, and a penalty weighted by what moving each parameter contributed to lower losses so far.

    Running tables: ``delta``, that contribution in this step; ``before``, the parameters at the last update; and
    ``start``, those of the beginning, where the previous model does not have them.
    """

    Settings = PiSettings
    presets = (Preset("voc-mib", MIB_CODE, {"method": {"importance": 500.0}}),)
    summary = "holds parameters by what moving them has gained (path integral, synaptic intelligence)"
    source = "Zenke et al., ICML 2017, https://arxiv.org/abs/1703.04200"
    later_steps = "cross-entropy + importance * sum of w (theta - theta_old)^2, w the scaled score"
    carries = ("score",)
    runs = ("delta", "before", "start")
    parameter_copies = 6  # its running tables, the weights, and two that the penalty leaves for the backward pass

    settings: PiSettings

    def begin(self, parameters: Parameters) -> Tables:
        """No contribution yet."""
        return {
            "delta": {name: torch.zeros_like(parameter) for name, parameter in parameters.items()},
            "before": {name: parameter.detach().clone() for name, parameter in parameters.items()},
            "start": {
                name: parameter.detach().clone() for name, parameter in parameters.items() if name not in self.old
            },
        }

    def update(self, values: list[Tensor], gradients: list[Tensor]) -> None:
        """Adds ``g (theta_before - theta)`` to the contributions."""
        before = list(self.running["before"].values())
        moved = torch._foreach_sub(before, values)
        # Not addcmul, which rounds once: the score divides by squares that may be tiny.
        torch._foreach_mul_(moved, gradients)
        torch._foreach_add_(list(self.running["delta"].values()), moved)
        torch._foreach_copy_(before, values)

    def finish(self, parameters: Mapping[str, Tensor]) -> Tables:
        """Contributions per squared distance moved in this step, on top of those of earlier steps."""
        start = {**self.old, **self.running["start"]}
        score = {}
        for name, delta in self.running["delta"].items():
            distance = (parameters[name] - start[name]).square()
            score[name] = (delta / (distance + 1e-20)).relu()
            if name in self.carried["score"]:
                score[name] += self.carried["score"][name].to(delta.device)
        return {"score": score}
