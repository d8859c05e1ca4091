"""Differences between the settings of runs that can change results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from plopcli.settings.keys import leaves, toml_value
from plopcli.settings.sections import RunSettings

_LONGEST = 3


def all_settings(settings: RunSettings) -> dict[str, str]:
    """Every setting by dotted key, its value as in a settings file."""
    values: dict[str, str] = {}
    for key in leaves(type(settings.method)):
        value: Any = settings
        for part in key.split("."):
            value = getattr(value, part)
        values[key] = toml_value(value)
    return values


def settings_that_matter(settings: RunSettings) -> dict[str, str]:
    """The settings that results depend on, without the seed."""
    keys = leaves(type(settings.method))
    return {
        key: value for key, value in all_settings(settings).items() if keys[key].decides != "nothing" and key != "seed"
    }


def changed_from_default(settings: RunSettings) -> dict[str, str]:
    """The settings that matter and are not at their defaults."""
    defaults = RunSettings(method=type(settings.method)(name=settings.method.name))
    usual = settings_that_matter(defaults)
    return {key: value for key, value in settings_that_matter(settings).items() if usual.get(key) != value}


def differing_settings(runs: Sequence[RunSettings]) -> tuple[list[str], str]:
    """What distinguishes runs of one method.

    Returns:
        For every run the settings in which it differs from most others, as text, empty where it differs in none; and
        what those others have.
    """
    if not runs:
        return [], ""
    values = [settings_that_matter(run) for run in runs]
    keys = [key for key in values[0] if len({each.get(key) for each in values}) > 1]
    # The most frequent value; the first of equally frequent ones.
    usual = {key: Counter(each.get(key, "") for each in values).most_common(1)[0][0] for key in keys}
    own = [
        _listed({key: each[key] for key in keys if each.get(key, "") != usual[key]}, shorten=False) for each in values
    ]
    return own, _listed(usual, shorten=True)


def _listed(settings: dict[str, str], shorten: bool) -> str:
    shown = [f"{key.removeprefix('method.')}={value.strip(chr(34))}" for key, value in settings.items()]
    if shorten and len(shown) > _LONGEST:
        return ", ".join(shown[:_LONGEST]) + f" and {len(shown) - _LONGEST} more"
    return ", ".join(shown)
