"""`plop methods`, `plop tasks`, `plop datasets`: lists of what can be chosen."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import groupby
from typing import Annotated, Any

import typer

from plopcli.cli import options
from plopcli.cli.options import option
from plopcli.cli.output import print_json, print_rows, tell_problems
from plopcli.console.streams import echo

Steps = tuple[tuple[int, ...], ...]

METHODS_EXAMPLES = """
plop methods
plop methods plop                                              # its settings and presets
plop methods --json
"""
TASKS_EXAMPLES = """
plop tasks
plop tasks --dataset toy --json
"""
DATASETS_EXAMPLES = """
plop datasets
plop datasets --json
"""


def methods(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="Show the settings and presets of this method.", show_default=False),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """List the methods, or show the settings of one, with their defaults and presets."""
    from plopcli.methods import METHODS

    if name is not None:
        _show_method(name, as_json=as_json)
        return
    tell_problems(METHODS)
    if as_json:
        print_json(
            [
                {"name": key, "summary": method.summary, "source": method.source, **METHODS.origin(key)._asdict()}
                for key, method in METHODS.items()
            ]
        )
    else:
        rows = [(key, method.summary, method.source, METHODS.origin(key)) for key, method in METHODS.items()]
        print_rows("methods (--method NAME)", ("name", "what it does", "source", "from"), rows)


def _show_method(name: str, *, as_json: bool) -> None:
    from plopcli.methods import METHODS, get_method, method_key
    from plopcli.settings.keys import leaves, toml_value

    method, name = get_method(name), method_key(name)
    presets = _presets_of(name)
    found = [
        leaf for key, leaf in leaves(method.Settings).items() if key.startswith("method.") and key != "method.name"
    ]
    if as_json:
        settings = [
            {"key": leaf.key, "default": leaf.default, "allowed": leaf.allowed, "description": leaf.description}
            for leaf in found
        ]
        about = {"name": name, "summary": method.summary, "source": method.source, **METHODS.origin(name)._asdict()}
        said = {"first_step": method.first_step, "later_steps": method.later_steps}
        print_json(about | said | {"settings": settings, "presets": presets})
        return
    echo(f"{name}: {method.summary}\n  source:      {method.source}\n  from:        {METHODS.origin(name)}")
    for when, loss in (("step 0:     ", method.first_step), ("later steps:", method.later_steps)):
        if loss:
            echo(f"  {when} {loss}")
    if found:
        rows = [(leaf.key, toml_value(leaf.default), leaf.allowed, leaf.description) for leaf in found]
        print_rows("settings (--set KEY=VALUE)", ("key", "default", "allowed", "what it does"), rows)
    told = []
    for entry in presets:
        values = ", ".join(f"{key} = {toml_value(value)}" for key, value in entry["values"].items())
        told.append((entry["name"], entry["applies"], entry["task"] or "any", values, entry["source"]))
    columns = ("preset", "applies", "task", "sets", "source")
    print_rows("presets, later ones over earlier ones", columns, told)


def _presets_of(name: str) -> list[dict[str, Any]]:
    """All presets that can apply to runs of this method."""
    from plopcli.data.datasets import DATASETS
    from plopcli.resolution.presets import preset_families, preset_variants, presets_of

    def applies(family: str) -> str:
        if family in DATASETS:
            return f"on {family}"
        return f"--preset {family}" if family in (*preset_families(), *preset_variants()) else "always"

    return [
        {
            "name": preset.name,
            "applies": applies(preset.family),
            "task": preset.task,
            "values": _flat(preset.values),
            "source": preset.source,
        }
        for preset in presets_of(name)
    ]


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def tasks(
    dataset: Annotated[str, option("--dataset", "NAME", "A data set (`plop datasets`).")] = "voc",
    as_json: options.Json = False,
) -> None:
    """List the named tasks of a data set.

    X-Y works on every data set: X classes first, then Y at a time. So does a TOML file with your own steps.
    """
    from plopcli.data.datasets import DATASETS
    from plopcli.errors import unknown_name
    from plopcli.scenarios.tasks import named_tasks

    if dataset not in DATASETS:
        raise unknown_name("data set", dataset, DATASETS)
    named = named_tasks(dataset)
    if as_json:
        print_json([{"name": name, "steps": [list(step) for step in steps]} for name, steps in named.items()])
    elif named:
        what = "domains of each" if DATASETS[dataset].domains else "classes of each (background in the first)"
        columns = ("name", "also called", "steps", what, "other orders")
        print_rows(f"tasks of {dataset} (--task NAME)", columns, _task_rows(named))
    echo("X-Y (X classes first, then Y at a time), joint and a TOML file with your own steps work too.", err=True)


def _task_rows(named: Mapping[str, Steps]) -> list[list[object]]:
    """One row per task; its shuffled orders, which have a letter after the name, are listed in the last column."""
    called: dict[Steps, list[str]] = {}
    for name, steps in named.items():
        called.setdefault(steps, []).append(name)
    shuffled: dict[str, list[str]] = {}
    rows: list[list[object]] = []
    # Where a task has several names, the papers' one comes last.
    for steps, (*others, name) in called.items():
        counts = [len(step) for step in steps]
        stem = re.sub("[b-w]$", "", name)
        if stem != name and [len(step) for step in named.get(stem, ())] == counts:
            shuffled.setdefault(stem, []).append(name)
        else:
            rows.append([name, ", ".join(others), len(steps), _in_short(counts)])
    for row in rows:
        orders = shuffled.get(str(row[0]), [])
        row.append(f"{orders[0]} to {orders[-1]}" if len(orders) > 2 else ", ".join(orders))
    return rows


def _in_short(counts: list[int]) -> str:
    """``16 + 1 + 1 + 1`` as ``16 + 3 x 1``."""
    parts = [(len(list(alike)), count) for count, alike in groupby(counts)]
    return " + ".join(f"{times} x {count}" if times > 1 else str(count) for times, count in parts)


def datasets(as_json: options.Json = False) -> None:
    """List the data sets and how to get them."""
    from plopcli.data.datasets import DATASETS

    tell_problems(DATASETS)
    if as_json:
        print_json(
            [
                {"name": name, "summary": spec.summary, "classes": spec.classes, "get": spec.get}
                | DATASETS.origin(name)._asdict()
                for name, spec in DATASETS.items()
            ]
        )
    else:
        rows = [
            (name, spec.classes or "yours", spec.summary, spec.get, DATASETS.origin(name))
            for name, spec in DATASETS.items()
        ]
        print_rows("data sets (--dataset NAME)", ("name", "classes", "what it is", "how to get it", "from"), rows)
