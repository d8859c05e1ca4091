"""Reading files from strangers: tensors and plain values, never code."""

from __future__ import annotations

import re
import warnings
import zipfile
from pathlib import Path

import torch

from plopcli.errors import DamagedFileError, DataError, RefusedFileError
from plopcli.numpy_scalars import STAND_INS


def read_untrusted(path: Path) -> object:
    """Reads a file that `torch.save` wrote, onto the CPU, without running any code in it.

    NumPy's scalars, which training programs leave in their checkpoints, come back as numbers of Python.

    Raises:
        RefusedFileError: It needs more than tensors and plain values.
        DamagedFileError: It is broken or no such file; or it is compressed, which torch never does, and which lets a
            small file fill the memory.
        DataError: It is missing or unreadable.
    """
    _refuse_compressed(path)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(STAND_INS):
            # Foreign pickles make torch warn before it refuses them; the refusal says enough.
            warnings.simplefilter("ignore", UserWarning)
            content: object = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise DataError(f"There is no file {path}.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # a broken or foreign file fails inside torch in any way it likes
        code = re.search(r"GLOBAL (\S+)", str(error))
        if code is not None:
            raise RefusedFileError(
                f"{path} was refused: it needs the code of {code[1]} to be loaded, and code from a file is never run.",
                "If you trust the file, save its tensors alone: torch.save(model.state_dict(), PATH).",
            ) from error
        raise DamagedFileError(
            f"{path} is no file that torch.save wrote, or it is damaged ({type(error).__name__}).",
            "Check its size and where it came from; a download that stopped half-way has to be repeated.",
        ) from error
    return content


def _refuse_compressed(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            compressed = any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist())
    except Exception:  # no zip archive, or a damaged one: torch looks at it next
        return
    if compressed:
        raise DamagedFileError(
            f"{path} was refused: it is a compressed archive, and torch.save compresses nothing.",
            "Unpack it first, if it is an archive of another program.",
        )
