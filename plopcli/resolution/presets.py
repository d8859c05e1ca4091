"""Which presets a run takes: those of its data set, its task and its method."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from plopcli.errors import UsageError, unknown_name
from plopcli.methods import METHODS
from plopcli.settings.keys import toml_value
from plopcli.settings.presets import AUTOMATIC, NO_PRESET, PRESETS, Preset


def preset_families() -> tuple[str, ...]:
    """Names of families that ``--preset`` takes, `auto` and `none` aside."""
    return tuple(dict.fromkeys(preset.family for preset in _every_preset() if not preset.variant))


def preset_variants() -> tuple[str, ...]:
    """Names of variants that ``--preset`` takes, alone or behind a family."""
    return tuple(dict.fromkeys(preset.family for preset in _every_preset() if preset.variant))


def presets_of(method: str) -> tuple[Preset, ...]:
    """Every preset that a run of ``method`` can take, whatever its data set and task."""
    like, own, asked = _of_method(method)
    return (*_attributed([preset for family in PRESETS.values() for preset in family], method, like), *own, *asked)


def choose_presets(name: str, *, dataset: str, task: str, method: str) -> tuple[Preset, ...]:
    """The presets of a run, in the order in which they apply.

    Args:
        name: A family, `auto` for that of the data set (if it has one), or `none`: only what the method asks for;
            variants, with commas between; or variants alone, on top of `auto`.
        dataset: Name of the data set.
        task: Name of the task.
        method: Name of the method.

    Raises:
        UsageError: There is no such preset, two families, or a variant of another method.
    """
    like, own, asked = _of_method(method)
    name, variants = _family_and_variants(name, own)
    family = {NO_PRESET: None, AUTOMATIC: dataset}.get(name, name)
    fitting = [
        preset
        for wanted in (family, *variants)
        for preset in (*_attributed(PRESETS.get(wanted or "", ()), method, like), *own)
        if preset.family == wanted and preset.task in (None, task)
    ]
    for variant in variants:
        if all(preset.family != variant for preset in fitting):
            raise UsageError(f"Preset {variant} is not for method {method} on {dataset} {task}.", _described(variant))
    return (*fitting, *asked)


def _every_preset() -> list[Preset]:
    """All presets of all methods: every package that brings some is imported."""
    shared = [preset for family in PRESETS.values() for preset in family]
    return [*shared, *(preset for method in METHODS for preset in _brought_by(method))]


def _brought_by(method: str) -> list[Preset]:
    """The presets that stand with ``method`` itself."""
    # Its own: those of a class that it merely inherits from hold where it is built `like` that one.
    return [replace(preset, method=method) for preset in vars(METHODS[method]).get("presets", ())]


def _of_method(method: str) -> tuple[str | None, list[Preset], list[Preset]]:
    """The method that ``method`` is built on, if any; the presets of both; and what it asks of the recipe itself."""
    if method not in METHODS:
        return None, [], []
    kind, like = METHODS[method], METHODS[method].like
    own = [*_attributed(_brought_by(like) if like else (), method, like), *_brought_by(method)]
    if not kind.recipe:
        return like, own, []
    asked = ", ".join(f"{key} = {toml_value(value)}" for key, value in kind.recipe.items())
    return like, own, [Preset("method", f"{asked} is part of it; {kind.source}", dict(kind.recipe), method=method)]


def _attributed(presets: Iterable[Preset], method: str, like: str | None) -> list[Preset]:
    """Those of ``presets`` that are for ``method`` or the one that it is built on, which their source then says."""
    said = f"(for {like}, which {method} is built on)"
    return [
        replace(preset, source=f"{preset.source} {said}") if preset.method not in (None, method) else preset
        for preset in presets
        if preset.method in (None, method) or preset.method == like
    ]


def _family_and_variants(name: str, own: Iterable[Preset]) -> tuple[str, list[str]]:
    """What ``--preset`` names, for a method with presets of its ``own``."""
    names = [part.strip() for part in name.split(",")]
    families, variants = {AUTOMATIC, NO_PRESET}, {preset.family for preset in own if preset.variant}
    for part in names:
        if part in PRESETS:
            (variants if PRESETS[part] and PRESETS[part][0].variant else families).add(part)
    if not {*names} <= families | variants:
        families, variants = {*families, *preset_families()}, {*variants, *preset_variants()}
    for part in names:
        if part not in families | variants:
            raise unknown_name("preset", part, (*preset_families(), AUTOMATIC, NO_PRESET, *preset_variants()))
    chosen = [part for part in names if part in families] or [AUTOMATIC]
    if len(chosen) > 1:
        raise UsageError(
            f"{' and '.join(chosen)} are two families of presets, and a run takes one.",
            f"Variants can be added to it: {', '.join(preset_variants())}.",
        )
    return chosen[0], [part for part in names if part not in families]


def _described(variant: str) -> str:
    """What a variant is for."""
    kinds = [
        f"method {preset.method}" + (f" on task {preset.task}" if preset.task else "")
        for preset in _every_preset()
        if preset.family == variant
    ]
    return f"It is for {' and '.join(dict.fromkeys(kinds))}."
