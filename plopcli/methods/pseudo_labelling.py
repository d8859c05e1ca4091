"""Pseudo-labels of a step, as the methods that use them share them: settings, thresholds, and what the log says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor

from plopcli.data.batches import Batch
from plopcli.errors import DataError
from plopcli.losses.pseudo_labels import (
    BINS,
    PROBABILITY_BINS,
    PseudoLabels,
    confidence_label,
    entropy_histogram,
    naive_label,
    probability_histogram,
    probable_label,
    pseudo_label,
)
from plopcli.losses.thresholds import Estimator, class_thresholds, shares_below
from plopcli.methods.base import StepContext, StepData
from plopcli.settings.sections import MethodSettings

Share = Annotated[float, Field(ge=0, le=1)]

#: The rules that estimate a threshold per class.
_ESTIMATED = ("entropy", "median")
#: Settings that other rules refuse, since they would do nothing.
_BELONGS_TO: dict[str, tuple[str, ...]] = {
    "pseudo_threshold": ("threshold",),
    "pseudo_bins": _ESTIMATED,
    "pseudo_rejected": (*_ESTIMATED, "threshold"),
    "threshold_floor": ("entropy",),
    "threshold_cap": ("median",),
    "threshold_step": _ESTIMATED,
    "adaptive_min_factor": ("entropy",),
    "adaptive_without_background": ("entropy",),
}
#: Settings that other rules do not use either, but take, since presets and defaults set them; `report` names them.
_UNUSED_BY: dict[str, tuple[str, ...]] = {
    "estimator": ("threshold", "naive", "confidence"),
    "adaptive_factor": ("median", "threshold", "naive", "confidence"),
}
#: Fewer bins than these would not be exact.
_EXACT_BINS = 1_000


class PseudoLabelSettings(MethodSettings):
    """Which of the old model's predictions label the background, and what they weigh.

    A rule refuses settings that it has no use for, if they are not at their defaults. It takes ``estimator`` and
    ``adaptive_factor``, which presets and defaults set, and names them in its report. With ``pseudo`` off nothing here
    has an effect but ``learn_background``.
    """

    pseudo: Literal["entropy", "median", "threshold", "naive", "confidence", "off"] = "entropy"
    """Label background pixels with the old model's prediction: `entropy`: where its entropy is below the class's
    threshold (the paper); `median`: where its probability reaches the class's threshold; `threshold`: where it reaches
    pseudo_threshold; `naive`: everywhere; `confidence`: everywhere, with the probability as the loss's weight."""
    estimator: Estimator = "reference"
    """`reference` computes entropies and thresholds as the published code does, `exact` as the paper says (with the
    rule median: true medians). The rules threshold, naive and confidence estimate nothing."""
    pseudo_threshold: Share | None = None
    """The least probability that the rule `threshold` accepts; it has no default."""
    pseudo_bins: Annotated[int, Field(ge=2)] | None = None
    """Bins of the histograms that thresholds are read from; none: 100 of entropies, 20 of probabilities (median), 10000
    with the estimator exact, which needs at least 1000."""
    threshold_floor: Share = 0.001
    """Least entropy threshold of a class."""
    threshold_cap: Share = 0.9
    """Greatest probability threshold of a class, with the rule median."""
    threshold_step: Annotated[float, Field(ge=-1, le=1)] = 0.0
    """Added to threshold_floor or threshold_cap for every step since step 0."""
    pseudo_rejected: Literal["ignored", "unbiased"] = "ignored"
    """Background pixels whose prediction is not accepted: `ignored`, or `unbiased`: any old class may be right (MiB's
    unbiased cross-entropy)."""
    adaptive_factor: bool = True
    """Weigh each image's cross-entropy by the share of its background pixels that got a pseudo-label. Part of the rule
    entropy: the other rules go without it, whatever is set here."""
    adaptive_min_factor: Share = 0.0
    """Least such weight."""
    adaptive_without_background: Literal["zero", "one"] = "zero"
    """That weight for images without background pixels; the published code has zero: they teach nothing."""
    learn_background: bool = True
    """From step 1 on: whether pixels whose label, or pseudo-label, is background have a cross-entropy."""

    @model_validator(mode="after")
    def _settings_belong_to_the_rule(self) -> PseudoLabelSettings:
        if not self.learn_background and self.pseudo_rejected == "unbiased" and self.pseudo != "off":
            raise ValueError("method.pseudo_rejected = unbiased teaches background: it needs learn_background = true")
        if self.pseudo == "off":
            return self
        for key, rules in _BELONGS_TO.items():
            if self.pseudo not in rules and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(
                    f"method.{key} belongs to method.pseudo = {' or '.join(rules)}, and method.pseudo is {self.pseudo}"
                )
        if self.pseudo == "threshold" and self.pseudo_threshold is None:
            raise ValueError(
                "method.pseudo = threshold needs method.pseudo_threshold, the least probability that it accepts (0.5)"
            )
        if self.estimator == "exact" and self.pseudo_bins is not None and self.pseudo_bins < _EXACT_BINS:
            raise ValueError(
                f"method.pseudo_bins is {self.pseudo_bins}, and method.estimator = exact needs at least {_EXACT_BINS}"
            )
        if self.adaptive_min_factor and not self.adaptive_factor:
            raise ValueError("method.adaptive_min_factor needs method.adaptive_factor = true")
        return self


class Thresholds(NamedTuple):
    """What a pass over the step's images has found, for each of its C classes.

    Attributes:
        values: Thresholds (C,).
        pixels: Background pixels in which each class was predicted, (C,).
        accepted: Share of those that the rule accepts, (C,); nan where there is none.
    """

    values: Tensor
    pixels: Tensor
    accepted: Tensor


class PseudoLabeller:
    """Labels the background of a step's images by one of the rules.

    Args:
        settings: The rule, which is not off, and its settings.
        context: Where the scenario stands, at step 1 or later.
    """

    def __init__(self, settings: PseudoLabelSettings, context: StepContext) -> None:
        assert settings.pseudo != "off"
        assert context.step > 0
        self.settings = settings
        self.context = context
        #: Of a rule that estimates them, once it has.
        self.thresholds: Thresholds | None = None

    @property
    def estimates(self) -> bool:
        """Whether the rule needs a pass over the images before the step."""
        return self.settings.pseudo in _ESTIMATED

    @property
    def adapts(self) -> bool:
        """Whether images are weighed by their share of accepted pixels."""
        return self.settings.adaptive_factor and self.settings.pseudo == "entropy"

    def prepare(self, data: StepData) -> None:
        """Estimates the thresholds, if the rule has any, from one pass over the step's images in all processes."""
        if not self.estimates:
            return
        settings, total = self.settings, self.context.total
        by_entropy = settings.pseudo == "entropy"
        bins = settings.pseudo_bins or (BINS if by_entropy else PROBABILITY_BINS)[settings.estimator]
        histogram = torch.zeros(total, bins, dtype=torch.int64)
        for batch in data.batches():
            old_logits = data.old_outputs(batch.images).logits
            histogram = histogram.to(old_logits.device)
            if by_entropy:
                histogram += entropy_histogram(old_logits, batch.labels, settings.estimator, total, bins)
            else:
                histogram += probability_histogram(old_logits, batch.labels, total, bins)
        histogram = data.reduce(histogram)
        raised = self.context.step * settings.threshold_step
        if by_entropy:
            values = class_thresholds(histogram, settings.estimator, floor=settings.threshold_floor + raised)
            accepted = shares_below(histogram, values)
        else:
            values = class_thresholds(histogram, settings.estimator, cap=settings.threshold_cap + raised)
            accepted = 1 - shares_below(histogram, values)
        self.thresholds = Thresholds(values, histogram.sum(1), accepted)

    def label(self, batch: Batch, old_logits: Tensor) -> PseudoLabels:
        """Pseudo-labels of a batch from the previous model's logits (B, C_old, H, W)."""
        settings, labels = self.settings, batch.labels
        match settings.pseudo:
            case "naive":
                return naive_label(old_logits, labels)
            case "confidence":
                return confidence_label(old_logits, labels)
            case "threshold":
                assert settings.pseudo_threshold is not None
                return probable_label(old_logits, labels, settings.pseudo_threshold)
        assert self.thresholds is not None, "before_step has not run"
        values = self.thresholds.values.to(labels.device)
        self.thresholds = self.thresholds._replace(values=values)
        if settings.pseudo == "median":
            return probable_label(old_logits, labels, values)
        return pseudo_label(old_logits, labels, values, settings.estimator)

    def state_dict(self) -> dict[str, Any]:
        """The thresholds, and what `report` says about them."""
        if self.thresholds is None:
            return {}
        values, pixels, accepted = self.thresholds
        return {"thresholds": values.cpu(), "pixels": pixels.cpu(), "accepted": accepted.cpu()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up the thresholds of the same step.

        Raises:
            DataError: The state has no thresholds for this step's classes.
        """
        if not self.estimates:
            return
        values = state.get("thresholds")
        if not isinstance(values, Tensor) or values.shape != (self.context.total,):
            raise DataError(
                f"The checkpoint of step {self.context.step} has no thresholds of pseudo-labels for its "
                f"{self.context.total} classes.",
                "Resume with the settings that the run was started with, or start the step anew.",
            )
        # How many pixels they were estimated from was not said by early versions.
        unknown = torch.full_like(values, torch.nan)
        self.thresholds = Thresholds(
            values, state.get("pixels", torch.zeros_like(values)), state.get("accepted", unknown)
        )

    def report(self) -> dict[str, Any]:
        """The rule, settings that have no effect with it, and per class: threshold, background pixels in which it was
        predicted, share of those that are accepted.

        Thresholds that are not finite are given as "inf" or "nan", which JSON has no numbers for.
        """
        settings = self.settings
        report: dict[str, Any] = {"pseudo": settings.pseudo}
        idle = [key for key, rules in _UNUSED_BY.items() if settings.pseudo in rules]
        # False and the default estimator promise nothing that could be missed.
        if without_effect := [key for key in idle if getattr(settings, key) not in (False, "reference")]:
            report["without_effect"] = without_effect
        if settings.pseudo == "threshold":
            report["threshold"] = settings.pseudo_threshold
        if self.thresholds is None:
            return report
        values, pixels, accepted = self.thresholds
        return report | {
            "estimator": settings.estimator,
            "thresholds": [value if math.isfinite(value) else str(value) for value in values.tolist()],
            "pixels": pixels.tolist(),
            "accepted": [None if math.isnan(share) else share for share in accepted.tolist()],
        }
