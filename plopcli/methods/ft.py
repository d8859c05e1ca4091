"""Fine-tuning: the lower bound, which learns the new classes and forgets the rest."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from plopcli.data.batches import Batch
from plopcli.methods.base import BEGINNING, Moment
from plopcli.methods.learning import Learning, LearningSettings
from plopcli.models.segmenter import Outputs
from plopcli.settings.sections import MethodSettings


class FineTuningSettings(LearningSettings):
    """How fine-tuning learns."""

    name: Literal["ft"] = "ft"
    """Name of the method."""


class FineTuning(Learning):
    """Cross-entropy on the labels of the step, or another classification loss."""

    Settings: ClassVar[type[MethodSettings]] = FineTuningSettings
    summary = "fine-tuning: cross-entropy on the new labels alone; the lower bound"
    source = "-"
    later_steps = "cross-entropy"

    def losses(self, batch: Batch, new: Outputs, old: Outputs | None, at: Moment = BEGINNING) -> dict[str, Tensor]:
        """``classification`` alone."""
        return {"classification": self.classify(batch, new)}
