"""The label maps of the Semantic Boundaries Dataset, read from MATLAB files of level 5.

Such a file is a header of 128 bytes and a list of elements: a type, a length and the data, padded to 8 bytes. An
element may be a compressed one (zlib), or a matrix, which is a list of elements again: flags, dimensions, name, and
then its numbers, or, if it is a structure, the names of its fields and a matrix for each of them. Source: "MAT-File
Format", The MathWorks, chapter 1. Only what those files need is read.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from plopcli.errors import DataError
from plopcli.files.plain import read_plain

_MATRIX, _COMPRESSED = 14, 15
_STRUCTURE_CLASS = 2
_NUMBERS = {1: "<i1", 2: "<u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8", 12: "<i8", 13: "<u8"}
#: A label map has some hundred kilobytes; more than this is no label map.
_LARGEST = 1 << 26


class _Element(NamedTuple):
    kind: int
    data: bytes


class _Unreadable(ValueError):  # noqa: N818
    """The file is none that can be read; the reason is the message."""


def read_segmentation(path: Path) -> npt.NDArray[np.uint8]:
    """The label map (H, W), uint8, of a file of SBD: the field ``Segmentation`` of the structure ``GTcls``.

    Raises:
        DataError: The file is damaged, or is no such file.
    """
    try:
        return _segmentation(read_plain(path, _LARGEST))
    except (OSError, ValueError, struct.error, zlib.error) as error:
        raise DataError(
            f"{path} holds no label map of SBD ({error}).", "Expected the field GTcls.Segmentation of a MATLAB 5 file."
        ) from error


def _segmentation(content: bytes) -> npt.NDArray[np.uint8]:
    if content[124:128] != b"\x00\x01IM":
        raise _Unreadable("not a little-endian MATLAB file of level 5")
    for element in _elements(content[128:]):
        if element.kind == _COMPRESSED:
            (element,) = _elements(_inflate(element.data))
        if element.kind != _MATRIX:
            continue
        flags, _, name, *rest = _elements(element.data)
        if name.data == b"GTcls" and flags.data[0] == _STRUCTURE_CLASS:
            fields = _fields(rest)
            if "Segmentation" not in fields:
                raise _Unreadable("GTcls has no field Segmentation")
            return _label_map(fields["Segmentation"])
    raise _Unreadable("no structure GTcls")


def _fields(rest: list[_Element]) -> dict[str, _Element]:
    """The fields of a structure of size 1 x 1."""
    (width,) = struct.unpack("<i", rest[0].data)
    if width < 1:
        raise _Unreadable("field names without length")
    names = [rest[1].data[at : at + width].split(b"\0")[0].decode() for at in range(0, len(rest[1].data), width)]
    return dict(zip(names, rest[2:], strict=True))


def _label_map(matrix: _Element) -> npt.NDArray[np.uint8]:
    _, dimensions, _, numbers = _elements(matrix.data)
    shape = struct.unpack(f"<{len(dimensions.data) // 4}i", dimensions.data)
    if len(shape) != 2 or numbers.kind not in _NUMBERS:
        raise _Unreadable("Segmentation is no matrix of numbers")
    labels = np.frombuffer(numbers.data, _NUMBERS[numbers.kind]).reshape(shape, order="F")
    exact = labels.astype(np.uint8)
    if not np.array_equal(exact, labels):
        raise _Unreadable("Segmentation holds other numbers than 0 to 255")
    return np.ascontiguousarray(exact)


def _elements(data: bytes) -> Iterator[_Element]:
    at = 0
    while at + 8 <= len(data):
        kind, length = struct.unpack_from("<II", data, at)
        if kind >> 16:  # up to four bytes of data share the eight with their type and length
            kind, length, start, step = kind & 0xFFFF, kind >> 16, at + 4, 8
        else:
            start, step = at + 8, 8 + length + (0 if kind == _COMPRESSED else -length % 8)
        if start + length > len(data):
            raise _Unreadable("it ends too early")
        yield _Element(kind, data[start : start + length])
        at += step


def _inflate(data: bytes) -> bytes:
    stream = zlib.decompressobj()
    inflated = stream.decompress(data, _LARGEST)
    if not stream.eof:
        raise _Unreadable("a compressed part is incomplete or too large")
    return inflated
