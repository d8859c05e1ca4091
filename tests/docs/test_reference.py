"""docs/commands.md and docs/settings.md are what the program says."""

from __future__ import annotations

from pathlib import Path

import pytest
from reading import ROOT, text_of

from plopcli.cli.reference import commands_page, main, pages, settings_page
from plopcli.methods import METHODS
from plopcli.settings.keys import leaves


@pytest.mark.parametrize("name", ["commands.md", "settings.md"])
def test_the_page_is_not_stale(name: str) -> None:
    assert text_of(ROOT / "docs" / name) == pages()[name], "run `make docs`"


def test_it_writes_where_it_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(tmp_path)])
    assert capsys.readouterr().out.split() == [str(tmp_path / "commands.md"), str(tmp_path / "settings.md")]
    assert (tmp_path / "settings.md").read_text("utf-8") == settings_page()


def test_every_setting_of_every_method_is_there() -> None:
    page = settings_page()
    for name, method in METHODS.items():
        assert f"\n### {name}\n" in page
        for key in leaves(method.Settings):
            # Those of later steps share the rows of the first.
            shown = key.removeprefix("train.first.").removeprefix("train.later.")
            assert f"| `{shown}` |" in page or key == "method.name", key


def test_defaults_are_those_of_the_recipe_as_a_whole() -> None:
    assert "| `lr` | a number > 0 | `0.01` | `0.001` |" in settings_page()


def test_every_command_has_its_section_arguments_and_examples() -> None:
    page = commands_page()
    section = page.partition("\n## plop run-scenario\n")[2].partition("\n## ")[0]
    assert "| `--init-from RUN` | Take step 0 over from another run whose settings agree. |  |" in section
    assert "| `--seed N` | Seed of initial weights, order and augmentation. | 42 |" in section
    assert "plop run-scenario --dataset toy --dry-run" in section
    export = page.partition("\n## plop export\n")[2].partition("\n## ")[0]
    assert "| `MODEL` | A checkpoint or a run folder. |" in export


def test_tables_keep_their_shape() -> None:
    for page in pages().values():
        width = 0
        for line in page.splitlines():
            bars = line.replace("\\|", "").count("|")
            if not line.startswith("|"):
                width = 0
            elif width:
                assert bars == width, line
            else:
                width = bars
