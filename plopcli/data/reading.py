"""Decoding images and masks with Pillow, with one clear error per kind of broken file."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps
from PIL.ImageFile import ImageFile

from plopcli.errors import DataError

Pixels = npt.NDArray[np.uint8]

#: What can be wrong with a file or a pair, and what to do about it.
KINDS = {
    "image missing": "Restore the image, take it off its list, or remove its mask.",
    "image empty": "The file has no byte: copy it again.",
    "image broken": "The file is cut off or no picture: copy it again.",
    "image unreadable": "See to the access to the file, and to the disk or network that it is on.",
    "mask missing": "Restore the mask, or take the image off its list.",
    "mask empty": "The file has no byte: copy it again.",
    "mask broken": "The file is cut off or no picture: copy it again.",
    "mask unreadable": "See to the access to the file, and to the disk or network that it is on.",
    "mask in colour": (
        "Masks hold one class id per pixel, as palette PNG or 8-bit grey. Colours are converted by: "
        "plop prepare NAME --palette FILE --convert-to DIR"
    ),
    "mask of 16 bits": "Save masks as 8-bit grey or palette PNG; ids are 0 to 253, and 255 for ignored.",
    "mask of another kind": "Save masks as 8-bit grey or palette PNG, one class id per pixel, 255 for ignored.",
    "sizes differ": "Save image and mask at the same size, and pictures of a phone upright.",
    "unknown colours": "Name the colours in the palette; soft edges and JPEG blend colours: export the masks anew.",
    "unknown ids": "Ids begin with 0 in the order of the class names; 255 is ignored.",
}
#: What the machine, not the file, lacks: open files, memory.
_SHORT_OF = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
#: Pillow reads many more, some by starting other programs. A file is what it begins with, whatever its name.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
_LOSSY = ("JPEG", "WEBP")
_EXIF_ORIENTATION = 274


class UnusableFileError(DataError):
    """An image or mask that cannot be used; ``kind`` is one of `KINDS`."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message, KINDS[kind])
        self.kind = kind

    def __reduce__(self) -> tuple[type[UnusableFileError], tuple[str, str]]:
        """Keeps the kind where an error passes between processes."""
        return type(self), (self.kind, self.message)


def read_image(path: Path) -> Image.Image:
    """The image as RGB, decoded.

    Raises:
        DataError: The file is missing, or is not an image, or is cut off.
    """
    with _opened(path, "image") as image:
        image.load()
        return image if image.mode == "RGB" else image.convert("RGB")


def read_photograph(path: Path) -> Image.Image:
    """A picture as viewers show it, in RGB; for pictures that have no mask to stay beside.

    It is turned as it says of itself, transparent parts are white, and values of more than 8 bits keep their range.

    Raises:
        DataError: The file is missing, or is not an image, or is cut off.
    """
    with _opened(path, "image") as image:
        image.load()
        shown: Image.Image = image
        with suppress(Exception):  # what it says of itself may be damaged where its pixels are not
            shown = ImageOps.exif_transpose(image)
        return shown if shown.mode == "RGB" else _as_viewed(shown)


def _as_viewed(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        values = np.nan_to_num(np.asarray(image).astype(np.float64)).clip(min=0)
        highest = values.max(initial=0)
        # Pillow itself cuts off what is above 255.
        limits = (1, 255, 65535) if image.mode.startswith("F") else (255, 65535)
        limit = next((limit for limit in limits if highest <= limit), highest)
        image = Image.fromarray((values * (255 / limit)).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def image_size(path: Path, *, whole: bool) -> tuple[int, int]:
    """Width and height of an image.

    Args:
        path: The file.
        whole: Decode all of it, to know that it can be; else its header alone is read.

    Raises:
        DataError: As `read_image`.
    """
    with _opened(path, "image") as image:
        size = image.size
        if whole:
            # A JPEG is read to its end at an eighth of its size, without the work that all pixels would be.
            image.draft(None, (max(1, size[0] // 8), max(1, size[1] // 8)))
            image.load()
        return size


def is_turned(path: Path) -> bool:
    """Whether the image says of itself that it is to be shown turned by 90 degrees."""
    try:
        with Image.open(path, formats=_FORMATS) as image:
            return bool(image.getexif().get(_EXIF_ORIENTATION, 1) >= 5)
    except Exception:  # what it says of itself is as damaged as the rest may be
        return False


def read_mask(path: Path) -> Image.Image:
    """The mask as one-channel image of ids (palette index or grey value), decoded.

    Raises:
        DataError: The file is missing or cut off, or it holds colours or 16-bit values instead of ids.
    """
    with _opened(path, "mask") as mask:
        mask.load()
    if mask.mode in ("P", "L") and mask.format not in _LOSSY:
        return mask
    if mask.mode in ("P", "L"):
        kind, what = "mask of another kind", f"is a {mask.format}, whose compression changes ids"
    elif mask.mode.startswith(("I", "F")):
        kind, what = "mask of 16 bits", f"has 16 or 32 bits per pixel (mode {mask.mode}), 8-bit ids are needed"
    elif mask.mode.startswith(("RGB", "CMYK", "YCbCr")):
        kind, what = "mask in colour", f"is in colour (mode {mask.mode}), 8-bit ids are needed"
    else:
        kind, what = "mask of another kind", f"is of mode {mask.mode}, 8-bit ids are needed"
    raise UnusableFileError(kind, f"Mask {path} {what}.")


def mask_ids(mask: Image.Image) -> Pixels:
    """The ids (H, W) of a mask; never goes through its colours."""
    return np.asarray(mask)


@contextmanager
def _opened(path: Path, role: str) -> Iterator[ImageFile]:
    """The file, its header read; whatever fails inside is told as what is wrong with it."""
    name = f"{role.capitalize()} {path}"
    if os.path.exists(path) and not os.path.isfile(path):  # noqa: PTH110, PTH113, a pipe or device would be waited for
        raise UnusableFileError(f"{role} unreadable", f"{name} is not a file.")
    try:
        with Image.open(path, formats=_FORMATS) as file:
            yield file
    except FileNotFoundError as error:
        raise UnusableFileError(f"{role} missing", f"{name} does not exist.") from error
    except MemoryError:
        raise
    except Exception as error:  # a damaged file makes Pillow fail in any way it likes
        if isinstance(error, OSError) and error.errno is not None:  # from the system; Pillow's own have no number
            if error.errno in _SHORT_OF:
                raise
            raise UnusableFileError(f"{role} unreadable", f"{name} cannot be read: {error.strerror}.") from error
        if path.is_file() and path.stat().st_size == 0:
            raise UnusableFileError(f"{role} empty", f"{name} is empty (0 bytes).") from error
        raise UnusableFileError(f"{role} broken", f"{name} cannot be decoded: {error}.") from error
