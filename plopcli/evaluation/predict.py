"""Class maps of single pictures at their own size."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from plopcli.data.transforms import normalise
from plopcli.devices.precision import Precision
from plopcli.models.classifiers import ClassifierPlan
from plopcli.models.segmenter import Segmenter

Forward = Callable[[Tensor], Tensor]
"""A network: pixels (B, h, w, 3), uint8 RGB, to logits (B, C, h', w') of any size, float32."""

#: Longest side over shortest beyond which a picture is scaled by its longest side, to this many times the usual one.
_MOST_OBLONG = 16
#: Logits at the size of a picture that are held at a time: 64 MiB. A phone's picture has 12 million pixels.
_STRIP = 1 << 24


def forward_of(model: Segmenter, device: torch.device, precision: Precision) -> Forward:
    """Computes the scores of ``model``, in eval mode on ``device``, before upsampling."""
    channels_last = next(model.parameters()).is_contiguous(memory_format=torch.channels_last)

    def forward(pixels: Tensor) -> Tensor:
        with torch.no_grad(), precision.autocast():
            small: Tensor = model(normalise(pixels.to(device), channels_last=channels_last)).small_scores
        return small.float()

    return forward


def scaled(image: Image.Image, crop: int) -> npt.NDArray[np.uint8]:
    """Pixels (h, w, 3) of an RGB picture whose shorter side is resized to ``crop``.

    Of a picture more than 16 times as long as wide, the longer side is resized to 16 ``crop``: otherwise a line of two
    pixels would fill the memory.
    """
    shorter = max(min(image.size), max(image.size) / _MOST_OBLONG)
    width, height = (max(1, round(side * crop / shorter)) for side in image.size)
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


def scores_of(forward: Forward, image: Image.Image, crop: int) -> Tensor:
    """Scores (1, extra + C, h, w) of an RGB picture whose shorter side is resized to ``crop``, as in evaluation."""
    return forward(torch.from_numpy(scaled(image, crop).copy()).unsqueeze(0))


def class_map(scores: Tensor, plan: ClassifierPlan, height: int, width: int) -> npt.NDArray[np.uint8]:
    """The class (height, width) of each pixel, from scores (1, extra + C, h, w) upsampled bilinearly.

    Upsamples strip by strip, to bound the memory.
    """
    strips = [plan.labels(strip)[0].to(torch.uint8) for strip in _upsampled(scores, height, width)]
    labels: npt.NDArray[np.uint8] = torch.cat(strips).cpu().numpy()
    return labels


def predict(
    model: Segmenter, image: Image.Image, crop: int, device: torch.device, precision: Precision
) -> npt.NDArray[np.uint8]:
    """Segments an RGB picture of any size.

    The network, in eval mode on ``device``, sees all of it, with its shorter side resized to ``crop`` as in evaluation.

    Returns:
        Learned class ids (H, W) at the picture's own size.
    """
    seen = scores_of(forward_of(model, device, precision), image, crop)
    return class_map(seen, model.plan, image.height, image.width)


def _upsampled(logits: Tensor, height: int, width: int) -> Iterator[Tensor]:
    """`torch.nn.functional.interpolate` (bilinear) to (height, width), in strips of rows from the top."""
    rows = max(1, _STRIP // (logits.shape[1] * width))
    if rows >= height:
        yield F.interpolate(logits, size=(height, width), mode="bilinear", align_corners=False)
        return
    last = logits.shape[2] - 1
    places = ((torch.arange(height, dtype=torch.float64) + 0.5) * ((last + 1) / height) - 0.5).clamp_(min=0)
    above = places.long()
    share = (places - above).to(logits).view(1, 1, -1, 1)
    above = above.to(logits.device)
    for start in range(0, height, rows):
        part = slice(start, start + rows)
        upper, lower = logits[:, :, above[part]], logits[:, :, (above[part] + 1).clamp(max=last)]
        between = torch.lerp(upper, lower, share[:, :, part])
        yield F.interpolate(between, size=(between.shape[2], width), mode="bilinear", align_corners=False)
