"""The papers' transforms, on 8-bit pixels: random resized crop and flip to train, resize and central crop to test.

Everything that is drawn comes from the generator that is handed in, so that augmentation depends on nothing else.
Normalisation happens last, on the device, in one pass (`normalise`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Pixels = npt.NDArray[np.uint8]
#: ImageNet statistics of the papers, for values in 0..1.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
_ATTEMPTS = 10


class Box(NamedTuple):
    """A window in pixels of the source image."""

    left: int
    top: int
    width: int
    height: int


def draw_window(
    width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> Box:
    """Draws the window of a random resized crop (Szegedy et al., 2015).

    Args:
        width: Width of the image in pixels.
        height: Height of the image.
        scale: Range of the window's area as a share of the image's.
        ratio: Range of width / height, drawn log-uniformly.
        rng: Source of randomness.

    Returns:
        The first of ten drawn windows that fits into the image, else the largest central one within ``ratio``.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(_ATTEMPTS):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1)), w, h)
    aspect = width / height
    if aspect < ratio[0]:
        w, h = width, min(height, round(width / ratio[0]))
    elif aspect > ratio[1]:
        w, h = min(width, round(height * ratio[1])), height
    else:
        w, h = width, height
    return Box((width - w) // 2, (height - h) // 2, w, h)


def training_crop(
    image: Image.Image,
    mask: Image.Image,
    crop: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    flip: float,
    rng: np.random.Generator,
    maps: Sequence[Image.Image] = (),
) -> tuple[Pixels, ...]:
    """Random resized crop to ``crop`` x ``crop`` and flip: image (crop, crop, 3) bilinear, mask (crop, crop) nearest,
    and each of ``maps`` as the mask.

    Of the image only the window is resized, by torch's 8-bit kernel: the values of Pillow's (at most 1 of 255 apart),
    in a third of the time.
    """
    box = draw_window(*image.size, scale, ratio, rng)
    window = (box.left, box.top, box.left + box.width, box.top + box.height)
    pixels = _resize(np.asarray(image.crop(window)), crop)
    ids = [np.asarray(one.resize((crop, crop), Image.Resampling.NEAREST, box=window)) for one in (mask, *maps)]
    if rng.random() < flip:
        return tuple(plane[:, ::-1] for plane in (pixels, *ids))
    return (pixels, *ids)


def _resize(pixels: Pixels, size: int) -> Pixels:
    """(h, w, 3) -> (size, size, 3), bilinear with antialiasing."""
    import torch
    import torch.nn.functional as F

    planes = torch.from_numpy(pixels.copy()).permute(2, 0, 1).unsqueeze(0)
    resized: Pixels = (
        F.interpolate(planes, size=(size, size), mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()
    )
    return resized


def central_crop(
    image: Image.Image, mask: Image.Image, crop: int, maps: Sequence[Image.Image] = ()
) -> tuple[Pixels, ...]:
    """Shorter side to ``crop``, then the central square: image (crop, crop, 3), mask (crop, crop), ``maps`` as it."""
    width, height = image.size
    shorter = min(width, height)
    size = (int(crop * width / shorter), int(crop * height / shorter))
    left, top = round((size[0] - crop) / 2), round((size[1] - crop) / 2)
    window = (left, top, left + crop, top + crop)
    pixels = image.resize(size, Image.Resampling.BILINEAR).crop(window)
    ids = [one.resize(size, Image.Resampling.NEAREST).crop(window) for one in (mask, *maps)]
    return (np.asarray(pixels), *(np.asarray(one) for one in ids))


def normalise(pixels: Tensor, *, channels_last: bool = True) -> Tensor:
    """Pixels (B, H, W, 3) uint8 -> images (B, 3, H, W) float32, ImageNet mean 0 and deviation 1, on their device."""
    import torch

    batch, height, width, channels = pixels.shape
    mean, scale = _statistics(pixels.device, width)
    # Rows of interleaved colours: an inner loop over three channels would not be vectorised.
    rows = pixels.reshape(batch, height, width * channels).to(torch.float32).sub_(mean).mul_(scale)
    images = rows.view(batch, height, width, channels).permute(0, 3, 1, 2)
    return images if channels_last else images.contiguous()


@lru_cache(maxsize=32)
def _statistics(device: torch.device, width: int) -> tuple[Tensor, Tensor]:
    """Mean and inverse deviation along a row, kept on the device so that no batch waits for their transfer."""
    import torch

    mean = torch.tensor([255 * value for value in MEAN], device=device).repeat(width)
    return mean, torch.tensor([1 / (255 * value) for value in STD], device=device).repeat(width)
