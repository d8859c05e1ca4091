"""What commands print: results on standard output, everything else on standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import typer

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
    from rich.console import Console

    return Console(stderr=True)


def print_json(data: Any) -> None:
    """One JSON document on standard output."""
    typer.echo(to_json(data, indent=2, ensure_ascii=False, default=str))


def print_tables(*tables: RenderableType) -> None:
    """Tables on standard output."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else _UNBOUNDED, highlight=False)
    for table in tables:
        console.print(table)


def tell_problems(registry: Registry[Any]) -> None:
    """Warns of what installed packages should bring to a registry, and do not."""
    for problem in registry.problems():
        typer.echo(f"{typer.style('Warning:', fg='yellow')} {problem}", err=True)


def print_rows(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A plain table on standard output; numbers stand to the right."""
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
    """The one format that was asked for: markdown, latex, csv or json; None for tables on the terminal.

    Raises:
        UsageError: Several were.
    """
    given = [name for name, wanted in asked.items() if wanted]
    if len(given) > 1:
        raise UsageError(f"--{' and --'.join(given)} contradict each other.", "Ask for one of them at a time.")
    return given[0] if given else None


def print_comparisons(comparisons: Sequence[Comparison], tables: Sequence[RenderableType], form: str | None) -> None:
    """Comparisons on standard output in a format of `output_format`; on the terminal below other tables."""
    from plopcli.reporting import formats
    from plopcli.reporting.tables import comparison_tables

    if form == "json":
        print_json(formats.as_json(comparisons))
        return
    if form == "csv":
        typer.echo(formats.as_csv(comparisons))
        return
    compared = [table for comparison in comparisons for table in comparison_tables(comparison)]
    if form is None:
        print_tables(*tables, *map(formats.terminal_table, compared))
    else:
        write = formats.markdown if form == "markdown" else formats.latex
        typer.echo("\n\n".join(map(write, compared)))


def print_results(results: Results | None, *, as_json: bool) -> None:
    """The results of a run, for people or for programs; of several processes the main one alone has any."""
    if results is None:
        return
    if as_json:
        print_json(results.content())
        return
    from plopcli.reporting.run_tables import class_table, step_table

    print_tables(step_table(results), class_table(results))


def tell_layers(resolved: Resolved) -> None:
    """Says on standard error which presets apply, what was overridden and what was ignored."""
    for preset in resolved.presets:
        typer.echo(f"preset {preset.name}: {preset.source}", err=True)
    for line in (*resolved.overridden, *resolved.warnings):
        typer.echo(line, err=True)
