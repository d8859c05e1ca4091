"""Fine-tuning: the lower bound, which learns the new classes and forgets the rest."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from plopcli.losses.classification import cross_entropy
from plopcli.methods.base import Batch, Method
from plopcli.models.segmenter import Outputs
from plopcli.settings.sections import MethodSettings


class FineTuningSettings(MethodSettings):
    """Fine-tuning has nothing to set."""

    name: Literal["ft"] = "ft"
    """Name of the method."""


class FineTuning(Method):
    """Cross-entropy on the labels of the step."""

    Settings: ClassVar[type[MethodSettings]] = FineTuningSettings
    summary = "fine-tuning: cross-entropy on the new labels alone; the lower bound"
    source = "-"

    def losses(self, batch: Batch, new: Outputs, old: Outputs | None) -> dict[str, Tensor]:
        """The pixel mean of the cross-entropy."""
        return {"classification": cross_entropy(new.logits, batch.labels).mean()}
