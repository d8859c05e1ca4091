"""The part of a report that is about one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from plopcli.metrics.forgetting import StepClasses, step_classes
from plopcli.reporting.account import Account, warnings
from plopcli.reporting.html import grids
from plopcli.reporting.html.charts import Series, line_chart, over_steps
from plopcli.reporting.html.facts import facts_card, settings_card
from plopcli.reporting.html.marks import card, escape, percent, table, tag
from plopcli.reporting.html.pictures import gallery_rows
from plopcli.reporting.html.training import training_cards
from plopcli.runs.diagnosis import Diagnosis

_GROUPS = ("all", "old", "new")


def run_section(account: Account, anchor: str) -> str:
    """Everything about a run, under a heading of its own."""
    matrix = step_classes(account.results)
    parts = [
        tag("h2", escape(account.label)),
        tag("p", escape(f"{account.title}. {account.path}"), class_="about"),
        _tiles(account),
        *(tag("p", escape(line), class_="warning") for line in warnings(account)),
        tag("div", _curves(account), _step_table(account), class_="cards"),
        *_pictures(account),
        tag("h3", "What was learned and forgotten"),
        tag("div", _map(matrix), _forgetting(account, matrix), class_="cards"),
        tag("h3", "What is taken for what"),
        _confusion(account),
        tag("h3", "Why it forgets"),
        _diagnosis(account, matrix),
        tag("h3", "Training"),
        _training(account.rows),
        tag("h3", "What this run was"),
        tag("div", facts_card(account), settings_card(account), class_="cards"),
    ]
    return tag("article", *parts, id=anchor)


def _tiles(account: Account) -> str:
    last = account.results["steps"][-1]["miou"]
    figures = account.figures
    mean = (figures["forgetting"] or {}).get("mean")
    shown = [
        ("mIoU all", last["all"]),
        ("old", last["old"]),
        ("new", last["new"]),
        ("avg over steps", account.results["avg"]),
        ("hIoU", figures["hiou"]),
        ("forgetting", mean),
    ]
    tiles = [tag("div", tag("b", percent(value)), tag("span", escape(name))) for name, value in shown]
    return tag("div", *tiles, class_="tiles")


def _curves(account: Account) -> str:
    steps = account.results["steps"]
    series = []
    for look, name in enumerate(_GROUPS):
        points = [(float(step["step"]), step["miou"][name]) for step in steps if step["miou"][name] is not None]
        if points:
            series.append(Series(name, points, look))
    chart = line_chart(series, over_steps([step["step"] for step in steps]), top=100, text="mIoU over the steps")
    return card("mIoU (%) over the steps", chart)


def _step_table(account: Account) -> str:
    results = account.results
    brought = _brought(results)
    rows = [
        [
            str(step["step"]),
            escape(_few(brought[place])),
            *(percent(step["miou"][name]) for name in ("old", "new", "all")),
            percent((step.get("miou_foreground") or {}).get("all")),
        ]
        for place, step in enumerate(results["steps"])
    ]
    head = ("step", "learned", "old", "new", "all", "all*")
    note = (
        "Old: classes of step 0, background among them; new: those of all later steps; mIoU in percent. "
        "* without background, as MiB counts."
    )
    return card("Step by step", table(head, rows, class_="figures steps"), note=note)


def _brought(results: Mapping[str, Any]) -> list[list[str]]:
    matrix = step_classes(results)
    return [
        [name for name, learned in zip(matrix.names, matrix.learned, strict=True) if learned == place]
        for place in range(len(results["steps"]))
    ]


def _few(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more"


def _pictures(account: Account) -> list[str]:
    heading = tag("h3", "Forgetting, seen")
    if isinstance(account.gallery, str):
        return [heading, tag("p", escape(account.gallery), class_="note")]
    split = account.results.get("split") or "evaluation"
    note = (
        f"Images of the {split} split that show old and new classes; the truth has all classes that were learned, "
        "the predictions those known after each step. Hatched: not labelled."
    )
    return [heading, card(f"{len(account.gallery.rows)} images", gallery_rows(account.gallery), note=note, wide=True)]


def _map(matrix: StepClasses) -> str:
    figure = "IoU" if matrix.background else "mIoU"
    note = "Rows: classes in the order in which they are learned; a line where a step begins. Columns: steps."
    if not matrix.background:
        note = "Rows: domains in the order in which they are learned; a line where a step begins. Columns: steps."
    return card(f"{figure} (%) after every step", grids.iou_map(matrix), grids.colour_key(figure), note=note)


def _forgetting(account: Account, matrix: StepClasses) -> str:
    mean = (account.figures["forgetting"] or {}).get("mean")
    note = "Pale: the best IoU before the last step; full: the IoU after it; the difference in points."
    if mean is not None:
        note += f" Mean forgetting {mean:.1f}."
    return card("Forgetting", grids.forgetting_bars(matrix), note=note)


def _confusion(account: Account) -> str:
    if isinstance(account.confusion, str):
        return tag("p", escape(account.confusion), class_="note")
    step = account.results["steps"][-1]["step"]
    rows = [
        [escape(truth), escape(predicted), percent(share)]
        for truth, predicted, share in grids.largest_confusions(account.confusion)
    ]
    note = f"After step {step}. Rows: truth; columns: prediction; in percent of the pixels of the row."
    drawing = card("Confusion matrix", grids.confusion_map(account.confusion), grids.colour_key("%"), note=note)
    largest = card("The largest confusions", table(("truth", "taken for", "% of its pixels"), rows))
    return tag("div", drawing, largest, class_="cards")


def _diagnosis(account: Account, matrix: StepClasses) -> str:
    found = account.diagnosis
    if isinstance(found, str) or not found.steps:
        return tag("p", escape(found if isinstance(found, str) else "No later step to look at."), class_="note")
    last = found.steps[-1]
    rule = (
        f"rule {last.rule}, as the method trains"
        if last.used
        else "the method has no pseudo-labels: every prediction of the model of the step before counts as accepted"
    )
    note = (
        f"In every step old classes are hidden in the background. The model of the step before says what is there "
        f"({rule}); the data set knows the truth. Young classes are those learned after step 0: those that are taught "
        "as background die."
    )
    chart = line_chart(
        _shares(found), over_steps([audit.step for audit in found.steps]), top=100, text="Pseudo-labels over the steps"
    )
    return tag(
        "div",
        card("Pseudo-labels against the hidden truth (%)", chart, note=note),
        _recovered(found, matrix),
        _audit_table(found),
        class_="cards",
    )


def _shares(found: Diagnosis) -> list[Series]:
    lines = {
        "background pixels accepted": [audit.accepted for audit in found.steps],
        "right among the accepted": [audit.right for audit in found.steps],
        "old classes recovered": [audit.old_recovered for audit in found.steps],
        "young classes recovered": [audit.young_recovered for audit in found.steps],
    }
    return [
        Series(
            name,
            [(float(a.step), 100 * value) for a, value in zip(found.steps, values, strict=True) if value is not None],
            look,
        )
        for look, (name, values) in enumerate(lines.items())
    ]


def _audit_table(found: Diagnosis) -> str:
    head = ("step", "images", "accepted", "right", "old recovered", "young recovered", "young taught as background")
    rows = [
        [
            str(audit.step),
            str(audit.images),
            *map(
                grids.share,
                (audit.accepted, audit.right, audit.old_recovered, audit.young_recovered, audit.young_as_background),
            ),
        ]
        for audit in found.steps
    ]
    return card("The same in numbers (%)", table(head, rows), wide=True)


def _recovered(found: Diagnosis, matrix: StepClasses) -> str:
    steps = [audit.step for audit in found.steps]
    hidden = [name for name in matrix.names[1:] if any(audit.recovered(name) is not None for audit in found.steps)]
    values = {
        (name, audit.step): 100 * share
        for audit in found.steps
        for name in hidden
        if (share := audit.recovered(name)) is not None
    }
    note = "Share of the pixels of a class, hidden in the background of a step, that got their class back. Empty: none."
    return card(
        "Recovered, class by class (%)", grids.heat_map(hidden, steps, values, grids.first_of_steps(matrix)), note=note
    )


def _training(rows: Sequence[Mapping[str, Any]]) -> str:
    cards = training_cards(rows)
    if not cards:
        return tag("p", "The folder has no metrics.jsonl.", class_="note")
    note = "Every step has the same width here, however many iterations it has; a point is a mean over some of them."
    return tag("p", escape(note), class_="note") + tag("div", *cards, class_="cards")
