"""Output of commands: results on standard output, everything else on standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from plopcli.console.streams import echo, open_console, printable
from plopcli.errors import UsageError
from plopcli.files.strict_json import to_json

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from plopcli.plugins import Registry
    from plopcli.reporting.comparison import Comparison
    from plopcli.resolution.layers import Resolved
    from plopcli.runs.results import Results

#: Columns of tables that go to a file or a pipe, where there is no terminal to fit into.
_UNBOUNDED = 160


def message_console() -> Console:
    """The console for everything that is no result."""
    return open_console()


def say_lines(lines: Iterable[str]) -> None:
    """Lines on standard error, as they are."""
    console = message_console()
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def print_json(data: Any) -> None:
    """One JSON document on standard output; what cannot be shown there is escaped."""
    text = to_json(data, indent=2, ensure_ascii=False, default=str)
    if printable(text) != text or not _holds(text):
        text = to_json(data, indent=2, default=str)
    echo(text)


def _holds(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def print_tables(*tables: RenderableType) -> None:
    """Tables on standard output."""
    console = open_console(err=False, width=None if sys.stdout.isatty() else _UNBOUNDED, highlight=False)
    for table in tables:
        console.print(table)


def tell_problems(registry: Registry[Any]) -> None:
    """Warns of plug-ins of a registry that could not be loaded."""
    for problem in registry.problems():
        echo(f"Warning: {problem}", err=True)


def print_rows(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A plain table on standard output; numbers are right-aligned."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    listed = [list(row) for row in rows]
    table = Table(box=box.SIMPLE_HEAD)
    for position, column in enumerate(columns):
        numbers = bool(listed) and all(isinstance(row[position], (int, float)) for row in listed)
        table.add_column(column, justify="right" if numbers else "left", overflow="fold")
    for row in listed:
        table.add_row(*(Text("–" if cell is None else str(cell)) for cell in row))
    # A title of the table itself would be broken to the table's width.
    print_tables(Text(title, style="bold"), table)


def output_format(**asked: bool) -> str | None:
    """The chosen format: markdown, latex, csv or json; None for tables on the terminal.

    Raises:
        UsageError: More than one was chosen.
    """
    given = [name for name, wanted in asked.items() if wanted]
    if len(given) > 1:
        raise UsageError(f"--{' and --'.join(given)} contradict each other.", "Ask for one of them at a time.")
    return given[0] if given else None


def print_comparisons(comparisons: Sequence[Comparison], tables: Sequence[RenderableType], form: str | None) -> None:
    """Prints comparisons in a format of `output_format`; on the terminal after other tables."""
    from plopcli.reporting import formats
    from plopcli.reporting.tables import comparison_tables

    if form == "json":
        print_json(formats.as_json(comparisons))
        return
    if form == "csv":
        echo(formats.as_csv(comparisons))
        return
    compared = [table for comparison in comparisons for table in comparison_tables(comparison)]
    if form is None:
        print_tables(*tables, *map(formats.terminal_table, compared))
    else:
        write = formats.markdown if form == "markdown" else formats.latex
        echo("\n\n".join(map(write, compared)))


def print_results(results: Results | None, *, as_json: bool) -> None:
    """Prints the results of a run as tables or JSON; only the main process has any."""
    if results is None:
        return
    if as_json:
        print_json(results.content())
        return
    from plopcli.reporting.run_tables import class_table, step_table

    print_tables(step_table(results), class_table(results))


def tell_layers(resolved: Resolved) -> None:
    """Prints presets, overridden settings and warnings on standard error."""
    for preset in resolved.presets:
        echo(f"preset {preset.name}: {preset.source}", err=True)
    for line in (*resolved.overridden, *resolved.warnings):
        echo(line, err=True)
