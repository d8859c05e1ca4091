"""Test-time augmentation: several looks at an image, whose probabilities are averaged."""

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
    """How an image is looked at.

    Figures measured with and without it are not comparable: it adds a point or two.

    Args:
        scales: Factors that images are resized by.
        flip: Whether each is looked at in the mirror, too.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether an image is looked at once, as it is."""
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
    """Mean probabilities (B, C, H, W), float32, over all looks at ``images``.

    Args:
        network: From normalised images (B, 3, h, w) to scores (B, extra + C, h', w') of whatever size.
        plan: What they mean.
        images: (B, 3, H, W).
        augmentation: The looks.
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
