"""LwF: learning without forgetting.

Source: Li, Hoiem: Learning without Forgetting, ECCV 2016 (https://arxiv.org/abs/1606.09282).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor

from plopcli.data.batches import Batch
from plopcli.losses.distillation import distillation
from plopcli.methods.base import BEGINNING, Moment
from plopcli.methods.distilling import DistillationSettings, distil, distillation_factor
from plopcli.methods.learning import Learning, LearningSettings
from plopcli.models.segmenter import Outputs


class LwfSettings(LearningSettings, DistillationSettings):
    """How LwF learns and distils."""

    name: Literal["lwf"] = "lwf"
    """Name of the method."""


class Lwf(Learning):
    """Cross-entropy, and from step 1 on distillation of the old classes' probabilities."""

    Settings = LwfSettings
    summary = "distils the old model's probabilities of old classes (learning without forgetting)"
    source = "Li, Hoiem, ECCV 2016, https://arxiv.org/abs/1606.09282"
    later_steps = "cross-entropy + kd_factor * KD(old classes)"
    for_domains: ClassVar[Mapping[str, Any]] = {**Learning.for_domains, "kd_pixels": "all"}

    settings: LwfSettings

    @property
    def uses_old_model(self) -> bool:
        """For the distillation, from step 1 on."""
        return self.context.step > 0 and self.settings.kd_factor > 0

    def losses(self, batch: Batch, new: Outputs, old: Outputs | None, at: Moment = BEGINNING) -> dict[str, Tensor]:
        """``classification``, and ``logit_distillation`` from step 1 on."""
        terms = {"classification": self.classify(batch, new)}
        if self.uses_old_model:
            assert old is not None
            loss = distil(self.settings, self.context, batch.labels, (new.logits, old.logits), distillation)
            terms["logit_distillation"] = distillation_factor(self.settings, self.context) * loss.mean()
        return terms
