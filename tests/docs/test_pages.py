"""The documentation is true: its commands parse and mean something, its links, settings and targets exist."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
from reading import NAMES, PAGES, ROOT, block_commands, blocks, inline_commands, prose, text_of

from plopcli.cli.app import app
from plopcli.cli.resolution import resolve
from plopcli.methods import METHODS
from plopcli.reporting.comparison import SameSetting
from plopcli.reporting.published import published
from plopcli.settings.keys import CHANGES, Leaf, find_leaf, leaves
from plopcli.sweeps.plan import planned_runs, read_plan

PROGRAM: Any = typer.main.get_command(app)
TRAINING = ("run-scenario", "train-step", "doctor")
#: Pages whose code spans hold attributes of Python objects, which look like settings.
_OF_PYTHON = ("docs/python-api.md", "docs/own-method.md", "docs/own-backbone.md")
_KEY = re.compile(r"(?:data|scenario|model|method|train|compute|output)\.[a-z_]\w*(?:\.\w+)*")


def load(name: str, code: str, folder: Path) -> ModuleType:
    """A module from the code of a page."""
    file = folder / f"{name.rpartition('.')[2]}.py"
    file.write_text(code)
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _method_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """docs/own-method.md has been followed."""
    code = blocks(ROOT / "docs" / "own-method.md", "python")[0]
    module = load("plopcli.methods.anchor", code, tmp_path)
    monkeypatch.setitem(METHODS, "anchor", module.Anchor)
    yield
    del sys.modules["plopcli.methods.anchor"]


def parsed(command: str) -> Any:
    """The command's context, as the program parses it; nothing is run."""
    words = shlex.split(command)[1:]
    while words and words[0] in ("--debug",):
        words = words[1:]
    if words[0] == "--version" or words[-1] == "--help":
        return None
    assert words[0] in PROGRAM.commands, f"{command}: there is no such command"
    return PROGRAM.commands[words[0]].make_context(words[0], words[1:])


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_parse_and_their_settings_are_legal(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for command in block_commands(page):
        if re.search(r"\bRUN\b|\bFILE\b|\.\.\.", command):
            command = command.replace("...", "").replace("[", "").replace("]", "")
        # The page's own file, whose method is known by its name here.
        context = parsed(command.replace("--method anchor.py", "--method anchor"))
        if context is None:
            continue
        files = [context.params.get("config"), context.params.get("plan")]
        if context.info_name in TRAINING and files[0] is None:
            resolve(context.params)
        if context.info_name == "compare" and Path(files[1]).parent != Path():
            assert planned_runs(read_plan(files[1]))


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_in_the_prose_exist_with_their_options(page: Path) -> None:
    for command in inline_commands(page):
        words = command.split()
        if words[1] in ("COMMAND", "--help", "--debug", "--version"):
            continue
        assert words[1] in PROGRAM.commands, command
        known = {flag for each in PROGRAM.commands[words[1]].params for flag in (*each.opts, *each.secondary_opts)}
        given = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert given - known - {"--help"} == set(), command


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_options_in_the_prose_exist(page: Path) -> None:
    if page.name in ("from-the-original.md", "security.md"):
        pytest.skip("it names options of other programs; tests/cli/test_from_the_original.py looks at those")
    commands = [PROGRAM, *PROGRAM.commands.values()]
    known = {flag for command in commands for each in command.params for flag in (*each.opts, *each.secondary_opts)}
    others = {
        "--help",
        "--signal",
        "--shm-size",
        "--no-build-isolation",
        "--logdir",
    }  # of srun, docker, pip, tensorboard
    spans = re.findall(r"`([^`]+)`", prose(page))
    named = {word for span in spans for word in re.findall(r"(?<![\w-])--[a-z][\w-]*", span)}
    assert named - known - others == set()


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?:|mailto:", target) or "/security/advisories" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(file), f"{page.name}: {target}"


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def known_leaves() -> dict[str, Leaf]:
    return {key: leaf for method in METHODS.values() for key, leaf in leaves(method.Settings).items()}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_settings_exist_and_take_the_value_beside_them(page: Path) -> None:
    known = known_leaves()
    if str(page.relative_to(ROOT)) in _OF_PYTHON:
        spans = re.findall(r"--set (\S+)", text_of(page))
    else:
        spans = re.findall(r"`([^`]+)`", prose(page))
    for span in spans:
        for match in re.finditer(rf"(?<![\w./]){_KEY.pattern}(?![\w/*(])(?: ?= ?([^\s`,;:)]+))?", span):
            key, value = match[0].partition("=")[0].strip(), match[1]
            if key.rpartition(".")[2] in ("md", "py", "json", "toml", "csv", "png", "txt", "onnx"):
                continue
            leaf = find_leaf(key.replace(".N.", ".1."), known)
            is_table = any(other.startswith(key + ".") for other in known) or key.rpartition(".")[0] == CHANGES
            assert leaf is not None or is_table, f"{page.name}: {span}"
            if leaf is not None and value and value != "N":
                takers = [leaves(m.Settings).get(key, leaf) for m in METHODS.values()]
                assert any(each.accepts(each.parse(value.strip("\"'"))) for each in takers), f"{page.name}: {span}"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    typed = "\n".join([*blocks(page, "sh"), *re.findall(r"`([^`]+)`", prose(page))])
    assert set(re.findall(r"(?:^|\s)make ([a-z-]+)", typed, re.MULTILINE)) - targets == set()


def test_every_page_is_in_the_index() -> None:
    index = text_of(ROOT / "docs" / "README.md")
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert {name for name in pages if f"]({name})" not in index} == set()


def reproduced() -> dict[tuple[str, str, str], set[str]]:
    """The methods that docs/reproduce.md trains, by data set, task and protocol."""
    found: dict[tuple[str, str, str], set[str]] = {}
    for command in block_commands(ROOT / "docs" / "reproduce.md"):
        # The page's own file, whose method is known by its name here.
        context = parsed(command.replace("--method anchor.py", "--method anchor"))
        if context.info_name == "run-scenario" and context.params["splits"] is None:
            settings = resolve(context.params).settings
            dataset = settings.data.dataset
            protocol = "domain" if dataset.endswith("-domain") else settings.scenario.protocol
            found.setdefault((dataset, settings.scenario.task, protocol), set()).add(settings.method.name)
    return found


def test_every_published_row_has_its_command_and_its_numbers() -> None:
    runs, page = reproduced(), text_of(ROOT / "docs" / "reproduce.md")
    tables = json.loads((ROOT / "plopcli" / "reporting" / "published.json").read_text())["tables"]
    grounds = {(table["dataset"], table["task"], table["protocol"]) for table in tables}
    assert len(grounds) == 14
    for dataset, task, protocol in grounds:
        for row in published(SameSetting(dataset, task, protocol, "test", "")):
            assert row.method.lower() in runs[dataset, task, protocol], (row.method, dataset, task, protocol)
            if "copied" in row.source:
                continue
            told = [cells for cells in rows_of(page) if cells[:2] == [task, row.method]]
            numbers = [row.old, row.new, row.all, row.avg]
            counted = "counted" if row.background else "left out"
            assert any(
                [None if cell == "–" else float(cell) for cell in cells[2:6]] == numbers and cells[6] == counted
                for cells in told
            ), (row, told)


def rows_of(page: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in re.findall(r"^\|.+\|$", page, re.M)]


def test_runs_that_take_step_0_over_take_it_from_one_that_was_trained_before() -> None:
    """And it was trained with the same step 0."""
    from plopcli.engine.checks import shares_first_step

    trained: dict[str, Any] = {}
    for command in block_commands(ROOT / "docs" / "reproduce.md"):
        # The page's own file, whose method is known by its name here.
        context = parsed(command.replace("--method anchor.py", "--method anchor"))
        if context.info_name != "run-scenario":
            continue
        settings = resolve(context.params).settings
        donor = context.params["init_from"]
        if donor is not None:
            assert shares_first_step(trained[str(donor)], settings), command
        assert str(settings.run_folder) not in trained or context.params["splits"], command
        trained[str(settings.run_folder)] = settings
    assert len(trained) > 60
