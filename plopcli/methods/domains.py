"""What a method computes where steps bring domains in place of classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plopcli.methods import get_method
from plopcli.settings.sections import MethodSettings


def settings_for_domains(settings: MethodSettings) -> MethodSettings:
    """``settings`` with `Method.for_domains` in force: what makes sense with new classes alone is switched off."""
    changes = get_method(settings.name).for_domains.items()
    return settings.model_copy(update={key: _instead(getattr(settings, key), value) for key, value in changes})


def _instead(value: Any, change: Any) -> Any:
    return change.get(value, value) if isinstance(change, Mapping) else change


def what_domains_change(before: MethodSettings, after: MethodSettings) -> list[str]:
    """One line for every setting that `settings_for_domains` has changed."""
    old, new = before.model_dump(), after.model_dump()
    return [
        f"method.{key}: {new[key]} in place of {old[key]}, since all steps have the same classes"
        for key in old
        if old[key] != new[key]
    ]
