"""How torch takes memory from the operating system on the CPU. Imports nothing: it must come before torch."""

from __future__ import annotations

import os

_VARIABLE = "THP_MEM_ALLOC_ENABLE"


def use_large_pages() -> None:
    """Lets torch ask Linux for pages of 2 MiB for large tensors, unless the environment decides otherwise.

    Every large tensor is new memory that the system maps page by page. With pages of 4 KiB, that costs a small network
    on the CPU a quarter of its training time. Torch reads the variable with its first tensor; workers inherit it.
    """
    os.environ.setdefault(_VARIABLE, "1")
