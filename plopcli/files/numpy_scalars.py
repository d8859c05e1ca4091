"""NumPy scalars in files from strangers, read without NumPy's own unpickling.

A training program that keeps its best score as a NumPy number leaves one in its checkpoints. Such a number is pickled
as two calls, ``numpy.dtype("f8", False, True)`` and ``numpy.core.multiarray.scalar(dtype, bytes)``. The stand-ins here
take the place of these two names alone; they make a plain Python number of a few bytes and can do nothing else.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from typing import Any

#: NumPy's codes of number types, and how `struct` reads them.
_FORMATS = {
    "f2": "e",
    "f4": "f",
    "f8": "d",
    "i1": "b",
    "i2": "h",
    "i4": "i",
    "i8": "q",
    "u1": "B",
    "u2": "H",
    "u4": "I",
    "u8": "Q",
    "b1": "?",
}
#: NumPy's marks of byte orders; native and irrelevant ones are those of the machines that such files come from.
_ORDERS = {"<": "<", ">": ">", "=": "<", "|": "<"}


class NumberType:
    """Stands in for ``numpy.dtype``: the type of a number, and nothing more.

    Raises:
        UnpicklingError: It is the type of something else, such as an object.
    """

    format: str | None = None
    order = "<"

    def __init__(self, code: object = None, *_: object) -> None:
        if not isinstance(code, str) or code.lstrip("<>=|") not in _FORMATS:
            raise _refused(f"numpy.dtype({code!r})")
        self.format = _FORMATS[code.lstrip("<>=|")]
        self.order = _ORDERS.get(code[0], "<")

    def __setstate__(self, state: Any) -> None:
        """Takes the byte order from NumPy's state ``(version, order, None, None, None, -1, -1, 0)``."""
        plain = isinstance(state, tuple) and len(state) in (8, 9) and state[2:5] == (None, None, None)
        if not plain or not isinstance(state[1], str) or state[1] not in _ORDERS:
            raise _refused("numpy.dtype.__setstate__")
        self.order = _ORDERS[state[1]]


def number(kind: object, data: object) -> float | int | bool:
    """Stands in for ``numpy.core.multiarray.scalar``: the number that ``data`` holds.

    Raises:
        UnpicklingError: It holds something else.
    """
    if isinstance(kind, NumberType) and kind.format is not None and isinstance(data, bytes):
        layout = kind.order + kind.format
        if len(data) == struct.calcsize(layout):
            value: float | int | bool = struct.unpack(layout, data)[0]
            return value
    raise _refused("numpy.core.multiarray.scalar")


def _refused(name: str) -> pickle.UnpicklingError:
    # In the words of torch's unpickler, so that both refusals are told alike.
    return pickle.UnpicklingError(f"Unsupported global: GLOBAL {name} in this use")


#: What `torch.serialization.safe_globals` is to bind to the names in such files, NumPy 1 and 2.
STAND_INS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (NumberType, "numpy.dtype"),
    (number, "numpy.core.multiarray.scalar"),
    (number, "numpy._core.multiarray.scalar"),
]
