"""LwF: learning without forgetting.

Source: Li, Hoiem: Learning without Forgetting, ECCV 2016 (https://arxiv.org/abs/1606.09282).
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from plopcli.losses.classification import cross_entropy
from plopcli.losses.distillation import distillation
from plopcli.methods.base import Batch, Method
from plopcli.models.segmenter import Outputs
from plopcli.settings.sections import MethodSettings, NonNegative, Positive


class LwfSettings(MethodSettings):
    """How strongly LwF distils."""

    name: Literal["lwf"] = "lwf"
    """Name of the method."""
    kd_factor: NonNegative = 100.0
    """Factor of the distillation; 0: none."""
    kd_alpha: Positive = 1.0
    """Factor on the old model's logits in the distillation (an inverse temperature)."""


class Lwf(Method):
    """Cross-entropy, and from step 1 on distillation of the old classes' probabilities."""

    Settings = LwfSettings
    summary = "distils the old model's probabilities of old classes (learning without forgetting)"
    source = "Li, Hoiem, ECCV 2016, https://arxiv.org/abs/1606.09282"

    settings: LwfSettings

    @property
    def uses_old_model(self) -> bool:
        """For the distillation, from step 1 on."""
        return self.context.step > 0 and self.settings.kd_factor > 0

    def losses(self, batch: Batch, new: Outputs, old: Outputs | None) -> dict[str, Tensor]:
        """``classification``, and ``logit_distillation`` from step 1 on."""
        terms = {"classification": cross_entropy(new.logits, batch.labels).mean()}
        if self.uses_old_model:
            assert old is not None
            kept = distillation(new.logits, old.logits, self.settings.kd_alpha)
            terms["logit_distillation"] = self.settings.kd_factor * kept.mean()
        return terms
