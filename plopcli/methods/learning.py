"""What methods have in common that learn new classes from the labels of the step alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from plopcli.data.batches import Batch
from plopcli.losses.classification import binary_cross_entropy, cross_entropy, focal_loss
from plopcli.methods.base import CROSS_ENTROPY
from plopcli.methods.initialisation import InitialisedMethod, InitSettings
from plopcli.models.classifiers import PLAIN, SIGMOID, ClassifierPlan
from plopcli.models.segmenter import Outputs
from plopcli.settings.sections import MethodSettings

#: The `Method.step_0_key` of methods whose step 0 is binary cross-entropy and leaves no state.
BINARY_CROSS_ENTROPY: Mapping[str, Any] = {"loss": "binary_cross_entropy"}
Classification = Literal["cross_entropy", "bce", "focal", "focal_new"]


class ClassificationSettings(MethodSettings):
    """The loss that labels are learned by."""

    classification: Classification = "cross_entropy"
    """Loss on the labels: `bce` takes a binary decision per class, `focal` weighs down pixels that are already right,
    `focal_new` does so for those of new classes alone."""
    focal_gamma: Annotated[float, Field(ge=1)] = 2.0
    """Exponent of the focal losses."""


class LearningSettings(InitSettings, ClassificationSettings):
    """The loss that labels are learned by, and what the classifier of new classes starts from."""


class Learning(InitialisedMethod):
    """A method with a classification loss on the step's labels, pseudo-labels aside."""

    first_step = "cross-entropy"
    # Where all classes are in every step, none is new.
    for_domains: ClassVar[Mapping[str, Any]] = {"init": "default", "classification": {"focal_new": "focal"}}

    settings: LearningSettings

    @classmethod
    def step_0_key(cls, settings: MethodSettings) -> Mapping[str, Any]:
        """The classification loss; at step 0 all classes are new."""
        assert isinstance(settings, ClassificationSettings)
        if settings.classification == "bce":
            return BINARY_CROSS_ENTROPY
        if settings.classification == "cross_entropy":
            return CROSS_ENTROPY
        return {"loss": "focal", "gamma": settings.focal_gamma}

    @classmethod
    def classifier(cls, settings: MethodSettings) -> ClassifierPlan:
        """Binary cross-entropy makes each class a decision of its own."""
        assert isinstance(settings, ClassificationSettings)
        return SIGMOID if settings.classification == "bce" else PLAIN

    def classify(self, batch: Batch, new: Outputs) -> Tensor:
        """The pixel mean of the classification loss."""
        settings = self.settings
        if settings.classification == "bce":
            return binary_cross_entropy(new.logits, batch.labels).mean()
        if settings.classification == "cross_entropy":
            return cross_entropy(new.logits, batch.labels).mean()
        first_new = self.context.old if settings.classification == "focal_new" else 0
        return focal_loss(new.logits, batch.labels, settings.focal_gamma, first_new).mean()
