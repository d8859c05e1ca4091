"""Decoding images and masks with Pillow, with one clear error per kind of broken file."""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from plopcli.data.samples import IMAGE_SUFFIXES, Sample
from plopcli.errors import DataError

# Pictures of 90 to 179 million pixels are read; Pillow would warn of each.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

Pixels = npt.NDArray[np.uint8]

#: Pillow reads many more, some by starting other programs. A file is what it begins with, whatever its name.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
#: What can be wrong with a file or a pair, and what to do about it.
KINDS = {
    "image missing": "Restore the image, take it off its list, or remove its mask.",
    "image empty": "The file has no byte: copy it again.",
    "image broken": "The file is cut off or no picture: copy it again.",
    "image of another format": f"Save it as one of {', '.join(_FORMATS)}; HEIC is what phones write in place of JPEG.",
    "image too large": "Make it smaller or cut it into tiles, and its mask alike.",
    "image of 12 bits": "Save it with 8 bits per colour, or scaled to all 16.",
    "image unreadable": "See to the access to the file, and to the disk or network that it is on.",
    "mask missing": "Restore the mask, or take the image off its list.",
    "mask empty": "The file has no byte: copy it again.",
    "mask broken": "The file is cut off or no picture: copy it again.",
    "mask of another format": "Save it as palette PNG or 8-bit grey PNG.",
    "mask too large": "Make it smaller or cut it into tiles, and its image alike.",
    "mask unreadable": "See to the access to the file, and to the disk or network that it is on.",
    "mask in colour": (
        "Masks hold one class id per pixel, as palette PNG or 8-bit grey. Colours are converted by: "
        "plop prepare NAME --palette FILE --convert-to DIR"
    ),
    "mask of 16 bits": "Save masks as 8-bit grey or palette PNG; ids are 0 to 253, and 255 for ignored.",
    "mask of another kind": "Save masks as 8-bit grey or palette PNG, one class id per pixel, 255 for ignored.",
    "sizes differ": "Save image and mask at the same size, and pictures of a phone upright.",
    "orientation unclear": (
        "Masks drawn on the pictures as viewers show them: mogrify -auto-orient IMAGE. "
        "Masks of the pixels as they are stored: exiftool -Orientation= IMAGE."
    ),
    "unknown colours": "Name the colours in the palette; soft edges and JPEG blend colours: export the masks anew.",
    "unknown ids": "Ids begin with 0 in the order of the class names; 255 is ignored.",
}
#: What the machine, not the file, lacks: open files, memory.
_SHORT_OF = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_LOSSY = ("JPEG", "MPO", "WEBP")
_EXIF_ORIENTATION = 274
#: What makes a picture upright, by its EXIF orientation.
_TURNS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
#: Where Pillow leaves what a file says of its orientation.
_POSED = frozenset({"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"})


class UnusableFileError(DataError):
    """An image or mask that cannot be used; ``kind`` is one of `KINDS`."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message, KINDS[kind])
        self.kind = kind

    def __reduce__(self) -> tuple[type[UnusableFileError], tuple[str, str]]:
        """Keeps the kind where an error passes between processes."""
        return type(self), (self.kind, self.message)


def read_image(path: Path) -> Image.Image:
    """A picture as viewers show it, in RGB, decoded: the one reading for training, measuring and prediction.

    Raises:
        DataError: The file is missing, or is not an image, or is cut off, or is too large.
    """
    with _opened(path, "image") as file:
        return _decoded(file, path)[0]


def as_shown(image: Image.Image) -> Image.Image:
    """A Pillow image as viewers show it, in RGB.

    It is turned as its EXIF orientation says, and transparent parts are white. Values of more than 8 bits are brought
    to 0..255 from the least of the ranges 0..255, 0..4095 (12 bits) and 0..65535 that holds them all.
    """
    image.load()
    seen = _turned(image, _orientation(image))
    if seen.mode.startswith(("I", "F")):
        values = np.nan_to_num(np.asarray(seen).astype(np.float64)).clip(min=0)
        highest = values.max(initial=0)
        # Pillow itself cuts off what is above 255.
        limits = (1, 255, 65535) if seen.mode.startswith("F") else (255, 4095, 65535)
        limit = next((limit for limit in limits if highest <= limit), highest)
        seen = Image.fromarray((values * (255 / limit)).round().astype(np.uint8))
    if seen.has_transparency_data:
        seen = seen.convert("RGBA")
        seen = Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen)
    return seen if seen.mode == "RGB" else seen.convert("RGB")


def read_pair(sample: Sample) -> tuple[Image.Image, Image.Image]:
    """The picture of a sample as `read_image` gives it, and its mask as `read_mask` does, turned along with it.

    Raises:
        DataError: As these; or the picture is to be shown turned, and nothing tells whether its mask is drawn so.
    """
    with _opened(sample.image, "image") as file:
        image, pose = _decoded(file, sample.image)
    return image, _along(sample, pose)


def read_mask_of(sample: Sample) -> Image.Image:
    """The mask of `read_pair`; of the picture, only the header is read."""
    return check_readable(sample, whole=False)[1]


def check_readable(sample: Sample, *, whole: bool) -> tuple[tuple[int, int], Image.Image]:
    """Width and height of the picture of a sample as it is shown, and its mask.

    Args:
        sample: The pair.
        whole: Decode all of the picture, to know that it can be; else its header alone is read.

    Raises:
        DataError: As `read_pair`.
    """
    with _opened(sample.image, "image") as file:
        pose = _pose(file)
        if whole:
            # A JPEG is read to its end at an eighth of its size, without the work that all pixels would be.
            file.draft(None, (max(1, file.width // 8), max(1, file.height // 8)))
            found = _decoded(file, sample.image)[1]
            pose = found if file.format == "PNG" else pose
    return pose.shown, _along(sample, pose)


def read_mask(path: Path) -> Image.Image:
    """The mask as one-channel image of ids (palette index or grey value as stored), decoded.

    Raises:
        DataError: The file is missing or cut off, or it holds colours or 16-bit values instead of ids.
    """
    return _mask(path)[0]


def mask_palette(path: Path) -> list[int]:
    """Red, green and blue of each index of a palette mask, one after the other; of other masks none."""
    with _opened(path, "mask") as mask:
        return (mask.getpalette() or []) if mask.mode == "P" else []


def mask_ids(mask: Image.Image) -> Pixels:
    """The ids (H, W) of a mask; never goes through its colours."""
    return np.asarray(mask)


def _decoded(file: ImageFile, path: Path) -> tuple[Image.Image, _Pose]:
    deep = ";16" in _raw_mode(file)
    pose = _pose(file)
    shown = as_shown(file)
    # Of 16 bits per colour, Pillow keeps the upper 8.
    if deep and file.mode.startswith("RGB") and 0 < int(np.asarray(shown).max(initial=0)) < 16:
        raise UnusableFileError(
            "image of 12 bits", f"Image {path} holds 12 bits or fewer in 16 per colour, of which the upper 8 are read."
        )
    # A PNG may say it behind its pixels.
    return shown, _pose(file) if file.format == "PNG" else pose


def _mask(path: Path) -> tuple[Image.Image, int]:
    """The ids as they are shown, and the EXIF orientation of the file."""
    with _opened(path, "mask") as mask:
        raw, pose = _raw_mode(mask), _pose(mask)
        mask.load()
        ids: Image.Image = mask
    if mask.mode not in ("P", "L", "1") or mask.format in _LOSSY:
        raise UnusableFileError(*_no_mask(mask, path))
    if mask.mode != "P" and raw != "L":
        ids = _as_stored(mask, raw)
    return _turned(ids, 1 if mask.format == "TIFF" else pose.orientation), pose.orientation


def _no_mask(mask: ImageFile, path: Path) -> tuple[str, str]:
    """Kind of the problem, and what it is."""
    if mask.mode in ("P", "L", "1"):
        kind, what = "mask of another kind", f"is a {mask.format}, whose compression changes ids"
    elif mask.mode.startswith(("I", "F")):
        kind, what = "mask of 16 bits", f"has 16 or 32 bits per pixel (mode {mask.mode}), 8-bit ids are needed"
    elif mask.mode.startswith(("RGB", "CMYK", "YCbCr")):
        kind, what = "mask in colour", f"is in colour (mode {mask.mode}), 8-bit ids are needed"
    else:
        kind, what = "mask of another kind", f"is of mode {mask.mode}, 8-bit ids are needed"
    return kind, f"Mask {path} {what}."


def _raw_mode(file: ImageFile) -> str:
    """How Pillow is about to unpack the pixels: mode, and behind a semicolon bits and order, as in ``L;4``."""
    arguments = file.tile[0].args if file.tile else ""
    raw = arguments[0] if isinstance(arguments, tuple | list) and arguments else arguments
    return raw if isinstance(raw, str) else ""


def _as_stored(mask: Image.Image, raw: str) -> Image.Image:
    """The values (mode L) that a grey image of few bits was stored with; Pillow spreads them over 0..255."""
    form = raw.partition(";")[2]
    bits = 1 if mask.mode == "1" else next((int(sign) for sign in form if sign in "24"), 8)
    values = np.asarray(mask.convert("L")) // np.uint8(255 // ((1 << bits) - 1))
    if "I" in form and mask.format == "TIFF":  # which may count from white
        values = np.uint8((1 << bits) - 1) - values
    return Image.fromarray(values)


class _Pose(NamedTuple):
    """How a picture lies in its file: its EXIF orientation, and its size as stored and as shown."""

    orientation: int
    stored: tuple[int, int]
    shown: tuple[int, int]


def _pose(file: ImageFile) -> _Pose:
    """Before it is decoded: of a TIFF, Pillow turns the pixels then, and gives the size as shown from the beginning."""
    orientation = _orientation(file)
    other = file.size[::-1] if orientation >= 5 else file.size
    return _Pose(orientation, other, file.size) if file.format == "TIFF" else _Pose(orientation, file.size, other)


def _orientation(image: Image.Image) -> int:
    if image.format == "PNG" and not _POSED.intersection(image.info):
        return 1  # and else Pillow would decode the image to look behind its pixels
    with suppress(Exception):  # what it says of itself may be damaged where its pixels are not
        value = image.getexif().get(_EXIF_ORIENTATION, 1)
        return value if value in _TURNS else 1
    return 1


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    method = _TURNS[orientation]
    if method is None:
        return image
    turned = image.transpose(method)
    for key in _POSED:
        turned.info.pop(key, None)
    return turned


def _along(sample: Sample, pose: _Pose) -> Image.Image:
    """The mask of a sample as its picture is shown."""
    mask, own = _mask(sample.mask)
    if own == pose.orientation:
        return mask
    if own == 1 and mask.size != pose.stored:
        return mask  # drawn on the picture as shown, or of another size altogether
    if own == 1 and (sample.drawn_as_stored or pose.stored != pose.shown):
        return _turned(mask, pose.orientation)
    raise UnusableFileError(
        "orientation unclear",
        f"{sample.image} is to be shown turned or mirrored (EXIF orientation {pose.orientation}), and nothing tells "
        f"whether its mask {sample.mask} (orientation {own}) is drawn on it as shown or as stored",
    )


@contextmanager
def _opened(path: Path, role: str) -> Iterator[ImageFile]:
    """The file, its header read; whatever fails inside is told as what is wrong with it."""
    with told(path, role):
        if os.path.exists(path) and not os.path.isfile(path):  # noqa: PTH110, PTH113, a pipe would be waited for
            raise UnusableFileError(f"{role} unreadable", f"{role.capitalize()} {path} is not a file.")
        with Image.open(path, formats=_FORMATS) as file:
            yield file


def _is_of_another_format(path: Path) -> bool:
    """Whether a file that is none of `_FORMATS` was not meant to be, or is HEIC or AVIF under any name."""
    with path.open("rb") as file:
        return path.suffix.lower() not in IMAGE_SUFFIXES or file.read(12)[4:8] == b"ftyp"


@contextmanager
def told(source: Path | str, role: str = "image") -> Iterator[None]:
    """Tells whatever fails inside as what is wrong with a file.

    Args:
        source: The file; or what is opened already, in words.
        role: image or mask.

    Raises:
        DataError: It did.
    """
    name = f"{role.capitalize()} {source}"
    try:
        yield
    except (DataError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise UnusableFileError(f"{role} missing", f"{name} does not exist.") from error
    except Exception as error:  # a damaged file makes Pillow fail in any way it likes
        if isinstance(error, OSError) and error.errno is not None:  # from the system; Pillow's own have no number
            if error.errno in _SHORT_OF:
                raise
            raise UnusableFileError(f"{role} unreadable", f"{name} cannot be read: {error.strerror}.") from error
        if "\0" in name:
            raise UnusableFileError(f"{role} unreadable", f"{name!r} is no name that a file can have.") from error
        words = str(error).partition(", could be")[0].rstrip(".")
        if isinstance(error, Image.DecompressionBombError) or "too large" in words.lower():
            raise UnusableFileError(f"{role} too large", f"{name} is too large to be read: {words}.") from error
        if isinstance(source, Path) and source.is_file() and source.stat().st_size == 0:
            raise UnusableFileError(f"{role} empty", f"{name} is empty (0 bytes).") from error
        if isinstance(error, UnidentifiedImageError) and isinstance(source, Path) and _is_of_another_format(source):
            raise UnusableFileError(f"{role} of another format", f"{name} is of a format that is not read.") from error
        raise UnusableFileError(f"{role} broken", f"{name} cannot be decoded: {words}.") from error
