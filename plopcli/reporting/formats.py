"""Tables for the terminal (rich), Markdown, LaTeX and CSV."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from plopcli.files.spreadsheet import csv_text
from plopcli.reporting.comparison import FIGURES, Comparison, MeanStd
from plopcli.reporting.published import published
from plopcli.reporting.tables import ComparisonTable

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "–": "--",
}
_MARKDOWN = "\\`*_[]<>|"


def terminal_table(table: ComparisonTable) -> Table:
    """For the terminal; the best of a column is bold."""
    drawn = Table(title=Text(table.title), box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left")
    drawn.add_column(table.head[0], overflow="fold")
    for heading in table.head[1:]:
        drawn.add_column(heading, justify="right", no_wrap=True, min_width=len(heading))
    for row, after in zip(table.rows, (*table.rows[1:], None), strict=True):
        cells = [Text(cell.text, style="bold" if cell.best else "") for cell in row.cells]
        last_measured = after is not None and after.published and not row.published
        drawn.add_row(Text(row.name), *cells, end_section=last_measured)
    if table.notes:
        drawn.caption = Text("\n".join(table.notes))
    return drawn


def markdown(table: ComparisonTable) -> str:
    """A Markdown table, its title above and its notes below; without a newline at the end."""
    lines = [f"**{escape_markdown(table.title)}**", ""]
    lines += ["| " + " | ".join(table.head) + " |", "|---|" + "---:|" * (len(table.head) - 1)]
    for row in table.rows:
        cells = [f"**{cell.text}**" if cell.best else cell.text for cell in row.cells]
        lines.append(f"| {escape_markdown(row.name)} | " + " | ".join(cells) + " |")
    for note in table.notes:
        lines += ["", escape_markdown(note)]
    return "\n".join(lines)


def latex(table: ComparisonTable) -> str:
    """A LaTeX table that needs the package booktabs; without a newline at the end."""
    lines = [
        r"% \usepackage{booktabs}",
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{escape_latex(table.title)}}}",
        rf"  \begin{{tabular}}{{l{'r' * (len(table.head) - 1)}}}",
        r"    \toprule",
        f"    {' & '.join(map(escape_latex, table.head))} \\\\",
        r"    \midrule",
    ]
    ours = True
    for row in table.rows:
        if ours and row.published:
            lines.append(r"    \midrule")
            ours = False
        cells = [
            rf"\textbf{{{escape_latex(cell.text)}}}" if cell.best else escape_latex(cell.text) for cell in row.cells
        ]
        lines.append(f"    {' & '.join([escape_latex(row.name), *cells])} \\\\")
    lines += [r"    \bottomrule", r"  \end{tabular}"]
    lines += [rf"  \par{{\footnotesize {escape_latex(note)}}}" for note in table.notes]
    return "\n".join([*lines, r"\end{table}"])


def as_csv(comparisons: Sequence[Comparison]) -> str:
    """All entries, and what was published beside them, with full precision, in both conventions; nothing for no value.

    Columns: what the figures stand on; `kind` (measured, published); `background`, whether it counts; and every figure
    of `FIGURES` with its standard deviation over seeds.
    """
    names = [name.replace(" %", "_percent").replace(" ", "_") for name in FIGURES]
    spreads = [column for name in names for column in (name, f"{name}_sd")]
    setting = ("dataset", "task", "protocol", "split", "measured_on")
    head = (*setting, "kind", "label", "background", "runs", "seeds", "steps")
    rows: list[list[object]] = [[*head, *spreads, "source"]]
    for comparison in comparisons:
        for entry in comparison.entries:
            seeds = " ".join(str(run.results.seed) for run in entry.runs)
            for key, background in (("miou", "yes"), ("miou_foreground", "no")):
                about = ["measured", entry.label, background, len(entry.runs), seeds, entry.steps]
                rows.append([*comparison.setting, *about, *_numbers(entry.figures(key)), ""])
        for result in published(comparison.setting):
            values = [None, None, result.old, result.new, result.all, result.avg]
            numbers = _numbers([None if value is None else MeanStd(value, None) for value in values])
            about = ["published", result.method, "yes" if result.background else "no", "", "", ""]
            rows.append([*comparison.setting, *about, *numbers, result.source])
    return csv_text(rows, "\n").rstrip("\n")


def as_json(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """The same for programs: per comparison its setting, its entries and what was published."""
    return [
        {
            **comparison.setting._asdict(),
            "entries": [
                {
                    "label": entry.label,
                    "method": entry.runs[0].results.method,
                    "runs": [str(run.path) for run in entry.runs],
                    "seeds": [run.results.seed for run in entry.runs],
                    "steps": entry.steps,
                    "finished": not entry.note,
                    "miou": _named(entry.figures("miou")),
                    "miou_foreground": _named(entry.figures("miou_foreground")),
                }
                for entry in comparison.entries
            ],
            "published": [result._asdict() for result in published(comparison.setting)],
        }
        for comparison in comparisons
    ]


def escape_markdown(text: str) -> str:
    """Text that Markdown shows as it is, in a table too."""
    one_line = " ".join(text.split())
    return "".join(f"\\{letter}" if letter in _MARKDOWN else letter for letter in one_line)


def escape_latex(text: str) -> str:
    """Text that LaTeX sets as it is."""
    return "".join(_LATEX.get(letter, letter) for letter in " ".join(text.split()))


def _numbers(values: Sequence[MeanStd | None]) -> list[float | str]:
    cells: list[float | str] = []
    for value in values:
        cells += ["", ""] if value is None else [value.mean, "" if value.deviation is None else value.deviation]
    return cells


def _named(values: Sequence[MeanStd | None]) -> dict[str, dict[str, float | None] | None]:
    return {name: None if value is None else value._asdict() for name, value in zip(FIGURES, values, strict=True)}
