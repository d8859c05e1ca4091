"""Test-time augmentation: mean probabilities over resized and mirrored images."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from plopcli.errors import UsageError
from plopcli.models.classifiers import ClassifierPlan

_LARGEST = 4.0


@dataclass(frozen=True)
class Augmentation:
    """Test-time augmentation. Figures with and without it are not comparable: it adds a point or two.

    Args:
        scales: Factors that images are resized by.
        flip: Whether mirror images are added.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether there is no augmentation."""
        return self.scales == (1.0,) and not self.flip

    def describe(self) -> str:
        """For people."""
        looks = f"scales {', '.join(f'{scale:g}' for scale in self.scales)}"
        return f"mean probabilities over {looks}{' and mirror images' if self.flip else ''}"


#: As the papers measure.
PLAIN = Augmentation()


def read_scales(text: str) -> tuple[float, ...]:
    """The scales in ``0.5,1,1.5``.

    Raises:
        UsageError: It holds something else.
    """
    hint = "For example --scales 0.5,0.75,1,1.25,1.5,1.75."
    try:
        scales = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"--scales {text} is no list of numbers.", hint) from error
    if not all(math.isfinite(scale) and 0 < scale <= _LARGEST for scale in scales):
        raise UsageError(f"--scales {text}: a scale is above 0 and at most {_LARGEST:g}.", hint)
    if len(set(scales)) < len(scales):
        raise UsageError(f"--scales {text} names a scale twice.", hint)
    return scales


def probabilities(
    network: Callable[[Tensor], Tensor], plan: ClassifierPlan, images: Tensor, augmentation: Augmentation
) -> Tensor:
    """Mean probabilities (B, C, H, W), float32, over all views of ``images`` (B, 3, H, W).

    ``network`` maps normalised images (B, 3, h, w) to scores (B, extra + C, h', w') of any size; ``plan`` says what
    they mean.
    """
    size = images.shape[-2:]
    total: Tensor | None = None
    for scale in augmentation.scales:
        scaled = images if scale == 1 else _resized(images, scale)
        for mirrored in (False, True) if augmentation.flip else (False,):
            scores = network(scaled.flip(-1) if mirrored else scaled).float()
            if mirrored:
                scores = scores.flip(-1)
            look = plan.probabilities(F.interpolate(scores, size=size, mode="bilinear", align_corners=False))
            total = look if total is None else total.add_(look)
    assert total is not None
    return total.div_(len(augmentation.scales) * (1 + augmentation.flip))


def _resized(images: Tensor, scale: float) -> Tensor:
    height, width = (max(1, round(side * scale)) for side in images.shape[-2:])
    layout = torch.channels_last if images.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    resized = F.interpolate(images, size=(height, width), mode="bilinear", align_corners=False, antialias=scale < 1)
    return resized.contiguous(memory_format=layout)
