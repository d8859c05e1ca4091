"""Files of tensors and plain values that are either whole and as they were written, or refused.

A file is what `torch.save` writes of a dict: an archive that keeps a check sum (CRC-32) of each of its records, which
torch does not compare when it reads. Here they are compared, so that no flipped bit gives another tensor. Where a
digest lies beside the file (`plopcli.files.digest`), every byte has to fit it as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plopcli.errors import DamagedFileError, DataError
from plopcli.files.atomic import write_atomic
from plopcli.files.digest import check_digest
from plopcli.files.disk import writing
from plopcli.files.untrusted import read_untrusted

#: Where earlier versions kept a digest of the content, in the content itself.
_OLD_DIGEST = "digest"
_REMEDY = "Take a copy of the file, or make it anew."


def write_verified(path: Path, content: Mapping[str, Any]) -> None:
    """Writes ``content``; ``path`` holds the old or the new content whole at any moment, after a power cut too.

    Args:
        path: The file; its folder exists.
        content: Names to tensors, None, bools, ints, floats, strings, bytes, and lists, tuples and dicts of these.

    Raises:
        MachineError: The disk is full, or the folder cannot be written. A file that was there before is intact.
    """
    content = _plain(content)
    needed = sum(tensor.nbytes for tensor in _tensors(content))
    with writing(path, needed):
        write_atomic(path, lambda file: torch.save(content, file))


def read_verified(path: Path) -> dict[str, Any]:
    """What `write_verified` wrote, on the CPU; no code from the file is run.

    Raises:
        DamagedFileError: The file was damaged or edited, or is another kind of file.
        DataError: It is missing or cannot be read.
    """
    try:
        check_digest(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    content = read_untrusted(path, sums=True)
    if not isinstance(content, dict):
        raise DamagedFileError(f"{path} holds a {type(content).__name__} instead of names and values.", _REMEDY)
    try:
        # A small file can claim a huge tensor by strides of 0.
        plain = all(_dense(tensor) for tensor in _tensors(content))
    except RecursionError:
        plain = False
    if not plain:
        raise DamagedFileError(f"{path} is damaged, or not of plop: it holds other than plain tensors.", _REMEDY)
    content.pop(_OLD_DIGEST, None)
    return content


def _dense(tensor: Tensor) -> bool:
    """Whether a tensor is all of its storage, so that the file holds its elements and no more."""
    plain = type(tensor) is Tensor and tensor.layout == torch.strided and tensor.device.type == "cpu"
    return (
        plain
        and not tensor.is_quantized
        and tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    )


def _plain(value: Any) -> Any:
    """``value`` on the CPU, in plain dicts, each tensor with no more memory behind it than its own."""
    if isinstance(value, Tensor) and value.layout == torch.strided:
        tensor = value.detach().cpu()
        return tensor if _dense(tensor) else tensor.clone()
    if isinstance(value, Mapping):
        return {_plain(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return (list if isinstance(value, list) else tuple)(_plain(item) for item in value)
    assert value is None or type(value) in (bool, int, float, str, bytes), f"{type(value).__name__} is no plain value"
    return value


def _tensors(value: object, seen: set[int] | None = None) -> Iterator[Tensor]:
    """All tensors in nested dicts, lists and tuples; what is there many times counts once."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        seen.add(id(value))
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item, seen)
