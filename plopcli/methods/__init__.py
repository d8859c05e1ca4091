"""Continual-learning methods: one file each, and one line in `METHODS`."""

from __future__ import annotations

from plopcli.errors import unknown_name
from plopcli.methods.base import Method
from plopcli.methods.ft import FineTuning
from plopcli.methods.joint import Joint
from plopcli.methods.plop import Plop

#: Every method by its name, in lower case.
METHODS: dict[str, type[Method]] = {
    "ft": FineTuning,
    "plop": Plop,
    "joint": Joint,
}


def get_method(name: str) -> type[Method]:
    """The method called ``name``, without regard to case.

    Raises:
        UsageError: There is no such method.
    """
    method = METHODS.get(name.lower())
    if method is None:
        raise unknown_name("method", name, METHODS)
    return method
