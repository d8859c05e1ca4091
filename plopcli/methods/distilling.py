"""What methods have in common that distil the probabilities of the previous model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from torch import Tensor

from plopcli.methods.base import StepContext
from plopcli.settings.sections import MethodSettings, NonNegative, Positive

#: Gives the distillation of every pixel, (B, H, W), from new (B, C, H, W) and old logits (B, C_old, H, W).
PixelLoss = Callable[[Tensor, Tensor, float], Tensor]


class DistillationSettings(MethodSettings):
    """How the previous model's probabilities are distilled."""

    kd_factor: NonNegative = 100.0
    """Factor of the distillation of probabilities; 0: none."""
    kd_alpha: Positive = 1.0
    """Factor on the old model's logits in the distillation (an inverse temperature)."""
    kd_temperature: Positive = 1.0
    """What both models' logits are divided by in the distillation; its scale is left as it comes out."""
    kd_pixels: Literal["all", "background", "new"] = "all"
    """Pixels that are distilled, by label; others count as 0. As in the original, `new` has ignored ones in it."""
    kd_schedule: bool = False
    """Weigh the distillation by sqrt(all classes / new classes)."""


def distil(
    settings: DistillationSettings,
    context: StepContext,
    labels: Tensor,
    logits: tuple[Tensor, Tensor],
    pixel_loss: PixelLoss,
) -> Tensor:
    """The distillation of every pixel, without its factor.

    Args:
        settings: How to distil.
        context: Where the scenario stands.
        labels: Classes (B, H, W) in learned order, 255 ignored.
        logits: Of the new model (B, C, H, W) and of the old one (B, C_old, H, W).
        pixel_loss: The distillation of every pixel; takes both logits and alpha.

    Returns:
        (B, H, W); 0 where ``kd_pixels`` leaves pixels out.
    """
    new, old = logits
    if settings.kd_temperature != 1:
        new, old = new / settings.kd_temperature, old / settings.kd_temperature
    loss = pixel_loss(new, old, settings.kd_alpha)
    if settings.kd_pixels == "all":
        return loss
    background = labels < context.old
    return loss * (background if settings.kd_pixels == "background" else ~background)


def distillation_factor(settings: DistillationSettings, context: StepContext) -> float:
    """What the mean of `distil` is weighed by."""
    return settings.kd_factor * (math.sqrt(context.total / context.new) if settings.kd_schedule else 1.0)
