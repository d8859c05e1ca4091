"""EWF: endpoints weight fusion, on top of another method.

Source: Xiao, Zhang, Feng, Liu, van de Weijer, Cheng: Endpoints Weight Fusion for Class Incremental Semantic
Segmentation, CVPR 2023.

A step is trained as the method underneath says, with the classifiers of earlier steps frozen. Then the two endpoints of
its training, the previous model and the trained one, are averaged, weight by weight.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from plopcli.methods.base import Method, StepPass
from plopcli.models.segmenter import Segmenter
from plopcli.settings.sections import MethodSettings

EWF_SOURCE = "Xiao et al., CVPR 2023, https://github.com/schuy1er/EWF_official"
#: What comes behind the loss in `Method.later_steps`.
FUSED = "afterwards theta = (1 - fusion) * theta_old + fusion * theta"


class FusionSettings(MethodSettings):
    """How much of a step's training is kept."""

    fusion: Literal["auto"] | Annotated[float, Field(ge=0, le=1)] = "auto"
    """Share of the trained weights in their mean with the previous model's; auto: sqrt(new classes / all classes),
    which is 1, all of it, where steps bring domains."""


class WeightFusion(Method):
    """The part that makes EWF of a method: put it before the method among the base classes."""

    recipe: ClassVar[Mapping[str, Any]] = {"train.later.lr_old": 0.0}

    settings: FusionSettings
    #: The previous model's parameters and buffers by name: the very ones, no copies.
    _old: Mapping[str, Tensor] | None = None

    @property
    def fusion(self) -> float:
        """Share of the trained weights, a."""
        if self.settings.fusion == "auto":
            return math.sqrt(self.context.new / self.context.total)
        return self.settings.fusion

    def initialise(self, model: Segmenter, old_model: Segmenter | None) -> None:
        """What the method underneath does; remembers the previous model."""
        super().initialise(model, old_model)
        self._old = None if old_model is None else old_model.state_dict()

    def after_step(self, model: Segmenter, step_pass: StepPass) -> None:
        """Fuses the trained weights with the previous ones, then does what the method underneath does."""
        if self.context.step > 0:
            assert self._old is not None, "initialise has not run"
            fuse(model.state_dict(), self._old, self.fusion)
        super().after_step(model, step_pass)

    def report(self) -> dict[str, Any]:
        """What the method underneath says, and the ``fusion`` factor from step 1 on."""
        return super().report() | ({"fusion": self.fusion} if self.context.step > 0 else {})


@torch.no_grad()
def fuse(new: Mapping[str, Tensor], old: Mapping[str, Tensor], share: float) -> None:
    """``new <- (1 - share) old + share new``, in place, for every floating-point tensor that ``old`` has too.

    With tensors of a state dict, running statistics of batch norms are fused as well, and the counts of batches are
    not. A share of 1 leaves the new tensors exactly as they are, 0 gives the old ones.

    Args:
        new: The trained tensors by name; those of new classes, which ``old`` lacks, stay as they are.
        old: The previous ones, a part of the names, of the same shapes.
        share: In [0, 1].
    """
    for name, before in old.items():
        if before.is_floating_point():
            after = new[name]
            after.copy_(torch.lerp(before.to(after), after, share))
