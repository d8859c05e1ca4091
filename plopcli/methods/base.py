"""What a continual-learning method is: the mathematics of a step, and nothing else.

The engine owns the optimizer, the devices, precision, accumulation and the order of things; a method turns the
outputs of the new and the old model into named loss terms, and may keep state from step to step. The engine calls,
for every step::

    method.initialise(model, old_model)        before the optimizer exists
    method.before_step(step_pass)              may pass over the step's images
    method.losses(batch, new, old)             every micro-batch; named scalar terms, summed by the engine
    method.after_gradients(parameters)         every iteration, with final gradients; named terms of parameters
    method.after_optimizer_step(parameters)    every iteration
    method.after_step(model, step_pass)        once the step is trained
    method.state_dict() / load_state_dict()    with every checkpoint; what the next step starts from
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from plopcli.models.segmenter import Outputs, Segmenter
from plopcli.settings.presets import Preset
from plopcli.settings.sections import MethodSettings

#: The `Method.step_0_key` of methods whose step 0 is cross-entropy on the labels and leaves no state.
CROSS_ENTROPY: Mapping[str, Any] = {"loss": "cross_entropy"}


class Batch(NamedTuple):
    """Images (B, 3, H, W) float, normalised, and labels (B, H, W) int64 in learned order, 255 ignored."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class StepContext:
    """Where the scenario stands.

    Args:
        step: Number of the step, from 0.
        classes: Classes that each step up to this one learns; the first counts background.
        shared: Whether all steps have the same classes and one classifier, since they bring domains; ``classes`` has
            one entry then.
    """

    step: int
    classes: tuple[int, ...]
    shared: bool = False

    @property
    def total(self) -> int:
        """Classes after this step (C)."""
        return sum(self.classes)

    @property
    def old(self) -> int:
        """Classes before this step (C_old), 0 at step 0."""
        return sum(self.classes[:-1]) if not (self.shared and self.step) else self.total

    @property
    def new(self) -> int:
        """Classes of this step (n)."""
        return self.classes[-1]


def _no_new_model(images: Tensor) -> Outputs:
    raise AssertionError("this pass has no trained model")


@dataclass(frozen=True)
class StepPass:
    """A pass over the augmented training images of the step, as the engine offers it to a method.

    Args:
        batches: Starts a fresh pass, on the model's device; the incomplete last batch is dropped.
        old_outputs: The frozen previous model's outputs for images; an assert fails at step 0.
        reduce: Sums a tensor over all processes (identity with one).
        new_outputs: The current model's outputs for images, with feature maps, in evaluation mode, without gradients.
    """

    batches: Callable[[], Iterator[Batch]]
    old_outputs: Callable[[Tensor], Outputs]
    reduce: Callable[[Tensor], Tensor]
    new_outputs: Callable[[Tensor], Outputs] = _no_new_model


class Method:
    """A method with every hook doing nothing: fine-tuning is this plus a cross-entropy."""

    Settings: ClassVar[type[MethodSettings]]
    #: One line for `plop methods`, and the paper.
    summary: ClassVar[str]
    source: ClassVar[str]
    #: The method that it is built on, whose presets hold for it as well.
    like: ClassVar[str | None] = None
    #: Its settings for a data set (the family), a task, or as a variant: they apply over those of the data set.
    presets: ClassVar[tuple[Preset, ...]] = ()
    #: Settings that are part of it, by dotted key: a preset that always applies, and which users override.
    recipe: ClassVar[Mapping[str, Any]] = {}
    #: The loss of step 0, in words, for `plop methods NAME`.
    first_step: ClassVar[str] = ""
    #: The loss of later steps by default, in words and names of settings, for `plop methods NAME`.
    later_steps: ClassVar[str] = ""
    #: Settings, and the values that they take where steps bring domains: all classes are in every step, so that there
    #: is no background to model, to label anew or to share out. A table in place of a value names those that change.
    for_domains: ClassVar[Mapping[str, Any]] = {}
    #: Copies of all parameters that it keeps on the device while training, at most; for estimates of memory.
    parameter_copies: ClassVar[int] = 0
    #: All steps of the task are learned at once (upper bound).
    merges_steps: ClassVar[bool] = False

    def __init__(self, settings: MethodSettings, context: StepContext) -> None:
        self.settings = settings
        self.context = context
        #: Detached scalars on the device that `losses` leaves behind for the log, about its last micro-batch. The
        #: engine reads them only where it prints.
        self.diagnostics: dict[str, Tensor] = {}

    @classmethod
    def step_0_key(cls, settings: MethodSettings) -> Mapping[str, Any]:
        """What decides the weights of step 0, and the state that it leaves: runs whose keys are equal can share it.

        By default the method with all its settings, so that it shares step 0 with itself alone. A method whose step 0
        is plain cross-entropy, and leaves no state, returns `CROSS_ENTROPY`.
        """
        return {"method": settings.name, **settings.model_dump(mode="json")}

    @property
    def uses_old_model(self) -> bool:
        """Whether `losses` needs the outputs of the previous step's model."""
        return False

    @property
    def uses_features(self) -> bool:
        """Whether `losses` needs the feature maps f_1..f_5 of both models."""
        return False

    def initialise(self, model: Segmenter, old_model: Segmenter | None) -> None:
        """Sets the new classifier (and whatever else) before training; ``model`` already holds the old weights."""

    def before_step(self, step_pass: StepPass) -> None:
        """Prepares the step, from a pass over its images if need be."""

    def losses(self, batch: Batch, new: Outputs, old: Outputs | None) -> dict[str, Tensor]:
        """Named scalar loss terms of one micro-batch, each a mean over its images.

        Names, where a method has such a term: ``classification``, ``logit_distillation``, ``encoder_distillation``,
        ``icarl``, ``pod``, ``similarity_distillation``; and ``regulariser`` for that of `after_gradients`.
        """
        raise NotImplementedError

    def after_gradients(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """Sees the final gradients (unscaled, accumulated, averaged over processes) of the loss terms.

        Returns:
            Further scalar terms, functions of the parameters alone, whose gradients the engine adds.
        """
        return {}

    def after_optimizer_step(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Sees the parameters after the optimizer has moved them."""

    def after_step(self, model: Segmenter, step_pass: StepPass) -> None:
        """Finishes the step; may change the weights that are saved."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values that the next step, or a resumed run, needs."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any], *, same_step: bool) -> None:
        """Takes up what `state_dict` gave, in the step after it or (``same_step``) in the same one."""

    def report(self) -> dict[str, Any]:
        """What the run's log should say about the prepared step (thresholds and the like); plain values."""
        return {}
