"""LwF-MC: learning without forgetting as one binary decision per class, as iCaRL's authors compare with.

Source: Rebuffi, Kolesnikov, Sperl, Lampert: iCaRL: Incremental Classifier and Representation Learning, CVPR 2017
(https://arxiv.org/abs/1611.07725).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor

from plopcli.data.batches import Batch
from plopcli.losses.classification import binary_cross_entropy
from plopcli.losses.distillation import icarl_combined, icarl_disjoint
from plopcli.methods.base import BEGINNING, Moment
from plopcli.methods.initialisation import InitialisedMethod, InitSettings
from plopcli.methods.learning import BINARY_CROSS_ENTROPY
from plopcli.models.classifiers import SIGMOID, ClassifierPlan
from plopcli.models.segmenter import Outputs
from plopcli.settings.sections import MethodSettings, NonNegative


class LwfMcSettings(InitSettings):
    """How labels and the old model share the decisions of LwF-MC."""

    name: Literal["lwf-mc"] = "lwf-mc"
    """Name of the method."""
    targets: Literal["combined", "disjoint", "disjoint_bkg"] = "combined"
    """`combined`: all classes learn from labels, and old ones from the old model as well; `disjoint`: old classes learn
    from the old model alone, new ones from labels; `disjoint_bkg`: the same, but background learns from labels."""
    icarl_factor: NonNegative = 10.0
    """Factor of what old classes learn from the old model, where targets are combined; 0: nothing."""


class LwfMc(InitialisedMethod):
    """Binary cross-entropy, at step 0 too, and from step 1 on against the old model's decisions."""

    Settings = LwfMcSettings
    summary = "binary decisions per class, old ones distilled from the old model (iCaRL's LwF-MC)"
    source = "Rebuffi et al., CVPR 2017, https://arxiv.org/abs/1611.07725"
    first_step = "binary cross-entropy"
    later_steps = "binary cross-entropy + icarl_factor * binary cross-entropy(old classes, the old model's decisions)"
    for_domains: ClassVar[Mapping[str, Any]] = {"targets": "combined", "init": "default"}

    settings: LwfMcSettings

    @classmethod
    def classifier(cls, settings: MethodSettings) -> ClassifierPlan:
        """A binary decision per class."""
        return SIGMOID

    @classmethod
    def step_0_key(cls, settings: MethodSettings) -> Mapping[str, Any]:
        """Binary cross-entropy."""
        return BINARY_CROSS_ENTROPY

    @property
    def uses_old_model(self) -> bool:
        """For its decisions, from step 1 on."""
        return self.context.step > 0 and (self.settings.targets != "combined" or self.settings.icarl_factor > 0)

    def losses(self, batch: Batch, new: Outputs, old: Outputs | None, at: Moment = BEGINNING) -> dict[str, Tensor]:
        """``classification``; where targets are combined, ``icarl`` too from step 1 on."""
        settings = self.settings
        if self.context.step > 0 and settings.targets != "combined":
            assert old is not None
            loss = icarl_disjoint(
                new.logits, batch.labels, old.logits, keep_background=settings.targets == "disjoint_bkg"
            )
            return {"classification": loss.mean()}
        terms = {"classification": binary_cross_entropy(new.logits, batch.labels).mean()}
        if self.uses_old_model:
            assert old is not None
            terms["icarl"] = settings.icarl_factor * icarl_combined(new.logits, old.logits)
        return terms
