"""Reading files from strangers: tensors and plain values, never code."""

from __future__ import annotations

import errno
import re
import warnings
import zipfile
from pathlib import Path

import torch

from plopcli.errors import DamagedFileError, DataError, RefusedFileError
from plopcli.files.numpy_scalars import STAND_INS
from plopcli.files.plain import open_plain

#: Records of an archive that `torch.jit.save` or `torch.export.save` wrote.
_PROGRAM = re.compile(r"(^|/)(constants\.pkl|archive_format|code/.+\.py)$")
_REMEDY = "Check its size and where it came from; a download that stopped half-way has to be repeated."


def read_untrusted(path: Path, *, sums: bool = False) -> object:
    """Reads a file that `torch.save` wrote, onto the CPU, without running any code in it.

    NumPy's scalars, which training programs leave in their checkpoints, come back as numbers of Python.

    Args:
        path: The file.
        sums: Whether to compare the check sums (CRC-32) of the archive's records as well, which torch does not.

    Raises:
        RefusedFileError: It needs more than tensors and plain values.
        DamagedFileError: It is broken or no such file; or it is compressed, which torch never does, and which lets a
            small file fill the memory.
        DataError: It is missing or unreadable.
    """
    try:
        _check_archive(path, sums=sums)
        with warnings.catch_warnings(), torch.serialization.safe_globals(STAND_INS):
            # Foreign pickles make torch warn before it refuses them; the refusal says enough.
            warnings.simplefilter("ignore", UserWarning)
            content: object = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise DataError(f"There is no file {path}.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    except DamagedFileError:
        raise
    except Exception as error:  # a broken or foreign file fails inside torch in any way it likes
        code = re.search(r"GLOBAL (\S+)", str(error))
        if code is not None:
            raise RefusedFileError(
                f"{path} was refused: it needs the code of {code[1]} to be loaded, and code from a file is never run.",
                "If you trust the file, save its tensors alone: torch.save(model.state_dict(), PATH).",
            ) from error
        raise DamagedFileError(
            f"{path} is no file that torch.save wrote, or it is damaged ({type(error).__name__}).", _REMEDY
        ) from error
    return content


def _check_archive(path: Path, *, sums: bool) -> None:
    """Refuses archives that torch would read and that are not what torch writes; passes over other kinds of files."""
    with open_plain(path) as file:
        if file.read(4) != b"PK\x03\x04":  # what torch takes for an archive
            return
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            exported = any(_PROGRAM.search(member.filename) for member in members)
            compressed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
            # Members that overlap let a small file claim to be a large one.
            unsound = sum(member.file_size for member in members) > path.stat().st_size
            broken = archive.testzip() if sums and not compressed and not unsound else None
    except Exception as error:  # a damaged archive fails inside zipfile in any way it likes, by seeking nowhere as well
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise DamagedFileError(f"{path} is a damaged archive: {error}.", _REMEDY) from error
    if exported:
        raise RefusedFileError(
            f"{path} is an exported program (torch.jit or torch.export), which is never run, and no file of weights.",
            "If you trust the file, save its tensors alone: torch.save(torch.jit.load(PATH).state_dict(), NEW), or of "
            "torch.export.load(PATH).",
        )
    if compressed:
        raise DamagedFileError(
            f"{path} was refused: it is a compressed archive, and torch.save compresses nothing.",
            "Unpack it first, if it is an archive of another program.",
        )
    if unsound or broken:
        what = f"its record {broken} does not fit its check sum" if broken else "its records are larger than the file"
        raise DamagedFileError(f"{path} is damaged: {what}.", _REMEDY)
