"""The reference pages of the documentation, written by the program: ``python -m plopcli.cli.reference [DIR]``.

docs/commands.md holds every command with its options, docs/settings.md every setting. Both come from the declarations
that the program itself runs on; a test compares them with the files.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from plopcli.cli.app import app
from plopcli.cli.help_pages import parameter_rows

if TYPE_CHECKING:
    from plopcli.settings.keys import Leaf

_WRITTEN = "<!-- Written by `make docs` (python -m plopcli.cli.reference). Do not edit: a test compares it. -->"
_COMMANDS = """# Commands

Every command and option, as `plop COMMAND --help` says them. Results go to standard output, everything else to standard
error. What `--set` reaches is in [settings.md](settings.md).

| exit code | |
|---|---|
| 0 | done |
| 1 | the run failed |
| 2 | wrong usage or settings |
| 3 | data or weights are missing or bad |
| 4 | the machine lacks something |
| 128 + N | stopped by signal N: 130 Ctrl-C, 138 SIGUSR1, 143 SIGTERM |
"""
_SETTINGS = """# Settings

Every setting by its dotted key. Four ways to give one, here `train.later.lr`:

| | |
|---|---|
| on the command line | `--set train.later.lr=0.0005`; frequent ones have an option of their own (`--lr-later`) |
| in the environment | `PLOP_TRAIN_LATER_LR=0.0005` |
| in a TOML file, for `--config` | `[train.later]` and below it `lr = 0.0005` |
| by a preset | `--preset`; `plop methods NAME` lists them |

The command line wins over the environment, that over the file, that over the preset, that over the defaults below.
`plop run-scenario ... --print-config` prints every setting of a run with its origin, as a file for `--config`; the file
`settings.toml` in a run's folder is the same. "No value" is written `"none"`.
"""
_RECIPE = """Each key exists twice: below `train.first` for step 0, and below `train.later` for all others. Below
`train.from_step.N` it changes the recipe from step N on: `--set train.from_step.3.lr=0.0005`.
"""


def pages() -> dict[str, str]:
    """The reference pages by the name of their file."""
    return {"commands.md": commands_page(), "settings.md": settings_page()}


def commands_page() -> str:
    """Every command, under the headings of `plop --help`."""
    group: Any = typer.main.get_command(app)
    parts = [_WRITTEN, "", _COMMANDS]
    panels: dict[str, list[str]] = {}
    for name, command in group.commands.items():
        panels.setdefault(command.rich_help_panel, []).append(name)
    for panel, names in panels.items():
        parts.append(f"- {panel}: " + ", ".join(f"[{name}](#plop-{name})" for name in names))
    parts += ["", "Before the command:", "", *_parameter_table(group, "plop")]
    for name, command in group.commands.items():
        parts += _command(name, command)
    return _joined(parts)


def _command(name: str, command: Any) -> Iterator[str]:
    yield f"\n## plop {name}\n"
    yield f"{_prose(command.help)}\n"
    yield "```sh"
    yield from (line.strip() for line in command.epilog.strip().splitlines())
    yield "```\n"
    yield from _parameter_table(command, f"plop {name}")


def _parameter_table(command: Any, path: str) -> Iterator[str]:
    with command.make_context(path, [], resilient_parsing=True) as context:
        rows = parameter_rows(command, context)
    for heading in sorted(dict.fromkeys(heading for heading, _ in rows), key=lambda heading: heading == "Options"):
        yield from _table((heading, "", "default"), (_parameter(*row) for under, row in rows if under == heading))
        yield ""


def _parameter(term: str, text: str) -> tuple[str, str, str]:
    """A row of a table: a help record, with what Typer appends in brackets taken apart."""
    said, _, behind = text.partition("  [")
    facts = [fact for fact in behind.removesuffix("]").split("; ") if fact and fact != "required"]
    default = next((fact.removeprefix("default: ") for fact in facts if fact.startswith("default: ")), "")
    others = [fact for fact in facts if not fact.startswith("default: ")]
    return f"`{term}`", said + (f" ({', '.join(others)})" if others else ""), default


def settings_page() -> str:
    """Every setting of a run, and those of every method."""
    from plopcli.methods import METHODS
    from plopcli.settings.keys import leaves
    from plopcli.settings.sections import MethodSettings

    common = [leaf for key, leaf in leaves(MethodSettings).items() if key != "method.name"]
    parts = [_WRITTEN, "", _SETTINGS]
    for section, found in _by_section(common).items():
        parts += [f"\n## {section or 'The run'}\n"]
        if section == "train.first":
            parts[-1] = "\n## train.first, train.later\n"
            parts += [_RECIPE, *_recipe_table(found)]
        else:
            parts += _leaf_table(found)
    parts += ["\n## method\n", "`method.name` is what `--method` sets. The rest depends on it.\n"]
    for name, method in METHODS.items():
        own = _own_leaves(method.Settings, METHODS[method.like].Settings if method.like else None)
        parts += [f"\n### {name}\n", f"{_prose(method.summary)}. Source: {method.source}.\n"]
        parts += [f"- step 0: {_prose(method.first_step)}"]
        parts += [f"- later steps: {_prose(method.later_steps)}"] if method.later_steps else []
        parts += [""]
        if method.like:
            parts += [f"All settings of [{method.like}](#{method.like}){', and:' if own else '.'}\n"]
        parts += _leaf_table(own) if own else []
    return _joined(parts)


def _by_section(found: Iterable[Leaf]) -> dict[str, list[Leaf]]:
    sections: dict[str, list[Leaf]] = {}
    for leaf in found:
        sections.setdefault(leaf.key.rpartition(".")[0], []).append(leaf)
    sections.pop("train.later", None)
    return sections


def _own_leaves(settings: Any, like: Any) -> list[Leaf]:
    """The settings of a method that the one it is built on lacks, or has with another default."""
    from plopcli.settings.keys import leaves

    known: Mapping[str, Leaf] = leaves(like) if like else {}
    found = [leaf for key, leaf in leaves(settings).items() if key.startswith("method.") and key != "method.name"]
    return [leaf for leaf in found if leaf.key not in known or known[leaf.key].default != leaf.default]


def _leaf_table(found: Sequence[Leaf]) -> Iterator[str]:
    rows = ((f"`{leaf.key}`", leaf.allowed, _value(leaf), leaf.description) for leaf in found)
    yield from _table(("key", "takes", "default", ""), rows)
    yield ""


def _recipe_table(found: Sequence[Leaf]) -> Iterator[str]:
    from plopcli.settings.keys import leaves
    from plopcli.settings.sections import MethodSettings

    later = leaves(MethodSettings)
    rows = []
    for leaf in found:
        name = leaf.key.removeprefix("train.first.")
        rows.append((f"`{name}`", leaf.allowed, _value(leaf), _value(later[f"train.later.{name}"]), leaf.description))
    yield from _table(("key", "takes", "default, first", "later", ""), rows)
    yield ""


def _value(leaf: Leaf) -> str:
    from plopcli.settings.keys import toml_value

    return "" if leaf.field.is_required() else f"`{toml_value(leaf.default)}`"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in row) + " |"


def _prose(text: str) -> str:
    """A docstring as Markdown: its paragraphs, with what would be read as markup escaped."""
    paragraphs = [" ".join(part.split()) for part in text.strip().split("\n\n")]
    return re.sub(r"(?<![`\w])\*|\*(?![`\w])", r"\\*", "\n\n".join(paragraphs))


def _joined(parts: Iterable[str]) -> str:
    text = "\n".join(parts)
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


def main(arguments: Sequence[str]) -> None:
    """Writes the pages to the folder named in ``arguments``, by default ``docs``."""
    folder = Path(arguments[0] if arguments else "docs")
    for name, text in pages().items():
        (folder / name).write_text(text, "utf-8")
        typer.echo(str(folder / name))


if __name__ == "__main__":
    main(sys.argv[1:])
