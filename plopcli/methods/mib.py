"""MiB: a cross-entropy and a distillation that model what the background hides.

Source: Cermelli, Mancini, Rota Bulò, Ricci, Caputo: Modeling the Background for Incremental Learning in Semantic
Segmentation, CVPR 2020 (https://arxiv.org/abs/2002.00718).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor

from plopcli.data.batches import Batch
from plopcli.losses.classification import cross_entropy
from plopcli.losses.distillation import distillation
from plopcli.losses.unbiased import unbiased_cross_entropy, unbiased_distillation
from plopcli.methods.base import BEGINNING, CROSS_ENTROPY, Moment
from plopcli.methods.distilling import DistillationSettings, distil, distillation_factor
from plopcli.methods.initialisation import Init, InitialisedMethod, InitSettings
from plopcli.models.segmenter import Outputs
from plopcli.settings.presets import MIB_CODE, Preset
from plopcli.settings.sections import MethodSettings, NonNegative


class MibSettings(InitSettings, DistillationSettings):
    """The parts of MiB, each of which can be replaced by its plain counterpart."""

    name: Literal["mib"] = "mib"
    """Name of the method."""
    cross_entropy: Literal["unbiased", "plain"] = "unbiased"
    """`unbiased` sums the probabilities of background and old classes where the label is background."""
    distillation: Literal["unbiased", "plain"] = "unbiased"
    """`unbiased` sums the probabilities of background and new classes where the old model says background."""
    kd_factor: NonNegative = 10.0
    """Factor of the distillation; 0: none."""
    init: Init = "balanced"
    """Start new classes from the background's classifier, or at random."""


class Mib(InitialisedMethod):
    """Unbiased cross-entropy and unbiased distillation; at step 0 plain cross-entropy."""

    Settings = MibSettings
    summary = "cross-entropy and distillation that know what the background hides"
    source = "Cermelli et al., CVPR 2020, https://arxiv.org/abs/2002.00718"
    later_steps = "unbiased cross-entropy + kd_factor * unbiased KD(old classes)"
    for_domains: ClassVar[Mapping[str, Any]] = {
        "cross_entropy": "plain",
        "distillation": "plain",
        "init": "default",
        "kd_pixels": "all",
    }
    first_step = "cross-entropy"
    presets: ClassVar[tuple[Preset, ...]] = (
        Preset("voc-mib", MIB_CODE, {"method": {"kd_factor": 100.0}}, task="15-1"),
        Preset("voc-mib", MIB_CODE, {"method": {"kd_factor": 100.0}}, task="15-5s"),
    )

    settings: MibSettings

    @classmethod
    def step_0_key(cls, settings: MethodSettings) -> Mapping[str, Any]:
        """Cross-entropy."""
        return CROSS_ENTROPY

    @property
    def uses_old_model(self) -> bool:
        """For the distillation, from step 1 on."""
        return self.context.step > 0 and self.settings.kd_factor > 0

    def losses(self, batch: Batch, new: Outputs, old: Outputs | None, at: Moment = BEGINNING) -> dict[str, Tensor]:
        """``classification``, and ``logit_distillation`` from step 1 on."""
        settings = self.settings
        if self.context.step == 0:
            return {"classification": cross_entropy(new.logits, batch.labels).mean()}
        if settings.cross_entropy == "unbiased":
            classification = unbiased_cross_entropy(new.logits, batch.labels, self.context.old)
        else:
            classification = cross_entropy(new.logits, batch.labels)
        terms = {"classification": classification.mean()}
        if self.uses_old_model:
            assert old is not None
            pixel_loss = unbiased_distillation if settings.distillation == "unbiased" else distillation
            loss = distil(settings, self.context, batch.labels, (new.logits, old.logits), pixel_loss)
            # Weighed before the mean, unlike in LwF: so the original does, and it rounds otherwise.
            terms["logit_distillation"] = (distillation_factor(settings, self.context) * loss).mean()
        return terms
