"""Class maps of single pictures at their own size."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image

from plopcli.data.transforms import normalise
from plopcli.devices.precision import Precision
from plopcli.models.segmenter import Segmenter


def predict(
    model: Segmenter, image: Image.Image, crop: int, device: torch.device, precision: Precision
) -> npt.NDArray[np.uint8]:
    """Segments a picture of any size.

    Args:
        model: The network, in eval mode on ``device``.
        image: RGB picture.
        crop: Its shorter side is brought to this many pixels, as in evaluation; nothing is cut off.
        device: Where to compute.
        precision: As in training.

    Returns:
        Learned class ids (H, W) at the picture's own size.
    """
    width, height = image.size
    shorter = min(width, height)
    scaled = image.resize((round(width * crop / shorter), round(height * crop / shorter)), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.asarray(scaled).copy()).unsqueeze(0).to(device)
    channels_last = next(model.parameters()).is_contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), precision.autocast():
        small = model(normalise(pixels, channels_last=channels_last)).small
    logits = F.interpolate(small.float(), size=(height, width), mode="bilinear", align_corners=False)
    labels: npt.NDArray[np.uint8] = logits.argmax(dim=1)[0].to(torch.uint8).cpu().numpy()
    return labels
