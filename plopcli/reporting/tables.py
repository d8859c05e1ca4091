"""Results as tables: for the terminal (rich) and for documents (Markdown).

All functions read the content of ``results.json`` after at least one step: dataset, task, protocol, method, seed,
classes, steps and avg. A step holds ``step``, ``iou`` (name of each class seen so far to its IoU in percent, ``None``
without a pixel in the truth) and ``miou`` (all, old, new). What has no value is shown as a dash. Where steps bring
domains, the results name those of each step in ``domains``, and a step holds the mIoU of each under the same key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import compress
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from plopcli.reporting.comparison import SEED_COLUMNS, over_seeds

Results = Mapping[str, Any]

_GROUPS = ("old", "new", "all")
_COLUMNS = (*_GROUPS, "avg")
_SEEDS = ("runs", *SEED_COLUMNS)
_NONE = "–"
_NAMES_SHOWN = 6


def step_table(results: Results) -> Table:
    """What each step brought, and the mIoU of old, new and all classes after it."""
    table = _table(f"{_run(results)}: mIoU (%)", "step", f"{_unit(results)[1]} learned", numbers=_GROUPS)
    for step, learned in zip(results["steps"], _learned(results), strict=True):
        miou = [_percent(step["miou"][name]) for name in _GROUPS]
        table.add_row(str(step["step"]), Text(_shortened(learned)), *miou)
    table.add_section()
    table.add_row("avg", Text("mean of all over the steps"), "", "", _percent(results["avg"]))
    return table


def comparison_table(runs: Sequence[tuple[str, Results]]) -> Table:
    """One row per run: mIoU of old, new and all classes after the last step, and the average over the steps.

    The best value of a column is bold. A run with a single step (joint training) does not compete with longer ones.

    Args:
        runs: Label and results of each run.
    """
    table = _table("mIoU (%) after the last step", "run", numbers=_COLUMNS)
    for (label, _), cells in zip(runs, _compared(runs), strict=True):
        table.add_row(Text(label), *(Text(text, style="bold" if best else "") for text, best in cells))
    return table


def class_table(results: Results) -> Table:
    """One row per class: the step that brought it, its IoU after that step and after the last, and the change.

    Where steps bring domains, one row per domain, with its mIoU.
    """
    unit, figure = _unit(results)[0], "mIoU" if results.get("domains") else "IoU"
    columns = ("step", f"{figure} then", f"{figure} last", "change")
    table = _table(f"{_run(results)}: {figure} (%)", unit, numbers=columns)
    last = _by_name(results["steps"][-1])
    for step, learned in zip(results["steps"], _learned(results), strict=True):
        for name in learned:
            then, now = _by_name(step).get(name), last.get(name)
            change = _NONE if then is None or now is None else f"{now - then:+.1f}"
            table.add_row(Text(name), str(step["step"]), _percent(then), _percent(now), change)
        table.add_section()
    return table


def markdown_table(runs: Sequence[tuple[str, Results]]) -> str:
    """The rows of ``comparison_table`` as a Markdown table, without a newline at the end."""
    lines = ["| run | " + " | ".join(_COLUMNS) + " |", "|---|" + "---:|" * len(_COLUMNS)]
    for (label, _), cells in zip(runs, _compared(runs), strict=True):
        name = label.replace("|", "\\|")
        lines.append(f"| {name} | " + " | ".join(f"**{text}**" if best else text for text, best in cells) + " |")
    return "\n".join(lines)


def seeds_table(runs: Sequence[Results]) -> Table:
    """One row per method: mean and standard deviation over its runs."""
    table = _table("mIoU (%) after the last step, mean ± standard deviation over seeds", "method", numbers=_SEEDS)
    for row in _seed_rows(runs):
        table.add_row(*map(Text, row))
    return table


def seeds_markdown(runs: Sequence[Results]) -> str:
    """The rows of ``seeds_table`` as a Markdown table, without a newline at the end."""
    head = ["| method | " + " | ".join(_SEEDS) + " |", "|---|" + "---:|" * len(_SEEDS)]
    return "\n".join([*head, *("| " + " | ".join(row) + " |" for row in _seed_rows(runs))])


def _seed_rows(runs: Sequence[Results]) -> list[list[str]]:
    return [
        [method, str(count), *(_NONE if value is None else str(value) for value in values)]
        for method, count, values in over_seeds(runs)
    ]


def _table(title: str, *texts: str, numbers: Sequence[str]) -> Table:
    """An empty table with text columns, then columns of numbers that are never broken."""
    table = Table(title=Text(title), box=box.SIMPLE_HEAD, title_justify="left")
    for heading in texts:
        table.add_column(heading, overflow="fold")
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True, min_width=5)
    return table


def _run(results: Results) -> str:
    return "{dataset} {task} {protocol}, {method}, seed {seed}".format_map(results)


def _percent(value: float | None) -> str:
    return _NONE if value is None else f"{value:.1f}"


def _unit(results: Results) -> tuple[str, str]:
    """What a step brings, one and many of it."""
    return ("domain", "domains") if results.get("domains") else ("class", "classes")


def _by_name(step: Mapping[str, Any]) -> dict[str, float | None]:
    """The IoU of each class, or the mIoU of each domain, after a step."""
    if "domains" in step:
        return {name: figures["miou"] for name, figures in step["domains"].items()}
    return dict(step["iou"])


def _learned(results: Results) -> list[list[str]]:
    """The classes that occur in the IoU of each step for the first time; the domains of each step."""
    if results.get("domains"):
        return [results["domains"][step["step"]] for step in results["steps"]]
    known: set[str] = set()
    steps: list[list[str]] = []
    for step in results["steps"]:
        steps.append([name for name in step["iou"] if name not in known])
        known.update(step["iou"])
    return steps


def _shortened(names: Sequence[str]) -> str:
    """The names, or the first few and how many more."""
    if len(names) <= _NAMES_SHOWN + 1:
        return ", ".join(names)
    return f"{', '.join(names[:_NAMES_SHOWN])} and {len(names) - _NAMES_SHOWN} more"


def _compared(runs: Sequence[tuple[str, Results]]) -> list[list[tuple[str, bool]]]:
    """The cells of every run: the value as shown, and whether it is the best of its column."""
    rows = [
        [_percent(value) for value in (*(results["steps"][-1]["miou"][name] for name in _GROUPS), results["avg"])]
        for _, results in runs
    ]
    continual = [len(results["steps"]) > 1 for _, results in runs]
    competes = continual if any(continual) else [True] * len(runs)
    # Compared as shown, so that values which look the same are equally good.
    contest = [[cell for cell in column if cell != _NONE] for column in zip(*compress(rows, competes), strict=True)]
    best = [max(column, key=float, default=None) for column in contest]
    return [
        [(cell, competing and cell == top) for cell, top in zip(row, best, strict=True)]
        for row, competing in zip(rows, competes, strict=True)
    ]
