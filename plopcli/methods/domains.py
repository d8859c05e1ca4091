"""What a method computes where steps bring domains in place of classes."""

from __future__ import annotations

from plopcli.methods import get_method
from plopcli.settings.sections import MethodSettings


def settings_for_domains(settings: MethodSettings) -> MethodSettings:
    """``settings`` with `Method.for_domains` in force: what makes sense with new classes alone is switched off."""
    return settings.model_copy(update=dict(get_method(settings.name).for_domains))


def what_domains_change(before: MethodSettings, after: MethodSettings) -> list[str]:
    """One line for every setting that `settings_for_domains` has changed."""
    old, new = before.model_dump(), after.model_dump()
    return [
        f"method.{key}: {new[key]} in place of {old[key]}, since all steps have the same classes"
        for key in old
        if old[key] != new[key]
    ]
