"""Files of tensors and plain values that are either whole and as they were written, or refused.

What is written gets its name only when it is complete, and holds a digest of itself; what is read is compared with that
digest. A file is what `torch.save` writes of a dict, so that ``torch.load(path, weights_only=True)`` reads it as well.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from rich.filesize import decimal as size_text
from torch import Tensor

from plopcli.data.disk import free_bytes
from plopcli.errors import DamagedFileError, MachineError
from plopcli.untrusted import read_untrusted

#: Where the digest stands, beside the content.
DIGEST = "digest"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: File systems that cannot flush a folder say so with one of these.
_NO_FOLDER_FLUSH = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EISDIR)
_REMEDY = "Take a copy of the file, or make it anew."


def write_verified(path: Path, content: Mapping[str, Any]) -> None:
    """Writes ``content`` with a digest of it; ``path`` holds the old or the new content whole at any moment.

    After a power cut too. What earlier processes, killed in the middle, have left of the same file is removed; there
    is to be one writer at a time.

    Args:
        path: The file; its folder exists.
        content: Names to tensors, None, bools, ints, floats, strings, bytes, and lists, tuples and dicts of these.

    Raises:
        MachineError: The disk is full, or the folder cannot be written. A file that was there before is intact.
    """
    content = _plain(content)
    assert DIGEST not in content, f"{DIGEST} names the digest"
    content = {**content, DIGEST: content_digest(content)}
    write_whole(path, lambda file: torch.save(content, file), _bytes_of(content))


def write_whole(path: Path, write: Callable[[BinaryIO], object], needed: int) -> None:
    """Writes a file so that ``path`` holds the old or the new content whole at any moment, after a power cut too.

    Args:
        path: The file; its folder exists.
        write: Writes the content.
        needed: About how many bytes that are, for the message that the disk is full.

    Raises:
        MachineError: The disk is full, or the folder cannot be written. A file that was there before is intact.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    with _refusals_told(path, temporary, needed):
        for leftover in path.parent.glob(f"{glob.escape(path.name)}.*.part"):
            leftover.unlink(missing_ok=True)
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _flush_folder(path.parent)


def read_verified(path: Path) -> dict[str, Any]:
    """What `write_verified` wrote, on the CPU; no code from the file is run.

    Raises:
        DamagedFileError: The file was damaged or edited, or is another kind of file.
        DataError: It is missing or cannot be read.
    """
    content, verified = read_with_or_without_digest(path)
    if not verified:
        raise DamagedFileError(f"{path} holds no digest of its content: it is damaged, or another file.", _REMEDY)
    return content


def read_with_or_without_digest(path: Path) -> tuple[dict[str, Any], bool]:
    """As `read_verified`, for kinds of files that once were written without a digest.

    Returns:
        The content without the digest, and whether there was one, which then fits.
    """
    content = read_untrusted(path)
    if not isinstance(content, dict):
        raise DamagedFileError(f"{path} holds a {type(content).__name__} instead of names and values.", _REMEDY)
    if DIGEST not in content:
        return content, False
    stored = content.pop(DIGEST)
    try:
        fits = content_digest(content) == stored
    except NotPlainError:
        fits = False
    if not fits:
        raise DamagedFileError(f"{path} is damaged: its content does not fit the digest that it holds.", _REMEDY)
    return content, True


class NotPlainError(TypeError):
    """Content that is neither tensor nor plain value."""


def content_digest(content: object) -> str:
    """SHA-256 of tensors (type, shape, strides, bytes) and plain values in a canonical form, as hexadecimal digits.

    The names and their order count, too. Two contents with the same digest are the same.

    Raises:
        NotPlainError: There is something else in it.
    """
    digest = hashlib.sha256()
    for piece in _canonical(content):
        digest.update(piece)
    return digest.hexdigest()


def _canonical(value: object) -> Iterator[bytes | memoryview]:
    """Bytes that no other value has: each part begins with its kind, and with its length where that is open."""
    kind = type(value)
    if isinstance(value, Tensor):
        yield from _canonical_tensor(value)
    elif value is None or kind in (bool, int):
        yield f"{kind.__name__} {value};".encode()
    elif isinstance(value, float) and kind is float:
        yield b"float" + struct.pack("<d", value)
    elif isinstance(value, str) and kind is str:
        encoded = value.encode("utf-8", "surrogatepass")
        yield f"str {len(encoded)};".encode() + encoded
    elif isinstance(value, bytes) and kind is bytes:
        yield f"bytes {len(value)};".encode() + value
    elif isinstance(value, (list, tuple)) and kind in (list, tuple):
        yield f"{kind.__name__} {len(value)};".encode()
        for item in value:
            yield from _canonical(item)
    elif isinstance(value, dict) and kind is dict:
        yield f"dict {len(value)};".encode()
        for name, item in value.items():
            yield from _canonical(name)
            yield from _canonical(item)
    else:
        raise NotPlainError(f"{kind.__name__} is neither a tensor nor a plain value")


def _canonical_tensor(tensor: Tensor) -> Iterator[bytes | memoryview]:
    plain = type(tensor) is Tensor and tensor.layout == torch.strided and tensor.device.type == "cpu"
    # A small file can claim a huge tensor by strides of 0: what has more elements than bytes is never unfolded.
    if not plain or not _dense(tensor):
        raise NotPlainError(f"not a plain tensor but {type(tensor).__name__}, {tensor.layout}, on {tensor.device}")
    yield f"tensor {tensor.dtype} {tuple(tensor.shape)} {tensor.stride()} {tensor.requires_grad};".encode()
    # numpy knows no bfloat16, but everything is bytes.
    yield tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _dense(tensor: Tensor) -> bool:
    """Whether a tensor is all of its storage, so that the file holds its elements and no more."""
    return not tensor.is_quantized and tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def _plain(value: Any) -> Any:
    """``value`` on the CPU, in plain dicts, each tensor with no more memory behind it than its own."""
    if isinstance(value, Tensor) and value.layout == torch.strided:
        tensor = value.detach().cpu()
        return tensor if _dense(tensor) else tensor.clone()
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return (list if isinstance(value, list) else tuple)(_plain(item) for item in value)
    return value


def _bytes_of(value: object) -> int:
    if isinstance(value, Tensor):
        return value.untyped_storage().nbytes()
    if isinstance(value, dict):
        return sum(map(_bytes_of, value.values()))
    return sum(map(_bytes_of, value)) if isinstance(value, (list, tuple)) else 0


@contextmanager
def _refusals_told(path: Path, temporary: Path, needed: int) -> Iterator[None]:
    """Removes the temporary file whatever happens, and tells what the system refuses."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        refusal = _refusal_behind(error)
        if refusal is None:
            raise
        _remove(temporary)
        intact = " What it held before is intact." if path.exists() else ""
        if refusal.errno not in _FULL:
            raise MachineError(
                f"{path} cannot be written: {refusal.strerror or refusal}.{intact}",
                "Give access to the folder, or choose another one.",
            ) from error
        free = size_text(free_bytes(path.parent))
        raise MachineError(
            f"The disk is full: {path} needs {size_text(needed)}, and {free} are free.{intact}",
            "Free some room, then go on with the same command and --resume.",
        ) from error
    finally:
        _remove(temporary)


def _remove(temporary: Path) -> None:
    with suppress(OSError):  # what could not be written can often not be removed either
        temporary.unlink()


def _refusal_behind(error: BaseException | None) -> OSError | None:
    """The system's refusal; torch follows it up with an error of its own when it closes its archive."""
    while error is not None:
        if isinstance(error, OSError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _flush_folder(folder: Path) -> None:
    """Makes the new name of a file survive a power cut."""
    with suppress(PermissionError):  # Windows opens no folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno not in _NO_FOLDER_FLUSH:
                raise
        finally:
            os.close(handle)
