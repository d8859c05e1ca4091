"""PLOP: local POD distillation and entropy pseudo-labels.

Source: Douillard, Chen, Dapogny, Cord: PLOP: Learning without Forgetting for Continual Semantic Segmentation,
CVPR 2021 (https://arxiv.org/abs/2011.11390).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from plopcli.errors import DataError
from plopcli.losses.classification import cross_entropy
from plopcli.losses.pod import match_logits, pod_terms
from plopcli.losses.pseudo_labels import (
    BINS,
    Estimator,
    accepted_shares,
    adaptive_factor,
    class_thresholds,
    entropy_histogram,
    pseudo_label,
)
from plopcli.methods.base import Batch, Method, StepContext, StepPass
from plopcli.methods.initialisation import balance_new_classifier
from plopcli.models.segmenter import Outputs, Segmenter
from plopcli.settings.sections import Count, MethodSettings, NonNegative


class PlopSettings(MethodSettings):
    """The parts of PLOP, each of which can be varied or switched off."""

    name: Literal["plop"] = "plop"
    """Name of the method."""
    pod_factor: NonNegative = 0.01
    """Factor of local POD on the five feature maps; 0: none."""
    pod_logits: Literal["sum", "trim", "off"] = "sum"
    """POD on the logits too: `sum` adds the new classes' logits to the background's, `trim` drops them."""
    pod_logits_factor: NonNegative = 0.0005
    """Factor of local POD on the logits."""
    pod_scales: Annotated[tuple[Count, ...], Field(min_length=1)] = (1, 2, 4)
    """POD pools windows of 1/scale of the map's sides, at each of these scales."""
    pod_schedule: bool = True
    """Weigh POD by sqrt(all classes / new classes)."""
    pseudo: Literal["entropy", "off"] = "entropy"
    """Label background pixels with the old model's prediction where its entropy is below the class's threshold."""
    estimator: Estimator = "reference"
    """`reference` computes entropies and thresholds as the published code does, `exact` as the paper says."""
    threshold_floor: Annotated[float, Field(ge=0, le=1)] = 0.001
    """Least entropy threshold of a class."""
    adaptive_factor: bool = True
    """Weigh each image's cross-entropy by the share of its background pixels that got a pseudo-label."""
    adaptive_without_background: Literal["zero", "one"] = "zero"
    """That weight for images without background pixels; the published code has zero: they teach nothing."""
    init: Literal["balanced", "default"] = "balanced"
    """Start new classes from the background's classifier, or at random."""


class Plop(Method):
    """Cross-entropy on pseudo-labelled images, with local POD between the new and the old model.

    At step 0 it is plain cross-entropy. In later steps `diagnostics` holds, for the last micro-batch: ``accepted``, the
    share of background pixels that got a pseudo-label; ``adaptive_factor``, its mean over the images (where it is
    used); and ``pod_1`` .. ``pod_5``, ``pod_logits``, the layers' shares of the POD term.
    """

    Settings = PlopSettings
    summary = "local POD on features and logits, entropy pseudo-labels for old classes in the background"
    source = "Douillard et al., CVPR 2021, https://arxiv.org/abs/2011.11390"
    for_domains: ClassVar[Mapping[str, Any]] = {"pseudo": "off", "init": "default"}

    settings: PlopSettings

    def __init__(self, settings: PlopSettings, context: StepContext) -> None:
        super().__init__(settings, context)
        #: Of the C classes: thresholds, background pixels in which each was predicted, share of them below it.
        self.thresholds: Tensor | None = None
        self._pixels: Tensor | None = None
        self._accepted: Tensor | None = None

    @property
    def _pseudo_labels(self) -> bool:
        return self.context.step > 0 and self.settings.pseudo == "entropy"

    @property
    def uses_features(self) -> bool:
        """Where a POD factor is not 0, from step 1 on."""
        on_logits = self.settings.pod_logits != "off" and self.settings.pod_logits_factor > 0
        return self.context.step > 0 and (self.settings.pod_factor > 0 or on_logits)

    @property
    def uses_old_model(self) -> bool:
        """For POD and pseudo-labels, from step 1 on."""
        return self.uses_features or self._pseudo_labels

    def initialise(self, model: Segmenter, old_model: Segmenter | None) -> None:
        """Starts the new classes from the background, if so set."""
        if self.context.step > 0 and self.settings.init == "balanced":
            balance_new_classifier(model.classifiers)

    def before_step(self, step_pass: StepPass) -> None:
        """Estimates the entropy thresholds from one pass over the step's images."""
        if not self._pseudo_labels:
            return
        estimator, total = self.settings.estimator, self.context.total
        histogram = torch.zeros(total, BINS[estimator], dtype=torch.int64)
        for batch in step_pass.batches():
            old_logits = step_pass.old_outputs(batch.images).logits
            histogram = histogram.to(old_logits.device)
            histogram += entropy_histogram(old_logits, batch.labels, estimator, total)
        histogram = step_pass.reduce(histogram)
        self.thresholds = class_thresholds(histogram, estimator, self.settings.threshold_floor)
        self._pixels = histogram.sum(1)
        self._accepted = accepted_shares(histogram, self.thresholds)

    def losses(self, batch: Batch, new: Outputs, old: Outputs | None) -> dict[str, Tensor]:
        """``classification``, and ``pod`` from step 1 on."""
        terms = {"classification": self._classification(batch, new, old)}
        if self.uses_features:
            assert old is not None
            terms["pod"] = self._pod(new, old)
        return terms

    def _classification(self, batch: Batch, new: Outputs, old: Outputs | None) -> Tensor:
        if not self._pseudo_labels:
            return cross_entropy(new.logits, batch.labels).mean()
        assert old is not None
        assert self.thresholds is not None, "before_step has not run"
        self.thresholds = self.thresholds.to(batch.labels.device)
        pseudo = pseudo_label(old.logits, batch.labels, self.thresholds, self.settings.estimator)
        self.diagnostics["accepted"] = pseudo.accepted.sum() / (pseudo.background.sum() + 1e-6)
        loss = cross_entropy(new.logits, pseudo.labels)
        if not self.settings.adaptive_factor:
            return loss.mean()
        factor = adaptive_factor(pseudo, self.settings.adaptive_without_background)
        self.diagnostics["adaptive_factor"] = factor.mean()
        return (loss * factor[:, None, None]).mean()

    def _pod(self, new: Outputs, old: Outputs) -> Tensor:
        settings = self.settings
        names = [f"pod_{i}" for i in range(1, len(new.features) + 1)]
        factors = [settings.pod_factor] * len(names)
        new_maps, old_maps = list(new.features), list(old.features)
        if settings.pod_logits != "off":
            names.append("pod_logits")
            factors.append(settings.pod_logits_factor)
            new_maps.append(match_logits(new.small, self.context.old, settings.pod_logits))
            old_maps.append(old.small)
        if settings.pod_schedule:
            schedule = math.sqrt(self.context.total / self.context.new)
            factors = [schedule * factor for factor in factors]
        terms = pod_terms(new_maps, old_maps, factors, settings.pod_scales)
        self.diagnostics.update(zip(names, terms.detach(), strict=True))
        return terms.sum()

    def state_dict(self) -> dict[str, Any]:
        """The thresholds, and what `report` says about them."""
        if self.thresholds is None:
            return {}
        assert self._pixels is not None
        assert self._accepted is not None
        return {"thresholds": self.thresholds.cpu(), "pixels": self._pixels.cpu(), "accepted": self._accepted.cpu()}

    def load_state_dict(self, state: Mapping[str, Any], *, same_step: bool) -> None:
        """Takes up the thresholds in the same step; a new step estimates its own.

        Raises:
            DataError: The state has no thresholds for this step's classes.
        """
        if not (same_step and self._pseudo_labels):
            return
        thresholds = state.get("thresholds")
        if not isinstance(thresholds, Tensor) or thresholds.shape != (self.context.total,):
            raise DataError(
                f"The checkpoint of step {self.context.step} has no entropy thresholds for its "
                f"{self.context.total} classes.",
                "Resume with the settings that the run was started with, or start the step anew.",
            )
        self.thresholds, self._pixels, self._accepted = thresholds, state["pixels"], state["accepted"]

    def report(self) -> dict[str, Any]:
        """Per class: threshold, background pixels in which it was predicted, share of those below the threshold.

        Reference thresholds that are not finite are given as "inf" or "nan", which JSON has no numbers for.
        """
        if self.thresholds is None:
            return {}
        assert self._pixels is not None
        assert self._accepted is not None
        return {
            "estimator": self.settings.estimator,
            "thresholds": [value if math.isfinite(value) else str(value) for value in self.thresholds.tolist()],
            "pixels": self._pixels.tolist(),
            "accepted": [None if math.isnan(share) else share for share in self._accepted.tolist()],
        }
