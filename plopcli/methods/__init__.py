"""Continual-learning methods: one file each, and one line in `METHODS`."""

from __future__ import annotations

from plopcli.errors import unknown_name
from plopcli.methods.base import Method
from plopcli.methods.ewc import Ewc
from plopcli.methods.ft import FineTuning
from plopcli.methods.ilt import Ilt
from plopcli.methods.joint import Joint
from plopcli.methods.lwf import Lwf
from plopcli.methods.lwf_mc import LwfMc
from plopcli.methods.mib import Mib
from plopcli.methods.pi import Pi
from plopcli.methods.plop import Plop
from plopcli.methods.rw import Rw

#: Every method by its name, in lower case.
METHODS: dict[str, type[Method]] = {
    "ft": FineTuning,
    "lwf": Lwf,
    "lwf-mc": LwfMc,
    "ilt": Ilt,
    "ewc": Ewc,
    "rw": Rw,
    "pi": Pi,
    "mib": Mib,
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
