"""Decoding images and masks with Pillow, with one clear error per kind of broken file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from plopcli.errors import DataError

Pixels = npt.NDArray[np.uint8]


def read_image(path: Path) -> Image.Image:
    """The image as RGB, decoded.

    Raises:
        DataError: The file is missing, or is not an image, or is cut off.
    """
    try:
        with Image.open(path) as file:
            file.load()
            return file if file.mode == "RGB" else file.convert("RGB")
    except FileNotFoundError as error:
        raise DataError(f"Image {path} does not exist.", "A list names it; see `plop prepare`.") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"Image {path} cannot be decoded: {error}.", "Replace the file or drop it.") from error


def read_mask(path: Path) -> Image.Image:
    """The mask as one-channel image of ids (palette index or grey value), decoded.

    Raises:
        DataError: The file is missing or cut off, or it holds colours or 16-bit values instead of ids.
    """
    try:
        with Image.open(path) as mask:
            mask.load()
    except FileNotFoundError as error:
        raise DataError(f"Mask {path} does not exist.", "Every image of a list needs one.") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"Mask {path} cannot be decoded: {error}.", "Replace the file or drop it.") from error
    if mask.mode not in ("P", "L"):
        raise DataError(
            f"Mask {path} is of mode {mask.mode}; 8-bit ids (palette or grey) are needed.",
            "Save masks as palette PNG or 8-bit grey, one class id per pixel, 255 for ignored.",
        )
    return mask


def mask_ids(mask: Image.Image) -> Pixels:
    """The ids (H, W) of a mask; never goes through its colours."""
    return np.asarray(mask)
