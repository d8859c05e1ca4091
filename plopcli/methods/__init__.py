"""Continual-learning methods: one file each, and one line in `METHODS`; or from elsewhere (`plopcli.plugins`)."""

from __future__ import annotations

from typing import Any

from plopcli.errors import unknown_name
from plopcli.methods.base import Method
from plopcli.methods.ewc import Ewc
from plopcli.methods.ft import FineTuning
from plopcli.methods.ilt import Ilt
from plopcli.methods.joint import Joint
from plopcli.methods.lwf import Lwf
from plopcli.methods.lwf_mc import LwfMc
from plopcli.methods.mib import Mib
from plopcli.methods.mib_ewf import MibEwf
from plopcli.methods.pi import Pi
from plopcli.methods.plop import Plop
from plopcli.methods.plop_ewf import PlopEwf
from plopcli.methods.reminder import Reminder
from plopcli.methods.rw import Rw
from plopcli.plugins import Registry
from plopcli.settings.keys import plain_name


def _checked(name: str, found: Any) -> type[Method]:
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise TypeError(f"{found!r} is no subclass of Method")
    if (own := found.Settings.model_fields["name"].default) != name:
        raise ValueError(f"its settings call it {own!r}; the names must be equal")
    return found


#: Every method by its name, in lower case.
METHODS: Registry[type[Method]] = Registry(
    "method",
    "plopcli.methods",
    {
        "ft": FineTuning,
        "lwf": Lwf,
        "lwf-mc": LwfMc,
        "ilt": Ilt,
        "ewc": Ewc,
        "rw": Rw,
        "pi": Pi,
        "mib": Mib,
        "plop": Plop,
        "mib-ewf": MibEwf,
        "plop-ewf": PlopEwf,
        "reminder": Reminder,
        "joint": Joint,
    },
    _checked,
)


def get_method(name: str) -> type[Method]:
    """The method called ``name``, however it is written: ``LwF-MC``, ``lwf_mc``.

    Raises:
        UsageError: There is no such method, or it cannot be loaded.
    """
    return METHODS[method_key(name)]


def method_key(name: str) -> str:
    """The name by which `METHODS` knows the method called ``name``, however it is written.

    Raises:
        UsageError: There is no such method.
    """
    key = plain_name(name)
    if key not in METHODS:
        raise unknown_name("method", name, METHODS)
    return key
