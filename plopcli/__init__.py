"""Continual semantic segmentation: one core, every method, one command line.

From Python, a trained model is used by `load`; see docs/python-api.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plopcli.inference.load import load
    from plopcli.inference.model import Prediction, SegmentationModel

__version__ = "0.1.0"
__all__ = ["Prediction", "SegmentationModel", "__version__", "load"]

#: Where the names live. They are imported when they are first used, since torch takes seconds.
_LAZY = {
    "load": "plopcli.inference.load",
    "SegmentationModel": "plopcli.inference.model",
    "Prediction": "plopcli.inference.model",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(_LAZY[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
