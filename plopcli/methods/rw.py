"""RW: Riemannian walk.

Source: Chaudhry, Dokania, Ajanthan, Torr: Riemannian Walk for Incremental Learning: Understanding Forgetting and
Intransigence, ECCV 2018 (https://arxiv.org/abs/1801.10112).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
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
from plopcli.settings.sections import Count


class RwSettings(RegulariserSettings):
    """How strongly RW holds parameters, and how it follows them."""

    name: Literal["rw"] = "rw"
    """Name of the method."""
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.9
    """Share of an iteration's squared gradients in the running Fisher information."""
    score_every: Count = 10
    """Iterations between two updates of the score."""


class Rw(Regularised):
    """Cross-entropy, and a penalty weighted by Fisher information and a score of each parameter.

    Running tables: ``fisher``; ``score``, the loss that moving a parameter saved in this step per distance moved,
    measured by the Fisher information; ``before``, the parameters when it was last updated.
    """

    Settings = RwSettings
    summary = "holds parameters by Fisher information and a score of their paths (Riemannian walk)"
    source = "Chaudhry et al., ECCV 2018, https://arxiv.org/abs/1801.10112"
    later_steps = "cross-entropy + importance * sum of w (theta - theta_old)^2, w = scaled Fisher + scaled score"
    carries = ("fisher", "score")
    runs = ("fisher", "score", "before")
    parameter_copies = 6  # its running tables, the weights, and two that the penalty leaves for the backward pass

    settings: RwSettings

    def begin(self, parameters: Parameters) -> Tables:
        """The Fisher information goes on from where the previous step left it; the score starts at 0."""
        return {
            "fisher": starting_fisher(self.carried["fisher"], parameters),
            "score": {name: torch.zeros_like(parameter) for name, parameter in parameters.items()},
            "before": {name: parameter.detach().clone() for name, parameter in parameters.items()},
        }

    def update(self, values: list[Tensor], gradients: list[Tensor]) -> None:
        """Updates the score every few iterations, then the Fisher information."""
        # In call 0 nothing has moved, and the score stays 0.
        if self.calls % self.settings.score_every == 0:
            self._update_score(values, gradients)
        accumulate_fisher(self.running["fisher"], gradients, self.settings.alpha)

    def _update_score(self, values: list[Tensor], gradients: list[Tensor]) -> None:
        fisher, score, before = (list(self.running[table].values()) for table in self.runs)
        moved = torch._foreach_sub(before, values)
        saved = torch._foreach_mul(gradients, moved)
        distance = torch._foreach_mul(moved, moved)
        torch._foreach_mul_(distance, fisher)
        torch._foreach_mul_(distance, 0.5)
        torch._foreach_add_(distance, 1e-8)
        torch._foreach_div_(saved, distance)  # not addcdiv: as the original rounds
        torch._foreach_add_(score, saved)
        torch._foreach_copy_(before, values)

    def finish(self, parameters: Mapping[str, Tensor]) -> Tables:
        """The Fisher information as it is, and the mean of this step's score and that of earlier steps."""
        score = {}
        for name, own in self.running["score"].items():
            score[name] = own.relu()
            if name in self.carried["score"]:
                score[name] = 0.5 * score[name] + 0.5 * self.carried["score"][name].to(own.device)
        return {"fisher": self.running["fisher"], "score": score}
