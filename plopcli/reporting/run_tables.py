"""Results of single runs as tables for the terminal (rich). Comparisons: `plopcli.reporting.tables`.

They take results of at least one step. A missing value is a dash.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from plopcli.runs.diagnosis import Diagnosis
from plopcli.runs.results import Results

_GROUPS = ("old", "new", "all")
_NONE = "–"
_NAMES_SHOWN = 6


def step_table(results: Results) -> Table:
    """The classes of each step and the mIoU of old, new and all classes after it; below, the figures over the steps.

    Under the table: which images were measured, and what computed batch norm.
    """
    table = _table(f"{results.title}: mIoU (%)", "step", f"{_unit(results)[1]} learned", numbers=_GROUPS)
    for step, learned in zip(results.steps, results.learned(), strict=True):
        miou = [_percent(getattr(step.miou, name)) for name in _GROUPS]
        table.add_row(str(step.step), Text(shortened(learned)), *miou)
    table.add_section()
    table.add_row("avg", Text("mean of all over the steps"), "", "", _percent(results.avg))
    for row in _over_steps(results):
        table.add_row(*map(Text, row))
    norms = results.batch_norm
    caption = [f"measured on {results.measured_on}", *([f"batch norm: {norms}"] if norms else [])]
    table.caption, table.caption_justify = Text("\n".join(caption)), "left"
    return table


def _over_steps(results: Results) -> list[list[str]]:
    """Rows for several steps: last step in the other convention, hIoU, and forgetting."""
    if len(results.steps) < 2:
        return []
    figures, rows = results.figures, []
    without = results.steps[-1].miou_foreground
    if without and not results.domains:
        means = [_percent(getattr(without, name)) for name in _GROUPS]
        rows.append(["last", "without background, as MiB has it", *means])
    if figures.hiou is not None:
        rows.append(["hIoU", "harmonic mean of old and new", "", "", _percent(figures.hiou)])
    many = _unit(results)[1]
    for change, name, meaning in (
        (figures.forgetting, "forgot", f"{many} before the last: best - last"),
        (figures.backward_transfer, "BWT", f"{many} before the last: last - first"),
    ):
        if change is not None and change.mean is not None:
            rows.append([name, meaning, f"{change.mean:.1f}", "", ""])
    return rows


def class_table(results: Results) -> Table:
    """One row per class: the step that added it, its IoU after that step and after the last, and the change.

    Where steps bring domains, one row per domain, with its mIoU.
    """
    unit, figure = _unit(results)[0], "mIoU" if results.domains else "IoU"
    columns = ("step", f"{figure} then", f"{figure} last", "change")
    table = _table(f"{results.title}: {figure} (%)", unit, numbers=columns)
    last = results.steps[-1].by_name
    for step, learned in zip(results.steps, results.learned(), strict=True):
        for name in learned:
            then, now = step.by_name.get(name), last.get(name)
            change = _NONE if then is None or now is None else f"{now - then:+.1f}"
            table.add_row(Text(name), str(step.step), _percent(then), _percent(now), change)
        table.add_section()
    return table


def diagnosis_table(label: str, diagnosis: Diagnosis) -> Table:
    """Per step: how many pseudo-labels were accepted, and how many of these are right (`plopcli.runs.diagnosis`)."""
    names = ("accepted", "right", "old back", "young back", "young as bg")
    table = _table(f"{label}: pseudo-labels against the hidden truth (%)", "step", "rule", numbers=("images", *names))
    for audit in diagnosis.steps:
        recovered = (audit.old_recovered, audit.young_recovered, audit.young_as_background)
        shares = (audit.accepted, audit.right, *recovered)
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


def _percent(value: float | None) -> str:
    return _NONE if value is None else f"{value:.1f}"


def _unit(results: Results) -> tuple[str, str]:
    """What a step adds, singular and plural."""
    return ("domain", "domains") if results.domains else ("class", "classes")


def shortened(names: Sequence[str]) -> str:
    """The names, or the first few and how many more."""
    if len(names) <= _NAMES_SHOWN + 1:
        return ", ".join(names)
    return f"{', '.join(names[:_NAMES_SHOWN])} and {len(names) - _NAMES_SHOWN} more"
