"""Reading files from strangers: tensors and plain values, never code."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import torch

from plopcli.errors import DataError


def read_untrusted(path: Path) -> object:
    """Reads a file that `torch.save` wrote, onto the CPU, without running any code in it.

    Raises:
        DataError: The file is missing, unreadable, broken or no such file, or it needs more than tensors and plain
            values.
    """
    try:
        with warnings.catch_warnings():
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
            raise DataError(
                f"{path} was refused: it needs the code of {code[1]} to be loaded, and code from a file is never run.",
                "If you trust the file, save its tensors alone: torch.save(model.state_dict(), PATH).",
            ) from error
        raise DataError(
            f"{path} is no file that torch.save wrote, or it is damaged ({type(error).__name__}).",
            "Check its size and where it came from; a download that stopped half-way has to be repeated.",
        ) from error
    return content
