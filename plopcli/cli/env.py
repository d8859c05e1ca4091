"""`plop env`: versions and machine, to paste into a report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from plopcli.cli import options
from plopcli.cli.output import print_json
from plopcli.console.streams import echo

EXAMPLES = """
plop env
plop env --json
"""


def env(as_json: options.Json = False) -> None:
    """Show versions, devices and machine, to paste into a bug report."""
    from plopcli.runs.environment import environment_stamp

    stamp = environment_stamp()
    if as_json:
        print_json(stamp)
        return
    facts = list(_flat(stamp))
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        echo(f"{name:<{width}}  {value}")


def _flat(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _flat(value)
        elif isinstance(value, list):
            yield name, ", ".join(str(entry) for entry in value) or "none"
        else:
            yield name, "none" if value is None else str(value)
