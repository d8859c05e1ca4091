"""`--print-config` and `--dry-run`: shows what a training command would do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from plopcli.cli.output import print_json, print_rows, tell_layers
from plopcli.console.streams import echo

if TYPE_CHECKING:
    from plopcli.resolution.layers import Resolved


def answer_beforehand(resolved: Resolved, *, print_config: bool, dry_run: bool, as_json: bool) -> bool:
    """Answers ``--print-config`` or ``--dry-run``; returns whether one of them was given."""
    if not (print_config or dry_run):
        return False
    tell_layers(resolved)
    if print_config:
        _print_config(resolved, as_json=as_json)
    else:
        from plopcli.engine.scenario_run import plan_scenario

        _print_plan(plan_scenario(resolved), as_json=as_json)
    return True


def _print_config(resolved: Resolved, *, as_json: bool) -> None:
    from plopcli.resolution.layers import settings_to_toml

    if as_json:
        settings = resolved.settings.model_dump(mode="json")
        presets = [preset.name for preset in resolved.presets]
        print_json({"settings": settings, "origins": resolved.origins, "presets": presets})
    else:
        echo(settings_to_toml(resolved.settings, resolved.origins).rstrip("\n"))


def _print_plan(plan: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(plan)
        return
    from plopcli.reporting.run_tables import shortened

    facts = [f"{key}: {value}" for key, value in plan.items() if isinstance(value, str)]
    facts += [f"note: {note}" for note in plan["notes"]]
    columns = list(plan["steps"][0])
    cells = [[step[column] for column in columns] for step in plan["steps"]]
    rows = [[shortened(cell) if isinstance(cell, list) else cell for cell in row] for row in cells]
    print_rows("\n".join(facts), columns, rows)
