"""Plans: which runs a comparison consists of, from a TOML file.

::

    folder = "runs/toy-15-1"        # a folder for every run: LABEL-sSEED
    seeds = [42, 0, 1]

    [settings]                      # of all runs, as in a settings file
    data = { dataset = "toy" }

    [entries.plop]                  # a table for every row of the outcome, with what is its own
    method = { name = "plop" }

    [entries."mib 100"]
    method = { name = "mib", kd_factor = 100.0 }
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from plopcli.engine.checks import shares_first_step
from plopcli.errors import UsageError
from plopcli.resolution.layers import Resolved, read_settings, read_toml, resolve_settings
from plopcli.runs.folder import RunFolder
from plopcli.settings.keys import toml_value
from plopcli.settings.presets import AUTOMATIC
from plopcli.settings.sections import Section, UserPath

#: Settings that a plan sets itself, for every run.
_OWN = ("seed", "run")


class SweepPlan(Section):
    """The content of a plan file."""

    folder: UserPath
    """Where the folders of the runs are."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (42,)
    """Every entry runs once with each."""
    step_0_from: tuple[UserPath, ...] = ()
    """Folders of other runs, whose step 0 is taken over where settings and seed allow it."""
    preset: str = AUTOMATIC
    """As `--preset`."""
    settings: Annotated[dict[str, Any], Field(default_factory=dict)]
    """Settings of all runs, nested like a settings file."""
    entries: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    """Settings of their own by label; an entry without any runs the common ones."""


@dataclass(frozen=True)
class PlannedRun:
    """One run of a plan.

    Args:
        label: Its entry.
        seed: Its seed.
        folder: Its run folder.
        arguments: Arguments of `plop run-scenario` that give its settings.
        resolved: The resolved settings.
        donor: The run of the plan whose step 0 it takes over, None if it trains its own.
    """

    label: str
    seed: int
    folder: Path
    arguments: tuple[str, ...]
    resolved: Resolved
    donor: Path | None

    @property
    def name(self) -> str:
        """For people: ``mib, seed 42``."""
        return f"{self.label}, seed {self.seed}"


def read_plan(path: Path) -> SweepPlan:
    """The plan in a TOML file.

    Raises:
        UsageError: The file is missing, or no plan.
    """
    try:
        plan = SweepPlan.model_validate(read_toml(path))
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()]
        raise UsageError(
            f"{path} is no plan: {'; '.join(problems)}.",
            "A plan has folder, seeds, [settings] and [entries.LABEL]; docs/comparisons has examples.",
        ) from error
    folders = [_folder_name(label) for label in plan.entries]
    if len({*folders}) < len(folders) or not all(folders):
        raise UsageError(f"{path}: the labels {', '.join(plan.entries)} do not give every entry a folder of its own.")
    return plan


def planned_runs(plan: SweepPlan, assignments: Sequence[str] = ()) -> list[PlannedRun]:
    """All runs of ``plan``, seed by seed; of runs that share step 0, the first trains it.

    ``assignments``, the ``KEY=VALUE`` of every ``--set``, win over the settings of all runs, an entry's own over both.

    Raises:
        UsageError: The settings of an entry, which is named, are wrong.
    """
    if taken := [key for key in _OWN if any(_key(word) == key for word in assignments)]:
        raise UsageError(f"--set cannot set {' and '.join(taken)}.", "The plan's seeds and folder decide these.")
    outside = [(path, read_settings(RunFolder(path).settings)) for path in plan.step_0_from]
    runs: list[PlannedRun] = []
    for seed in plan.seeds:
        for label, own in plan.entries.items():
            folder = plan.folder / f"{_folder_name(label)}-s{seed}"
            run = _planned(plan, label, own, assignments, seed, folder)
            own_donors = [(other.folder, other.resolved.settings) for other in runs if other.donor is None]
            settings = run.resolved.settings
            donor = next((path for path, other in (*outside, *own_donors) if shares_first_step(other, settings)), None)
            runs.append(replace(run, donor=donor))
    return runs


def _planned(
    plan: SweepPlan, label: str, own: Mapping[str, Any], given: Sequence[str], seed: int, folder: Path
) -> PlannedRun:
    by_key = _assigned(plan.settings) | {_key(word): word for word in given} | _assigned(own)
    if taken := [key for key in _OWN if key in by_key]:
        raise UsageError(f"Entry {label} sets {' and '.join(taken)}.", "The plan's seeds and folder decide these.")
    assignments = list(by_key.values())
    try:
        resolved = resolve_settings(
            {"seed": seed, "run": folder}, assignments=assignments, environment={}, preset=plan.preset
        )
    except UsageError as error:
        raise UsageError(f"Entry {label}: {error.message}", error.hint) from error
    words = [word for assignment in assignments for word in ("--set", assignment)]
    arguments = ("--preset", plan.preset, "--seed", str(seed), "--run", str(folder), *words)
    return PlannedRun(label, seed, folder, arguments, resolved, None)


def _key(assignment: str) -> str:
    return assignment.partition("=")[0].strip()


def _assigned(table: Mapping[str, Any]) -> dict[str, str]:
    """``KEY=VALUE`` by key of everything in a nested table."""
    return {key: f"{key}={toml_value(value)}" for key, value in _flat(table)}


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _folder_name(label: str) -> str:
    """``label`` as the name of a folder: everything but letters, digits and dots becomes a dash."""
    return re.sub(r"[^\w.]+", "-", label).strip("-.")
