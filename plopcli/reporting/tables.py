"""Comparisons as plain tables, which `plopcli.reporting.formats` writes in several forms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from plopcli.reporting.comparison import FIGURES, Comparison, Entry, MeanStd
from plopcli.reporting.published import PublishedResult, published, remarks

NONE = "–"
_WITH, _WITHOUT = "miou", "miou_foreground"


class Cell(NamedTuple):
    """A figure as shown, and whether it is the best of its column."""

    text: str
    best: bool = False


class Row(NamedTuple):
    """A row: its name, then its cells. ``published`` rows stand below those that were measured."""

    name: str
    cells: tuple[Cell, ...]
    published: bool = False


class ComparisonTable(NamedTuple):
    """A table; ``head`` begins with the column of the rows' names, ``notes`` are lines below it."""

    title: str
    head: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


def comparison_tables(comparison: Comparison) -> list[ComparisonTable]:
    """A comparison beside published results.

    One table with background among the old classes, as `results.json` and the PLOP paper count; and one without, if
    anything was published so.
    """
    known = published(comparison.setting)
    domains = comparison.setting.protocol == "domain"
    alike = [result for result in known if result.background or domains]
    tables = [_table(comparison, alike, _WITH)]
    if foreground := [result for result in known if result not in alike]:
        tables.append(_table(comparison, foreground, _WITHOUT))
    return tables


def _table(comparison: Comparison, known: Sequence[PublishedResult], key: str) -> ComparisonTable:
    entries = comparison.entries
    rows = [
        Row(_name(entry), (Cell(str(len(entry.runs))), *cells))
        for entry, cells in zip(entries, _cells(entries, key), strict=True)
    ]
    sources = list(dict.fromkeys(result.source for result in known))
    for result in known:
        values = [None, None, result.old, result.new, result.all, result.avg]
        shown = [Cell(NONE if value is None else f"{value:.1f}") for value in values]
        rows.append(Row(f"{result.method} [{sources.index(result.source) + 1}]", (Cell(NONE), *shown), published=True))
    counted = "" if key == _WITH else ", without background"
    spread = ", mean ± standard deviation over seeds" if any(len(entry.runs) > 1 for entry in entries) else ""
    notes = [
        *comparison.common,
        *(f"[{number}] published: {source}" for number, source in enumerate(sources, start=1)),
        *(remarks(comparison.setting) if key == _WITH else []),
    ]
    title = f"{comparison.setting}: mIoU (%) after the last step{counted}{spread}"
    return ComparisonTable(title, ("run", "runs", *FIGURES), tuple(rows), tuple(notes))


def _name(entry: Entry) -> str:
    return f"{entry.label} ({entry.note})" if entry.note else entry.label


def _cells(entries: Sequence[Entry], key: str) -> list[list[Cell]]:
    """The figures of every entry; the best of a column, as shown, is marked.

    Only entries with the most steps compete: not a run with a single step (joint training) beside longer ones.
    """
    rows: list[list[MeanStd | None]] = [entry.figures(key) for entry in entries]
    farthest = max(entry.steps for entry in entries)
    competes = [entry.steps == farthest for entry in entries]
    best = []
    for column in zip(*rows, strict=True):
        contest = [f"{value.mean:.1f}" for value, able in zip(column, competes, strict=True) if able and value]
        best.append(max(contest, key=float, default=None))
    return [
        [
            Cell(NONE) if value is None else Cell(str(value), able and f"{value.mean:.1f}" == top)
            for value, top in zip(row, best, strict=True)
        ]
        for row, able in zip(rows, competes, strict=True)
    ]
