"""What the tests of the documentation read off its pages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "data/README.md")),
        *(ROOT / "docs").glob("*.md"),
    ]
)
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_FOR = re.compile(r"for (\w+) in (.+); do")


@cache
def text_of(page: Path) -> str:
    return page.read_text("utf-8")


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a language."""
    return [content for kind, content in _FENCE.findall(text_of(page)) if kind == language]


def prose(page: Path) -> str:
    """The page without its code blocks."""
    return _FENCE.sub("", text_of(page))


def block_commands(page: Path) -> list[str]:
    """What a reader would type: lines `plop ...` of shell blocks, loops done, and `$ plop ...` of others."""
    typed = [line for block in blocks(page, "sh") for line in _unrolled(_lines(block))]
    typed += re.findall(r"^\$ (plop .+)$", text_of(page), re.MULTILINE)
    return [command for line in typed for command in _plop_in(line)]


def inline_commands(page: Path) -> list[str]:
    """Spans of code in the prose that begin with `plop` and say more than that."""
    spans = re.findall(r"`([^`]+)`", prose(page))
    return [" ".join(span.split()) for span in spans if span.startswith("plop ")]


def _lines(block: str) -> list[str]:
    joined = block.replace("\\\n", " ")
    return [re.sub(r"(^|\s)#(?!SBATCH).*", "", line).strip() for line in joined.splitlines()]


def _unrolled(lines: list[str]) -> Iterator[str]:
    place = 0
    while place < len(lines):
        if loop := _FOR.fullmatch(lines[place]):
            end = _end_of(lines, place)
            for value in loop[2].split():
                yield from _unrolled([re.sub(rf"\${loop[1]}\b", value, line) for line in lines[place + 1 : end]])
            place = end
        else:
            yield lines[place]
        place += 1


def _end_of(lines: list[str], start: int) -> int:
    depth = 0
    for place in range(start, len(lines)):
        depth += bool(_FOR.fullmatch(lines[place])) - (lines[place] == "done")
        if depth == 0:
            return place
    raise AssertionError(f"the loop `{lines[start]}` has no end")


def _plop_in(line: str) -> Iterator[str]:
    if found := re.search(r"(?:^|\s|/)(plop .+)$", line):
        command = re.split(r"\s(?:\||>|&&)\s|;", found[1])[0].strip()
        if not line.startswith(("source", "pip", "make")):
            yield command
