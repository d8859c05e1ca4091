"""Classifiers, and the one place that turns their scores into classes.

A network's *scores* are the channels of its classifiers: first channels that are no classes, if a method asks for any
(SSUL's "unknown", DKD's "auxiliary"), then one channel per class, background first. A `ClassifierPlan` says what they
mean; it belongs to the network, is stored in every checkpoint and in exported models. All classes and probabilities are
computed by the plan.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, TypeAdapter
from torch import Tensor, nn

from plopcli.errors import DataError, unknown_name
from plopcli.models.abn import BatchNormActivation
from plopcli.plugins import Registry

_Name = Annotated[str, Field(pattern=r"^[^\W\d]\w*$")]


@dataclass(frozen=True)
class ClassifierPlan:
    """What a method asks of the classifiers, and how classes follow from their scores.

    Args:
        kind: Name in `CLASSIFIERS`: `1x1`, or `3x3-norm-relu-1x1`.
        extra: Names of the channels that are no classes; they come before the classes.
        scores: `softmax`: classes exclude each other; `sigmoid`: classes are independent.
        background: Those of ``extra`` whose probability is added to the background's.
        threshold: A pixel is background unless the probability of another class exceeds it; None: background is a class
            like any other.
    """

    kind: str = "1x1"
    extra: Annotated[tuple[_Name, ...], Field(max_length=16)] = ()
    scores: Literal["softmax", "sigmoid"] = "softmax"
    background: tuple[str, ...] = ()
    threshold: float | None = None

    def __post_init__(self) -> None:
        assert set(self.background) <= set(self.extra), "only extra channels can join background"
        assert len(set(self.extra)) == len(self.extra), "channels have names of their own"

    @property
    def is_argmax(self) -> bool:
        """Whether the label is the channel with the largest score."""
        return not self.extra and self.threshold is None

    def probabilities(self, scores: Tensor) -> Tensor:
        """Probabilities (B, C, ...) of the classes, from scores (B, extra + C, ...)."""
        values: Tensor = scores.softmax(1) if self.scores == "softmax" else scores.sigmoid()
        count = len(self.extra)
        extra, classes = values[:, :count], values[:, count:]
        if not self.background:
            return classes
        joined = [self.extra.index(name) for name in self.background]
        background = classes[:, :1] + extra[:, joined].sum(1, keepdim=True)
        return torch.cat([background, classes[:, 1:]], dim=1)

    def class_scores(self, scores: Tensor) -> Tensor:
        """Scores (B, C, ...) the largest of which is the label, from scores (B, extra + C, ...)."""
        return scores if self.is_argmax else self.ranked(self.probabilities(scores))

    def labels(self, scores: Tensor) -> Tensor:
        """Classes (B, ...), int64, from scores (B, extra + C, ...)."""
        return self.class_scores(scores).argmax(1)

    def decide(self, probabilities: Tensor) -> Tensor:
        """Classes (B, ...), int64, from probabilities (B, C, ...), such as means over several views."""
        return self.ranked(probabilities).argmax(1)

    def ranked(self, probabilities: Tensor) -> Tensor:
        """Probabilities (B, C, ...), with that of the background replaced so that the largest is the label."""
        if self.threshold is None:
            return probabilities
        # Where nothing exceeds it, the first of the largest is the background.
        # Written so that an exported graph needs no operator that makes a map out of a size.
        return torch.cat([probabilities[:, :1] * 0 + self.threshold, probabilities[:, 1:]], dim=1)

    def stored(self) -> dict[str, Any]:
        """Plain values, for checkpoints and exported models."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def restored(cls, stored: Mapping[str, Any]) -> ClassifierPlan:
        """The plan that `stored` returned.

        Raises:
            DataError: It is damaged, or of a newer version.
        """
        try:
            values = {field.name: stored[field.name] for field in fields(cls)}
            return TypeAdapter(cls).validate_json(json.dumps(values), strict=True)
        except (KeyError, TypeError, ValueError) as error:
            told = f"What scores mean is not told: {dict(stored)!s:.200}."
            raise DataError(told, "Update plop, or export anew.") from error


#: The plan of most methods: a 1 x 1 convolution per step, softmax, the largest score wins.
PLAIN = ClassifierPlan()
#: The same with a sigmoid per class, as binary cross-entropy trains them.
SIGMOID = ClassifierPlan(scores="sigmoid")


class Classifiers(nn.Module):
    """A classifier per learning step, by number (``cls.0``, ``cls.1``, ...), and one per extra channel, by name.

    A subclass defines one of them in `classifier`; one whose classifiers depend on each other overrides `forward`.

    Args:
        plan: The channels.
        channels: Channels of the decoder's output.
        class_counts: Classes of each step; the first counts background.
    """

    def __init__(self, plan: ClassifierPlan, channels: int, class_counts: Sequence[int]) -> None:
        super().__init__()
        self.plan = plan
        self.channels = channels
        self.class_counts: tuple[int, ...] = ()
        for count in class_counts:
            self.grow(count)
        self.extra = nn.ModuleDict({name: self.classifier(1) for name in plan.extra})

    def classifier(self, count: int) -> nn.Module:
        """A new classifier from (B, channels, h, w) to (B, count, h, w).

        Its first layer must not change its input in place, as norms of `plopcli.models.abn` may, since others read it.
        """
        raise NotImplementedError

    def grow(self, count: int) -> None:
        """Appends a fresh classifier for ``count`` classes: device, type and mode are those of the others."""
        assert count > 0
        fresh = self.classifier(count).train(self.training)
        like, own = next(self.parameters(), None), next(fresh.parameters())
        if like is not None and (like.device, like.dtype) != (own.device, own.dtype):
            fresh.to(like.device, like.dtype)
        self.add_module(str(len(self.class_counts)), fresh)
        self.class_counts += (count,)

    def __len__(self) -> int:
        return len(self.class_counts)

    def __iter__(self) -> Iterator[nn.Module]:
        return (self[step] for step in range(len(self)))

    def __getitem__(self, step: int) -> nn.Module:
        """The classifier of a step; -1 is the newest."""
        return self.get_submodule(str(range(len(self))[step]))

    def last_layers(self) -> tuple[nn.Conv2d, ...]:
        """The 1 x 1 convolution that each step's classifier ends with, in the order of the steps."""
        return tuple(last_layer(classifier) for classifier in self)

    def forward(self, deep: Tensor) -> Tensor:
        """Scores (B, extra + C, h, w) from the decoder's output (B, channels, h, w)."""
        # A single convolution would read the deep features once, and sum their gradients in another order than the
        # original does.
        return torch.cat([classifier(deep) for classifier in (*self.extra.values(), *self)], dim=1)


class Linear(Classifiers):
    """One 1 x 1 convolution per step."""

    def classifier(self, count: int) -> nn.Module:
        """A 1 x 1 convolution with bias."""
        return nn.Conv2d(self.channels, count, 1)


class Deep(Classifiers):
    """A 3 x 3 convolution, batch norm, ReLU and a 1 x 1 convolution per step.

    Source: Cha et al., SSUL, NeurIPS 2021.
    """

    def classifier(self, count: int) -> nn.Module:
        """Its layers, initialised as in the source (He normal, fan in)."""
        width = self.channels
        layers = nn.Sequential(
            nn.Conv2d(self.channels, width, 3, padding=1, bias=False),
            BatchNormActivation(width, "relu"),
            nn.Conv2d(width, count, 1),
        )
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)
        return layers


def _checked(name: str, found: Any) -> type[Classifiers]:
    if not (isinstance(found, type) and issubclass(found, Classifiers)):
        raise TypeError(f"{found!r} is no subclass of Classifiers")
    return found


#: Kinds of classifiers by name; those of installed packages too (`plopcli.plugins`).
CLASSIFIERS: Registry[type[Classifiers]] = Registry(
    "kind of classifier", "plopcli.classifiers", {"1x1": Linear, "3x3-norm-relu-1x1": Deep}, _checked
)


def build_classifiers(plan: ClassifierPlan, channels: int, class_counts: Sequence[int]) -> Classifiers:
    """The classifiers that ``plan`` asks for, with random weights.

    Raises:
        UsageError: For an unknown kind.
    """
    if plan.kind not in CLASSIFIERS:
        raise unknown_name("kind of classifier", plan.kind, CLASSIFIERS)
    return CLASSIFIERS[plan.kind](plan, channels, class_counts)


def last_layer(classifier: nn.Module) -> nn.Conv2d:
    """The convolution that a classifier ends with."""
    layer = classifier[-1] if isinstance(classifier, nn.Sequential) else classifier
    assert isinstance(layer, nn.Conv2d), f"a {type(layer).__name__} is no classifier's last layer"
    return layer
