"""REMINDER: PLOP, and a distillation at new classes' pixels that minds the old classes which resemble them.

Source: Phan, Ta, Phung, Tran-Thanh, Bouzerdoum: Class Similarity Weighted Knowledge Distillation for Continual Semantic
Segmentation, CVPR 2022.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from plopcli.data.batches import Batch
from plopcli.errors import DataError
from plopcli.losses.similarity import (
    ClassSums,
    prototypes_of,
    shrink_labels,
    similarity_distillation,
    similarity_weights,
    sum_by_class,
)
from plopcli.methods.base import BEGINNING, Moment, StepContext, StepData
from plopcli.methods.plop import Plop, PlopSettings
from plopcli.models.segmenter import Outputs, Segmenter
from plopcli.settings.presets import Preset
from plopcli.settings.sections import MethodSettings, NonNegative, Positive

_PAPER = "REMINDER, CVPR 2022, and its published training scripts"


class ReminderSettings(PlopSettings):
    """PLOP's settings, and those of the distillation weighted by similarity."""

    name: Literal["reminder"] = "reminder"  # type: ignore[assignment]  # a method of its own
    """Name of the method."""
    similarity_factor: NonNegative = 0.5
    """Factor of the distillation at new classes' pixels, weighted by their likeness to old classes; 0: none."""
    similarity_temperature: Positive = 3.0
    """Divisor of both models' logits in that distillation."""
    similarity_delta: NonNegative = 0.0
    """Old classes with less than this multiple of the mean weight are left out of it; 0 keeps all."""


class Reminder(Plop):
    """PLOP with class-similarity-weighted distillation.

    A class has a prototype: the mean of f_5 over its pixels in the training images of the step that brings it, measured
    with the network that this step leaves, in evaluation mode. (Background is measured in step 0 alone: later it stands
    for old classes too.) While training, the prototypes of new classes are means over the micro-batch at hand. Labels
    are brought to the size of f_5 by taking the pixel at the centre of each cell; a class with no pixel there resembles
    all old ones alike.
    """

    Settings = ReminderSettings
    summary = "PLOP, and distillation at new classes' pixels weighted by their likeness to old classes"
    source = "Phan et al., CVPR 2022, https://github.com/HieuPhan33/REMINDER"
    later_steps = (
        f"{Plop.later_steps}; + similarity_factor * T^2 * mean over new classes' pixels of weighted KD(old classes)"
    )
    like = "plop"
    presets: ClassVar[tuple[Preset, ...]] = (
        Preset("voc", _PAPER, {"method": {"similarity_factor": 0.5, "similarity_delta": 0.0}}),
        Preset("ade", _PAPER, {"method": {"similarity_factor": 0.5, "similarity_delta": 1.0}}),
    )
    for_domains: ClassVar[Mapping[str, Any]] = {**Plop.for_domains, "similarity_factor": 0.0}

    settings: ReminderSettings

    def __init__(self, settings: ReminderSettings, context: StepContext) -> None:
        super().__init__(settings, context)
        #: Of the classes so far: mean f_5 (classes, c), float32, and how many of its pixels it is the mean of.
        self.prototypes: Tensor | None = None
        self._prototype_pixels: Tensor | None = None

    @classmethod
    def step_0_key(cls, settings: MethodSettings) -> Mapping[str, Any]:
        """PLOP's, and prototypes, which step 0 of other methods does not measure."""
        assert isinstance(settings, ReminderSettings)
        shared = super().step_0_key(settings)
        return {**shared, "measures": "prototypes"} if settings.similarity_factor > 0 else shared

    @property
    def _measures(self) -> bool:
        return self.settings.similarity_factor > 0

    @property
    def _distils(self) -> bool:
        return self.context.step > 0 and self._measures

    @property
    def uses_features(self) -> bool:
        """As PLOP, and for f_5."""
        return super().uses_features or self._distils

    @property
    def uses_old_model(self) -> bool:
        """As PLOP, and for the distillation."""
        return super().uses_old_model or self._distils

    def losses(self, batch: Batch, new: Outputs, old: Outputs | None, at: Moment = BEGINNING) -> dict[str, Tensor]:
        """PLOP's, and ``similarity_distillation`` from step 1 on."""
        terms = super().losses(batch, new, old, at)
        if self._distils:
            assert old is not None
            terms["similarity_distillation"] = self.settings.similarity_factor * self._distillation(batch, new, old)
        return terms

    def _distillation(self, batch: Batch, new: Outputs, old: Outputs) -> Tensor:
        settings, deep = self.settings, new.features[-1].detach()
        labels = shrink_labels(batch.labels, deep.shape[2], deep.shape[3])
        own = prototypes_of(sum_by_class(deep, labels, self.context.old, self.context.new))
        if self.prototypes is None:  # nothing is trained, when memory is estimated: see `load_state_dict`
            self.prototypes = own.new_zeros(self.context.old, own.shape[1])
        self.prototypes = self.prototypes.to(own.device)
        weights = similarity_weights(own, self.prototypes[: self.context.old], settings.similarity_delta)
        return similarity_distillation(new.logits, batch.labels, old.logits, weights, settings.similarity_temperature)

    @torch.no_grad()
    def after_step(self, model: Segmenter, data: StepData) -> None:
        """Measures the prototypes of the step's classes, in one pass over its images."""
        super().after_step(model, data)
        if not self._measures:
            return
        first = self.context.old
        weight = model.classifiers[0].weight
        sums = weight.new_zeros(self.context.new, weight.shape[1], dtype=torch.float64)
        pixels = weight.new_zeros(self.context.new, dtype=torch.int64)
        for batch in data.batches():
            deep = data.new_outputs(batch.images, features=True).features[-1]
            found = sum_by_class(deep, shrink_labels(batch.labels, *deep.shape[2:]), first, self.context.new)
            sums += found.features
            pixels += found.pixels
        pixels = data.reduce(pixels)
        own = prototypes_of(ClassSums(data.reduce(sums), pixels)).float()
        self.prototypes = _continued(self.prototypes, first, own)
        self._prototype_pixels = _continued(self._prototype_pixels, first, pixels)

    def carried_state(self) -> dict[str, Any]:
        """PLOP's, and the prototypes."""
        state = super().carried_state()
        if self.prototypes is not None and self._prototype_pixels is not None:
            state |= {"prototypes": self.prototypes.cpu(), "prototype_pixels": self._prototype_pixels.cpu()}
        return state

    def load_carried_state(self, state: Mapping[str, Any], *, same_step: bool) -> None:
        """Takes up the prototypes of earlier steps and, in the same step, PLOP's state.

        Raises:
            DataError: The state lacks the prototypes of the old classes, or thresholds.
        """
        super().load_carried_state(state, same_step=same_step)
        # In the middle of step 0 there are none yet.
        if not self._measures or (self.context.step == 0 and "prototypes" not in state):
            return
        prototypes, pixels = state.get("prototypes"), state.get("prototype_pixels")
        # A step that is done has measured its own classes as well.
        expected = (self.context.old, self.context.total) if same_step else (self.context.old,)
        if (
            not isinstance(prototypes, Tensor)
            or not isinstance(pixels, Tensor)
            or prototypes.dim() != 2
            or prototypes.shape[0] not in expected
            or pixels.shape != prototypes.shape[:1]
        ):
            raise DataError(
                f"Method reminder cannot go on from the checkpoint: it has no prototypes of the {self.context.old} "
                "classes learned before.",
                "All steps from step 0 on have to be trained by reminder, with method.similarity_factor above 0.",
            )
        self.prototypes, self._prototype_pixels = prototypes, pixels

    def report(self) -> dict[str, Any]:
        """PLOP's, and of how many pixels of f_5 each class's prototype is the mean."""
        if self._prototype_pixels is None:
            return super().report()
        return super().report() | {"prototype_pixels": self._prototype_pixels.tolist()}


def _continued(before: Tensor | None, count: int, own: Tensor) -> Tensor:
    """The first ``count`` rows of ``before``, and behind them ``own``."""
    return own if before is None else torch.cat([before[:count].to(own.device), own])
