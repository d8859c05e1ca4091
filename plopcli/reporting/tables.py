"""Results of single runs as tables for the terminal (rich). Comparisons: `plopcli.reporting.sheets`.

All functions read the content of ``results.json`` after at least one step: dataset, task, protocol, method, seed,
classes, steps and avg. A step holds ``step``, ``iou`` (name of each class seen so far to its IoU in percent, ``None``
without a pixel in the truth) and ``miou`` (all, old, new). What has no value is shown as a dash. Where steps bring
domains, the results name those of each step in ``domains``, and a step holds the mIoU of each under the same key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from plopcli.evaluation.forgetting import over_steps
from plopcli.reporting.results import how_measured
from plopcli.runs.diagnosis import Diagnosis

Results = Mapping[str, Any]

_GROUPS = ("old", "new", "all")
_NONE = "–"
_NAMES_SHOWN = 6


def step_table(results: Results) -> Table:
    """What each step brought, and the mIoU of old, new and all classes after it; below, the figures over the steps.

    Under the table: which images were measured, and what computed batch norm.
    """
    table = _table(f"{_run(results)}: mIoU (%)", "step", f"{_unit(results)[1]} learned", numbers=_GROUPS)
    for step, learned in zip(results["steps"], _learned(results), strict=True):
        miou = [_percent(step["miou"][name]) for name in _GROUPS]
        table.add_row(str(step["step"]), Text(_shortened(learned)), *miou)
    table.add_section()
    table.add_row("avg", Text("mean of all over the steps"), "", "", _percent(results["avg"]))
    for row in _over_steps(results):
        table.add_row(*map(Text, row))
    norms = results.get("batch_norm")
    caption = [f"measured on {how_measured(results)}", *([f"batch norm: {norms}"] if norms else [])]
    table.caption, table.caption_justify = Text("\n".join(caption)), "left"
    return table


def _over_steps(results: Results) -> list[list[str]]:
    """What else there is to say of several steps: last step in the other convention, hIoU, and what was forgotten."""
    if len(results["steps"]) < 2:
        return []
    figures, rows = over_steps(results), []
    without = results["steps"][-1].get("miou_foreground")
    if without and not results.get("domains"):
        rows.append(["last", "without background, as MiB has it", *(_percent(without[name]) for name in _GROUPS)])
    if figures["hiou"] is not None:
        rows.append(["hIoU", "harmonic mean of old and new", "", "", _percent(figures["hiou"])])
    many = _unit(results)[1]
    for key, name, meaning in (
        ("forgetting", "forgot", f"{many} before the last: best - last"),
        ("backward_transfer", "BWT", f"{many} before the last: last - first"),
    ):
        if figures[key] is not None and figures[key]["mean"] is not None:
            rows.append([name, meaning, f"{figures[key]['mean']:.1f}", "", ""])
    return rows


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


def diagnosis_table(label: str, diagnosis: Diagnosis) -> Table:
    """Per step: how many pseudo-labels were accepted, and how many of these are right (`plopcli.runs.diagnosis`)."""
    names = ("accepted", "right", "old back", "young back", "young as bg")
    table = _table(f"{label}: pseudo-labels against the hidden truth (%)", "step", "rule", numbers=("images", *names))
    for audit in diagnosis.steps:
        shares = (
            audit.accepted,
            audit.right,
            audit.old_recovered,
            audit.young_recovered,
            audit.young_as_background,
        )
        shown = [_percent(None if share is None else 100 * share) for share in shares]
        table.add_row(str(audit.step), audit.rule, str(audit.images), *shown)
    legend = [
        "accepted: of the pixels labelled background",
        "right: of the accepted",
        "back: hidden pixels that got their class back",
        "young: classes learned after step 0",
        "as bg: taught as background",
    ]
    if any(not audit.used for audit in diagnosis.steps):
        legend.append("argmax: the method has no pseudo-labels, every prediction of the old model is counted")
    table.caption, table.caption_justify = Text("; ".join(legend)), "left"
    return table


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
    if step.get("domains"):
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
