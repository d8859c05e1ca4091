"""ILT: distillation of probabilities and of the encoder's features.

Source: Michieli, Zanuttigh: Incremental Learning Techniques for Semantic Segmentation, ICCV Workshops 2019
(https://arxiv.org/abs/1907.13372).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor

from plopcli.data.batches import Batch
from plopcli.losses.distillation import distillation, feature_distance
from plopcli.methods.base import BEGINNING, Moment
from plopcli.methods.distilling import DistillationSettings, distil, distillation_factor
from plopcli.methods.learning import Learning, LearningSettings
from plopcli.models.segmenter import Outputs
from plopcli.settings.sections import NonNegative


class IltSettings(LearningSettings, DistillationSettings):
    """How ILT learns and distils."""

    name: Literal["ilt"] = "ilt"
    """Name of the method."""
    encoder_factor: NonNegative = 100.0
    """Factor of the mean squared difference of the encoders' outputs; 0: none."""


class Ilt(Learning):
    """Cross-entropy, and from step 1 on distillation of probabilities and of the encoder's output."""

    Settings = IltSettings
    summary = "distils the old model's probabilities of old classes and its encoder's output"
    source = "Michieli, Zanuttigh, ICCVW 2019, https://arxiv.org/abs/1907.13372"
    later_steps = "cross-entropy + kd_factor * KD(old classes) + encoder_factor * mean of (new - old encoder output)^2"
    for_domains: ClassVar[Mapping[str, Any]] = {**Learning.for_domains, "kd_pixels": "all"}

    settings: IltSettings

    @property
    def uses_old_model(self) -> bool:
        """For either distillation, from step 1 on."""
        return self.context.step > 0 and (self.settings.kd_factor > 0 or self.settings.encoder_factor > 0)

    @property
    def uses_features(self) -> bool:
        """For the encoder's output, which comes with them, from step 1 on."""
        return self.context.step > 0 and self.settings.encoder_factor > 0

    def losses(self, batch: Batch, new: Outputs, old: Outputs | None, at: Moment = BEGINNING) -> dict[str, Tensor]:
        """``classification``, and ``logit_distillation`` and ``encoder_distillation`` from step 1 on."""
        settings = self.settings
        terms = {"classification": self.classify(batch, new)}
        if not self.uses_old_model:
            return terms
        assert old is not None
        if settings.kd_factor > 0:
            loss = distil(settings, self.context, batch.labels, (new.logits, old.logits), distillation)
            terms["logit_distillation"] = distillation_factor(settings, self.context) * loss.mean()
        if settings.encoder_factor > 0:
            assert new.encoder is not None
            assert old.encoder is not None
            terms["encoder_distillation"] = settings.encoder_factor * feature_distance(new.encoder, old.encoder)
        return terms
