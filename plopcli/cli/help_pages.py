"""Help pages: options in named groups, examples to copy at the end.

Typer's own pages are drawn by rich with Markdown and syntax highlighting, whose import alone takes longer than
`plop --help` may take altogether; these need nothing beyond Typer.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from plopcli.cli.options import described

MAX_WIDTH = 100
_COMMENT = "#"
_REST = "Options"


def _style(text: str, **style: Any) -> str:
    return text if "NO_COLOR" in os.environ else typer.style(text, **style)


def _write_section(formatter: Any, heading: str, rows: list[tuple[str, str]]) -> None:
    with formatter.section(_style(heading, bold=True)):
        formatter.write_dl([(_style(term, fg="cyan"), text) for term, text in rows])


def _write_grouped(formatter: Any, rows: list[tuple[str, tuple[str, str]]]) -> None:
    """Writes rows under their headings, in the order of first appearance; "Options" is last."""
    for heading in sorted(dict.fromkeys(heading for heading, _ in rows), key=lambda name: name == _REST):
        _write_section(formatter, heading, [row for under, row in rows if under == heading])


def parameter_rows(command: Any, ctx: Any) -> list[tuple[str, tuple[str, str]]]:
    """The options and arguments of a command as (heading, (term, text))."""
    rows = []
    for parameter in command.get_params(ctx):
        described(parameter)
        record = parameter.get_help_record(ctx)
        if record is None:
            continue
        term, text = record
        # Typer puts defaults that are described, not given, in parentheses of their own.
        shown = re.sub(r"default: \(([^()]*)\)", r"default: \1", text)
        if parameter.param_type_name == "argument":
            rows.append(("Arguments", (parameter.metavar or term, shown)))
        else:
            rows.append((getattr(parameter, "rich_help_panel", None) or _REST, (term, shown)))
    return rows


def _write_examples(formatter: Any, examples: str | None) -> None:
    if not examples:
        return
    with formatter.section(_style("Examples", bold=True)):
        for line in examples.strip().splitlines():
            command, mark, comment = line.strip().partition(_COMMENT)
            shown = command + _style(mark + comment, dim=True) if mark else command
            # Written as they are: a wrapped command could not be copied.
            formatter.write(f"{'':>{formatter.current_indent}}{shown}\n")


class PlopCommand(TyperCommand):
    """A command; its epilog holds examples, one per line."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command, with ``~`` expanded in all paths: shells do so only at the beginning of a word."""
        for name, value in ctx.params.items():
            if isinstance(value, Path):
                ctx.params[name] = Path(os.path.expanduser(value))  # noqa: PTH111  # pathlib's raises for unknown users
        try:
            return super().invoke(ctx)
        except (BrokenPipeError, EOFError) as error:  # of a process, say: typer takes these for a closed terminal
            raise RuntimeError(f"{type(error).__name__}: {error}") from error

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Writes the page."""
        self.format_usage(ctx, formatter)
        self.format_help_text(ctx, formatter)
        _write_grouped(formatter, parameter_rows(self, ctx))
        _write_examples(formatter, self.epilog)


class PlopGroup(TyperGroup):
    """The program; its commands are listed under the headings of their panels."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Writes the page."""
        self.format_usage(ctx, formatter)
        self.format_help_text(ctx, formatter)
        rows = []
        for name, command in self.commands.items():
            summary = (command.help or "").split("\n\n")[0].replace("\n", " ")
            rows.append((getattr(command, "rich_help_panel", None) or "Commands", (name, summary)))
        _write_grouped(formatter, rows)
        _write_grouped(formatter, parameter_rows(self, ctx))
        _write_examples(formatter, self.epilog)
