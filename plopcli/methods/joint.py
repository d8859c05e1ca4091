"""Joint training: all classes at once, the upper bound."""

from __future__ import annotations

from typing import Literal

from plopcli.methods.ft import FineTuning
from plopcli.settings.sections import MethodSettings


class JointSettings(MethodSettings):
    """Joint training has nothing to set."""

    name: Literal["joint"] = "joint"
    """Name of the method."""


class Joint(FineTuning):
    """Cross-entropy on the labels of all classes, in a single step."""

    Settings = JointSettings
    summary = "all classes at once, with the recipe of step 0; the upper bound"
    merges_steps = True
