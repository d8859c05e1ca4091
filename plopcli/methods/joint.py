"""Joint training: all classes at once, the upper bound."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from plopcli.methods.ft import FineTuning
from plopcli.methods.learning import ClassificationSettings


class JointSettings(ClassificationSettings):
    """How joint training learns."""

    name: Literal["joint"] = "joint"
    """Name of the method."""


class Joint(FineTuning):
    """Cross-entropy on the labels of all classes, in a single step, or another classification loss."""

    Settings = JointSettings
    summary = "all classes at once, with the recipe of step 0; the upper bound"
    later_steps = ""
    for_domains: ClassVar[Mapping[str, Any]] = {}  # there is but step 0, for which all classes are new anyway
    merges_steps = True
