"""The page: comparison on top, then every run. One file, which loads nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import plopcli
from plopcli.errors import UsageError
from plopcli.files.atomic import write_atomic
from plopcli.reporting.account import Account
from plopcli.reporting.comparison import Comparison, Entry, spread
from plopcli.reporting.html.charts import Series, line_chart, over_steps
from plopcli.reporting.html.marks import card, escape, table, tag, void
from plopcli.reporting.html.run_section import run_section
from plopcli.reporting.sheets import Sheet, comparison_sheets

#: Nothing may be loaded, run or sent; styles and pictures are inside.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def write_page(path: Path, comparisons: Sequence[Comparison], accounts: Sequence[Account]) -> None:
    """Writes the report, whole or not at all.

    Raises:
        UsageError: It cannot be written.
    """
    text = render_page(comparisons, accounts)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text)
    except OSError as error:
        raise UsageError(
            f"Cannot write {path}: {error.strerror or error}.", "Choose another file with --html."
        ) from error


def render_page(comparisons: Sequence[Comparison], accounts: Sequence[Account]) -> str:
    """The report as one HTML document.

    Args:
        comparisons: Of all runs.
        accounts: Of every run, in the order of the page.
    """
    title = accounts[0].title if len(accounts) == 1 else f"{len(accounts)} runs side by side"
    anchors = [f"run-{number}" for number in range(1, len(accounts) + 1)]
    links = [
        tag("a", escape(account.label), href=f"#{anchor}") for account, anchor in zip(accounts, anchors, strict=True)
    ]
    made = f"plop {plopcli.__version__}, {time.strftime('%Y-%m-%d %H:%M')}"
    body = [
        tag("header", tag("h1", escape(title)), tag("p", escape(f"Report by {made}"), class_="about")),
        tag("nav", *links) if len(accounts) > 1 else "",
        *(_comparison(comparison, alone=len(accounts) == 1) for comparison in comparisons),
        *(run_section(account, anchor) for account, anchor in zip(accounts, anchors, strict=True)),
    ]
    head = [
        void("meta", charset="utf-8"),
        void("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        void("meta", name="viewport", content="width=device-width, initial-scale=1"),
        void("meta", name="color-scheme", content="light dark"),
        tag("title", escape(title)),
        tag("style", resources.files("plopcli.reporting.html").joinpath("page.css").read_text("utf-8")),
    ]
    return "<!DOCTYPE html>\n" + tag("html", tag("head", *head), tag("body", tag("main", *body)), lang="en") + "\n"


def _comparison(comparison: Comparison, *, alone: bool) -> str:
    """The tables of a comparison, with curves; of a single run only what was published beside it."""
    sheets = comparison_sheets(comparison)
    if alone and not any(row.published for sheet in sheets for row in sheet.rows):
        return ""
    cards = [_sheet(sheet) for sheet in sheets]
    if not alone:
        cards += [_curves(comparison.entries, name) for name in ("all", "old", "new")]
    return tag("section", tag("h2", escape(str(comparison.ground))), tag("div", *cards, class_="cards"))


def _sheet(sheet: Sheet) -> str:
    rows = [
        [
            tag("em", escape(row.name)) if row.published else escape(row.name),
            *(tag("b", escape(cell.text)) if cell.best else escape(cell.text) for cell in row.cells),
        ]
        for row in sheet.rows
    ]
    notes = [tag("p", escape(note), class_="note") for note in sheet.notes]
    return card(sheet.title.partition(": ")[2] or sheet.title, table(sheet.head, rows), *notes, wide=True)


def _curves(entries: Sequence[Entry], group: str) -> str:
    longest = max(entries, key=lambda entry: entry.steps)
    steps = [step["step"] for step in longest.runs[0].results["steps"]]
    series = []
    for look, entry in enumerate(entries):
        points = _means(entry, group)
        if points:
            flat = entry.steps == 1 and len(steps) > 1
            series.append(Series(entry.label, points, look, flat))
    return card(f"mIoU (%) of {group} classes", line_chart(series, over_steps(steps), top=100, text=f"mIoU, {group}"))


def _means(entry: Entry, group: str) -> list[tuple[float, float]]:
    """The mean over the seeds after every step."""
    by_step = zip(*(run.results["steps"] for run in entry.runs), strict=False)
    means = [(steps[0]["step"], spread([step["miou"][group] for step in steps])) for steps in by_step]
    return [(float(step), mean.mean) for step, mean in means if mean is not None]
