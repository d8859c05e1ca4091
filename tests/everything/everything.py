"""A method that asks for everything at once: the proof that a method of any kind is one file.

Made up for the tests; each part is what some method of the field needs (in brackets).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plopcli.data.batches import Batch
from plopcli.data.samples import Exemplar
from plopcli.losses.classification import IGNORED
from plopcli.losses.pseudo_labels import PseudoLabels
from plopcli.methods.base import BEGINNING, Method, Moment, Phase, Replay, StepData
from plopcli.models.abn import BatchNormActivation
from plopcli.models.classifiers import ClassifierPlan, Classifiers
from plopcli.models.segmenter import Outputs, Part, Segmenter
from plopcli.settings.presets import Preset
from plopcli.settings.sections import Count, MethodSettings, UserPath


class Scaled(Classifiers):
    """Two 1 x 1 convolutions with a norm between them."""

    def classifier(self, count: int) -> nn.Module:
        first = nn.Conv2d(self.channels, self.channels, 1, bias=False)
        return nn.Sequential(first, BatchNormActivation(self.channels, "relu"), nn.Conv2d(self.channels, count, 1))


class Branches(nn.Module):
    """Two convolutions side by side, one of them frozen (RCIL)."""

    def __init__(self, known: nn.Conv2d) -> None:
        super().__init__()
        self.known, self.new = known, copy.deepcopy(known)
        nn.init.zeros_(self.new.weight)

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = self.known(x) + self.new(x)
        return total

    def merged(self) -> nn.Conv2d:
        with torch.no_grad():
            self.known.weight += self.new.weight
        return self.known


class EverythingSettings(MethodSettings):
    """What it keeps and trains."""

    name: Literal["everything"] = "everything"
    """Name of the method."""
    memory: Count = 4
    """Images kept of all earlier steps."""
    saliency: UserPath | None = None
    """Folder of saliency maps, NAME.png each; none: no map."""
    mix: Literal["replace", "concat"] = "replace"
    """How exemplars join a batch."""


class Everything(Method):
    """Binary cross-entropy with an unknown channel, prototypes, exemplars, a phase of its own, parallel branches."""

    Settings = EverythingSettings
    summary = "everything that a method can ask for"
    source = "the tests"
    later_steps = "binary cross-entropy of classes and unknown + distance to prototypes"
    presets: ClassVar[tuple[Preset, ...]] = ()

    settings: EverythingSettings
    prototypes: Tensor
    start: Tensor

    def __init__(self, settings: EverythingSettings, context: Any) -> None:
        super().__init__(settings, context)
        self.kept: list[Exemplar] = []

    @classmethod
    def classifier(cls, settings: MethodSettings) -> ClassifierPlan:
        """Sigmoids, of which the unknown one counts as background; below 0.3 everything does (SSUL, DKD)."""
        return ClassifierPlan("scaled", ("unknown",), "sigmoid", ("unknown",), threshold=0.3)

    @property
    def uses_old_model(self) -> bool:
        return self.context.step > 0

    @property
    def uses_features(self) -> bool:
        return True

    @property
    def maps(self) -> Mapping[str, Path]:
        """Saliency (SSUL)."""
        return {} if self.settings.saliency is None else {"saliency": self.settings.saliency}

    @property
    def replay(self) -> Replay:
        """Exemplars (SSUL-M, DKD-M)."""
        return Replay(tuple(self.kept), 0.5 if self.settings.mix == "replace" else None)

    @property
    def phase_epochs(self) -> int:
        return 1 if self.context.step > 0 else 0

    def expand(self, model: Segmenter) -> Segmenter:
        if self.context.step > 0:
            model.head.red_conv = Branches(model.head.red_conv)
        return model

    def merge(self, model: Segmenter) -> Segmenter:
        if self.context.step > 0:
            model.head.red_conv = model.head.red_conv.merged()
        return model

    def initialise(self, model: Segmenter, old_model: Segmenter | None) -> None:
        """Its own module and tables (BARM, SDR, STAR); the new classifier starts from the unknown one (SSUL)."""
        channels = model.cls.channels
        self.project = nn.Conv2d(channels, channels, 1)
        self.register_buffer("prototypes", torch.zeros(self.context.total, channels))
        # Of the step alone: it is no state of the next one.
        self.register_buffer("start", torch.zeros(self.context.new), persistent=False)
        if old_model is not None:
            new, unknown = model.cls[-1], model.cls.extra["unknown"]
            new[0].load_state_dict(unknown[0].state_dict())
            new[1].load_state_dict(unknown[1].state_dict())
            with torch.no_grad():
                new[2].weight.copy_(unknown[2].weight.expand_as(new[2].weight))

    def parts(self, model: Segmenter) -> dict[str, Part]:
        """The known branch stands still; the classifier of step 0 moves slowly (SSUL)."""
        parts = super().parts(model)
        if self.context.step == 0:
            return parts
        known = model.head.red_conv.known.weight
        head = [parameter for parameter in parts["head"].parameters if parameter is not known]
        return parts | {
            "head": Part(head),
            "known": Part([known], lr=0.0, recipe="head"),
            "old": parts["old"]._replace(lr=0.01),
        }

    def phase(self) -> Phase | None:
        """Trains the biases that the new classes start from (NeST)."""
        if self.context.step == 0:
            return None
        start = nn.Parameter(self.start.clone())
        weight = self.model.classifiers[-1].weight.detach()

        def losses(batch: Batch, new: Outputs, old: Outputs | None, at: Moment) -> dict[str, Tensor]:
            assert old is not None
            scores = F.conv2d(new.features[-1], weight, start)
            return {"bias": (scores.mean((0, 2, 3)) + 1).square().sum()}

        def finish() -> None:
            with torch.no_grad():
                self.model.classifiers[-1].bias.copy_(start)

        return Phase("biases", torch.optim.SGD([start], lr=0.1), losses, finish=finish)

    def losses(self, batch: Batch, new: Outputs, old: Outputs | None, at: Moment = BEGINNING) -> dict[str, Tensor]:
        labels = batch.labels
        if old is not None:
            pseudo = self.pseudo_labels(batch, old)
            assert pseudo is not None
            labels = pseudo.labels
        known = labels != IGNORED
        hot = torch.zeros_like(new.logits).scatter_(1, (labels * known)[:, None], 1.0)
        salient = batch.maps["saliency"] > 0 if batch.maps else torch.ones_like(known)
        unknown = ((labels == 0) & salient).to(new.logits)[:, None]
        target = torch.cat([unknown, hot], 1)
        terms = F.binary_cross_entropy_with_logits(new.scores, target, reduction="none").sum(1)
        projected = self.project(new.features[-1]).mean((2, 3))
        with torch.no_grad():
            mean = new.features[-1].mean((0, 2, 3))
            processes = self.reduce(torch.ones_like(mean))
            self.prototypes[-1].lerp_(self.reduce(mean) / processes, 0.1)
        nearest = (projected[:, None] - self.prototypes).square().mean(2).amin(1)
        return {"classification": (terms * known).mean(), "prototypes": (1 - at.progress) * 0.01 * nearest.mean()}

    def pseudo_labels(self, batch: Batch, old: Outputs) -> PseudoLabels | None:
        plan = self.classifier(self.settings)
        probabilities = plan.probabilities(old.scores)
        best = probabilities[:, 1:].max(1)
        background = batch.labels == 0
        accepted = background & (best.values > 0.7)
        return PseudoLabels(torch.where(accepted, best.indices + 1, batch.labels), background, accepted)

    def after_step(self, model: Segmenter, data: StepData) -> None:
        """Keeps images of every class (memory); measures them without augmentation (STAR)."""
        candidates = {candidate.name: candidate.classes for candidate in data.candidates()}
        for label in range(max(1, self.context.old), self.context.total):
            self.kept += [Exemplar(name, self.context.step) for name, held in candidates.items() if label in held][:2]
        self.kept = list(dict.fromkeys(self.kept))[-self.settings.memory :]
        seen = torch.zeros(1, device=self.prototypes.device)
        for batch in data.whole():
            assert set(batch.names) <= candidates.keys()
            seen += len(batch.names)
        self.whole = int(data.reduce(seen))
        assert self.whole == len(candidates)

    def carried_state(self) -> dict[str, Any]:
        return {"exemplars": [list(exemplar) for exemplar in self.kept]}

    def load_carried_state(self, state: Mapping[str, Any], *, same_step: bool) -> None:
        self.kept = [Exemplar(str(name), int(step)) for name, step in state["exemplars"]]

    def report(self) -> dict[str, Any]:
        return {"exemplars": [exemplar.name for exemplar in self.kept]}
