"""What a continual-learning method is: the mathematics of a step, and nothing else.

The engine owns the optimizer, the devices, precision, accumulation and the order of things; a method turns the outputs
of the new and the old model into named loss terms. It is a `torch.nn.Module`: buffers and modules of its own move to
the device, are trained, averaged over processes and saved with the checkpoint by themselves. It *declares* what else it
needs: what scores mean (`classifier`), parameters and their rates (`parts`), exemplars (`replay`), maps beside the
images (`maps`), training of its own before the step (`phase`). The engine calls, for every step::

    method.expand(model)                       the network to train, from the one that the previous step saved
    method.load_carried_state(state, ...)      what the previous step, or a snapshot, has left
    method.initialise(model, old_model)        before the optimizer exists
    method.before_step(data)                   may pass over the step's images
    method.phase()                             may train something of its own first
    method.losses(batch, new, old, at)         every micro-batch; named scalar terms, summed by the engine
    method.after_gradients(parameters)         every iteration, with final gradients; named terms of parameters
    method.after_optimizer_step(parameters)    every iteration
    method.after_step(model, data)             once the step is trained
    method.merge(model)                        the network to save, from the trained one
    method.carried_state()                     with every checkpoint and snapshot

`docs/own-method.md` builds one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from plopcli.data.batches import Batch
from plopcli.data.samples import Candidate, Exemplar
from plopcli.errors import DataError
from plopcli.losses.pseudo_labels import PseudoLabels
from plopcli.models.classifiers import PLAIN, ClassifierPlan
from plopcli.models.segmenter import Outputs, Part, Segmenter
from plopcli.settings.presets import Preset
from plopcli.settings.sections import MethodSettings

#: Where the carried state keeps the parameters and buffers of the method itself.
_TENSORS = "tensors"
#: The `Method.step_0_key` of methods whose step 0 is cross-entropy on the labels and leaves no state.
CROSS_ENTROPY: Mapping[str, Any] = {"loss": "cross_entropy"}


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


class Moment(NamedTuple):
    """How far the training of a step is.

    Attributes:
        iteration: Optimizer steps done, from 0.
        epoch: Passes over the images done, from 0.
        progress: Share of the step's iterations that are done, in [0, 1).
    """

    iteration: int = 0
    epoch: int = 0
    progress: float = 0.0


BEGINNING = Moment()


@dataclass(frozen=True)
class Replay:
    """Images of earlier steps that take part in this one.

    Args:
        exemplars: Which; each has the labels that it had in its own step.
        share: Of each batch, whose images they replace; None: they are shuffled in among the step's own images, each
            once an epoch.
    """

    exemplars: tuple[Exemplar, ...]
    share: float | None = 0.5


@dataclass(frozen=True)
class Phase:
    """Training of a method's own before the step's training: a few tensors, while the network stands still.

    The network runs in train mode without gradients; its running statistics move.

    Args:
        name: In log and metrics.
        optimizer: Of the tensors that are trained; their gradients are averaged over processes.
        losses: From a batch, the outputs of the new and of the old model, with features, and the moment to named terms.
        schedule: Stepped after every iteration.
        finish: Called once, when all epochs are done.
    """

    name: str
    optimizer: torch.optim.Optimizer
    losses: Callable[[Batch, Outputs, Outputs | None, Moment], dict[str, Tensor]]
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None
    finish: Callable[[], None] = lambda: None


class PassedThrough(Protocol):
    """Outputs of a network for images (B, 3, H, W), without gradients."""

    def __call__(self, images: Tensor, features: bool = ...) -> Outputs:
        """The outputs, with feature maps if asked for."""


@dataclass(frozen=True)
class StepData:
    """The training images of the step, as the engine offers them to a method; exemplars are left out.

    Args:
        batches: Starts a fresh pass over augmented images, on the model's device; the incomplete last batch is dropped.
        whole: Starts a pass over images without augmentation (central crops), each once, with their names.
        candidates: The images and what they hold; empty where steps bring domains.
        old_outputs: The frozen previous model's outputs for images; an assert fails at step 0.
        new_outputs: The current model's outputs for images, in evaluation mode, without gradients.
        reduce: Sums a tensor over all processes (identity with one).
    """

    batches: Callable[[], Iterator[Batch]]
    whole: Callable[[], Iterator[Batch]]
    candidates: Callable[[], tuple[Candidate, ...]]
    old_outputs: PassedThrough
    new_outputs: PassedThrough
    reduce: Callable[[Tensor], Tensor]

    @classmethod
    def empty(cls) -> StepData:
        """No image at all: a method gets its tables, empty."""

        def no_outputs(images: Tensor, features: bool = False) -> Outputs:
            raise AssertionError("there are no images")

        return cls(lambda: iter(()), lambda: iter(()), lambda: (), no_outputs, no_outputs, lambda tensor: tensor)


class Method(nn.Module):
    """A method with every hook doing nothing: fine-tuning is this plus a cross-entropy.

    Args:
        settings: Its settings.
        context: Where the scenario stands.
    """

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

    settings: MethodSettings

    def __init__(self, settings: MethodSettings, context: StepContext) -> None:
        super().__init__()
        self.settings = settings
        self.context = context
        #: Detached scalars on the device that `losses` leaves behind for the log, about its last micro-batch. The
        #: engine reads them only where it prints.
        self.diagnostics: dict[str, Tensor] = {}
        #: Sums a tensor over all processes, in `losses` for example; identity with one.
        self.reduce: Callable[[Tensor], Tensor] = lambda tensor: tensor
        # In a tuple, since an attribute would make the network a part of the method.
        self._networks: tuple[Segmenter, Segmenter | None] | None = None

    def bind(self, model: Segmenter, old_model: Segmenter | None, reduce: Callable[[Tensor], Tensor]) -> None:
        """Called by the engine: from now on `model`, `old_model` and `reduce` are these."""
        self._networks, self.reduce = (model, old_model), reduce

    @property
    def model(self) -> Segmenter:
        """The network that is trained. Do not keep it in an attribute: it would become a part of the method."""
        assert self._networks is not None, "the engine has not bound the networks yet"
        return self._networks[0]

    @property
    def old_model(self) -> Segmenter | None:
        """The frozen network of the previous step; None at step 0."""
        assert self._networks is not None, "the engine has not bound the networks yet"
        return self._networks[1]

    @classmethod
    def classifier(cls, settings: MethodSettings) -> ClassifierPlan:
        """What it asks of the classifiers, and how classes follow from their scores."""
        return PLAIN

    @classmethod
    def step_0_key(cls, settings: MethodSettings) -> Mapping[str, Any]:
        """What decides the weights of step 0, and the state that it leaves: runs whose keys are equal can share it.

        By default the method with all its settings, so that it shares step 0 with itself alone. A method whose step 0
        is plain cross-entropy, and leaves no state, returns `CROSS_ENTROPY`.
        """
        return {"method": settings.name, **settings.model_dump(mode="json")}

    @classmethod
    def check_maps(cls, settings: MethodSettings, outputs: Outputs) -> None:
        """Refuses settings that do not fit the maps of the network, before anything is trained.

        Args:
            settings: Its settings.
            outputs: Of the run's network for a batch of its crops, with features: tensors of the device meta, which
                have shapes and no content.

        Raises:
            UsageError: A later step would fail on maps of these sizes.
        """

    @property
    def uses_old_model(self) -> bool:
        """Whether `losses` needs the outputs of the previous step's model."""
        return False

    @property
    def uses_features(self) -> bool:
        """Whether `losses` needs the feature maps f_1..f_5 of both models."""
        return False

    @property
    def maps(self) -> Mapping[str, Path]:
        """Folders of further maps by name, each with a NAME.png (8 bits a pixel) for every training image NAME."""
        return {}

    @property
    def replay(self) -> Replay | None:
        """Exemplars that take part in this step; asked for once the carried state is loaded."""
        return None

    @property
    def phase_epochs(self) -> int:
        """Passes over the step's images that `phase` takes."""
        return 0

    def parts(self, model: Segmenter) -> dict[str, Part]:
        """All parameters that can be trained, by part, each in exactly one; by default those of the network by its
        own parts, and all of the method's own as ``method``.
        """
        return model.parts() | {"method": Part(list(self.parameters()))}

    def expand(self, model: Segmenter) -> Segmenter:
        """The network to train, from the one that the previous step saved (at step 0: from the fresh one).

        It has its classifiers, that of the new classes too. By default it is the same; one with parallel branches, for
        example, is built here, and `merge` makes it a plain one again.
        """
        return model

    def merge(self, model: Segmenter) -> Segmenter:
        """The network to measure and save, from the trained one; by default the same."""
        return model

    def initialise(self, model: Segmenter, old_model: Segmenter | None) -> None:
        """Sets the new classifier (and whatever else) before training; ``model`` already holds the old weights."""

    def before_step(self, data: StepData) -> None:
        """Prepares the step, from a pass over its images if need be."""

    def phase(self) -> Phase | None:
        """Training of its own before the step's, of ``phase_epochs`` epochs; a run that stops in it begins it anew."""
        return None

    def pseudo_labels(self, batch: Batch, old: Outputs) -> PseudoLabels | None:
        """How the old model labels the background of a batch; None where the method has no pseudo-labels."""
        return None

    def losses(self, batch: Batch, new: Outputs, old: Outputs | None, at: Moment = BEGINNING) -> dict[str, Tensor]:
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

    def after_step(self, model: Segmenter, data: StepData) -> None:
        """Finishes the step; may change the weights that are saved."""

    def carried_state(self) -> dict[str, Any]:
        """Plain values and tensors that the next step, or a resumed run, needs beside parameters and buffers."""
        return {}

    def load_carried_state(self, state: Mapping[str, Any], *, same_step: bool) -> None:
        """Takes what `carried_state` gave, in the step after it or (``same_step``) in the same one."""

    def saved_state(self) -> dict[str, Any]:
        """All that checkpoints and snapshots keep of the method."""
        tensors = dict(self.state_dict())
        return self.carried_state() | ({_TENSORS: tensors} if tensors else {})

    def load_tensors(self, state: Mapping[str, Any], *, same_step: bool) -> None:
        """Takes the parameters and buffers in what `saved_state` gave; called after `initialise`, which may build them.

        One with a row per class takes the rows of the old classes from the previous step, and keeps those of new ones.

        Raises:
            DataError: The state is of another method.
        """
        tensors = state.get(_TENSORS, {})
        if not isinstance(tensors, Mapping):
            raise self._unfit("its tensors are damaged")
        with torch.no_grad():
            for name, own in self.state_dict().items():
                given = tensors.get(name)
                if not isinstance(given, Tensor):
                    raise self._unfit(f"it lacks {name}")
                if given.shape == own.shape:
                    own.copy_(given)
                elif not same_step and given.shape == (self.context.old, *own.shape[1:]):
                    own[: self.context.old].copy_(given)
                else:
                    raise self._unfit(f"{name} is {tuple(given.shape)} there and {tuple(own.shape)} here")

    def _unfit(self, reason: str) -> DataError:
        return DataError(
            f"Method {self.settings.name} cannot go on from the checkpoint: {reason}.",
            f"All steps from step 0 on have to be trained by {self.settings.name}.",
        )

    def report(self) -> dict[str, Any]:
        """What the run's log should say about the prepared step (thresholds and the like); plain values."""
        return {}
