"""How the classifier of new classes starts: the setting, and the part of a method that follows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from plopcli.methods.base import Method
from plopcli.models.segmenter import Segmenter
from plopcli.settings.sections import MethodSettings

Init = Literal["balanced", "default"]


class InitSettings(MethodSettings):
    """What the classifier of new classes starts from."""

    init: Init = "default"
    """Start new classes from the background's classifier, or at random."""


class InitialisedMethod(Method):
    """A method that starts the classifier of new classes as ``init`` says."""

    settings: InitSettings

    def initialise(self, model: Segmenter, old_model: Segmenter | None) -> None:
        """Starts the new classes from the background, if so set."""
        if self.context.step > 0 and self.settings.init == "balanced":
            balance_new_classifier(model.classifiers)


@torch.no_grad()
def balance_new_classifier(classifiers: Sequence[nn.Conv2d]) -> None:
    """Shares the background's probability out among background and the n new classes, in place.

    The new classes get the background's weights, and they and the background the bias ``b_bg - log(n + 1)``: at the
    start their probabilities sum to what the background's was, and old classes keep theirs.

    Source: Cermelli et al., Modeling the Background for Incremental Learning in Semantic Segmentation, CVPR 2020,
    equation 10.

    Args:
        classifiers: One 1 x 1 convolution with bias per step; background is the first channel of the first, new
            classes are the last.
    """
    first, last = classifiers[0], classifiers[-1]
    assert first is not last, "at step 0 there is no background to share out"
    assert first.bias is not None
    assert last.bias is not None
    # In float32 whatever the type of the parameters, as the original does it: else the ninth digit would differ.
    first.bias[0] = first.bias[0].float() - torch.tensor(last.out_channels + 1.0).log()
    last.weight.copy_(first.weight[:1].expand_as(last.weight))
    last.bias.copy_(first.bias[0].expand_as(last.bias))
