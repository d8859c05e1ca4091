"""ILT: distillation of probabilities and of the encoder's features.

Source: Michieli, Zanuttigh: Incremental Learning Techniques for Semantic Segmentation, ICCV Workshops 2019
(https://arxiv.org/abs/1907.13372).
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from plopcli.losses.classification import cross_entropy
from plopcli.losses.distillation import distillation, feature_distance
from plopcli.methods.base import Batch, Method
from plopcli.models.segmenter import Outputs
from plopcli.settings.sections import MethodSettings, NonNegative, Positive


class IltSettings(MethodSettings):
    """How strongly ILT distils."""

    name: Literal["ilt"] = "ilt"
    """Name of the method."""
    kd_factor: NonNegative = 100.0
    """Factor of the distillation of probabilities; 0: none."""
    kd_alpha: Positive = 1.0
    """Factor on the old model's logits in that distillation (an inverse temperature)."""
    encoder_factor: NonNegative = 100.0
    """Factor of the mean squared difference of the encoders' outputs; 0: none."""


class Ilt(Method):
    """Cross-entropy, and from step 1 on distillation of probabilities and of the encoder's output."""

    Settings = IltSettings
    summary = "distils the old model's probabilities of old classes and its encoder's output"
    source = "Michieli, Zanuttigh, ICCVW 2019, https://arxiv.org/abs/1907.13372"

    settings: IltSettings

    @property
    def uses_old_model(self) -> bool:
        """For either distillation, from step 1 on."""
        return self.context.step > 0 and (self.settings.kd_factor > 0 or self.settings.encoder_factor > 0)

    @property
    def uses_features(self) -> bool:
        """For the encoder's output, which comes with them, from step 1 on."""
        return self.context.step > 0 and self.settings.encoder_factor > 0

    def losses(self, batch: Batch, new: Outputs, old: Outputs | None) -> dict[str, Tensor]:
        """``classification``, and ``logit_distillation`` and ``encoder_distillation`` from step 1 on."""
        settings = self.settings
        terms = {"classification": cross_entropy(new.logits, batch.labels).mean()}
        if not self.uses_old_model:
            return terms
        assert old is not None
        if settings.kd_factor > 0:
            kept = distillation(new.logits, old.logits, settings.kd_alpha)
            terms["logit_distillation"] = settings.kd_factor * kept.mean()
        if settings.encoder_factor > 0:
            assert new.encoder is not None
            assert old.encoder is not None
            terms["encoder_distillation"] = settings.encoder_factor * feature_distance(new.encoder, old.encoder)
        return terms
