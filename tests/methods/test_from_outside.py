"""Methods, data sets and presets of installed packages, and methods from files that the user names."""

from __future__ import annotations

import json
import re
import shutil
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from running import TINY, evaluate_path

from plopcli.cli.app import main
from plopcli.data.datasets import DATASETS
from plopcli.errors import UsageError
from plopcli.methods import METHODS, get_method
from plopcli.methods.from_file import load_method_file
from plopcli.plugins import Origin, Registry
from plopcli.resolution.layers import read_settings, resolve_settings
from plopcli.runs.checkpoint import load_checkpoint
from plopcli.settings.presets import PRESETS

ROOT = Path(__file__).parents[2]
ANCHOR = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "own-method.md").read_text("utf-8"), re.DOTALL)[0]
EXTRAS = """
import dataclasses
from plopcli.data.datasets import DATASETS
from plopcli.settings.presets import Preset

shapes = dataclasses.replace(DATASETS["toy"], summary="shapes of another package", folder="toy")
quick = Preset("quick", "a test", {"train": {"batch": 4, "later": {"freeze_norm": "all"}}})
"""


def install(folder: Path, package: str, version: str, entries: dict[str, dict[str, str]], **modules: str) -> None:
    """What an installer leaves of a package: its modules and its metadata."""
    about = folder / f"{package}-{version}.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    lines = [
        line for group, found in entries.items() for line in (f"[{group}]", *(f"{k} = {v}" for k, v in found.items()))
    ]
    (about / "entry_points.txt").write_text("\n".join(lines) + "\n")
    for name, code in modules.items():
        (folder / f"{name}.py").write_text(code)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of installed packages: good ones, a broken one, and two that bring the same name."""
    folder = tmp_path_factory.mktemp("site")
    groups = {
        "plopcli.methods": {"anchor": "anchor_method:Anchor"},
        "plopcli.datasets": {"shapes": "anchor_extras:shapes"},
        "plopcli.presets": {"quick": "anchor_extras:quick"},
    }
    install(folder, "anchorage", "1.2", groups, anchor_method=ANCHOR, anchor_extras=EXTRAS)
    install(folder, "wreck", "0.1", {"plopcli.methods": {"wreck": "wreck:Wreck"}}, wreck="import nothing_of_this_name")
    for package in ("twin_a", "twin_b"):
        install(folder, package, "3.0", {"plopcli.methods": {"twin": "anchor_method:Anchor"}})
    install(folder, "usurper", "6.6", {"plopcli.methods": {"plop": "anchor_method:Anchor", "other": "json:dumps"}})
    return folder


@pytest.fixture
def fresh(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The packages are installed, and none is imported."""
    monkeypatch.syspath_prepend(str(site))
    for name in ("anchor_method", "anchor_extras"):
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.fixture
def installed(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The packages are installed, and no registry has looked for any yet."""
    for registry in (METHODS, DATASETS, PRESETS):
        monkeypatch.setitem(vars(registry), "_entries", None)
        del vars(registry)["_entries"]
        monkeypatch.setattr(registry, "_loaded", dict(registry._loaded))


@pytest.mark.usefixtures("installed")
def test_the_commands_show_what_packages_bring_and_name_what_is_broken(capsys: Any) -> None:
    assert main(["methods", "--json"]) == 0
    shown = capsys.readouterr()
    found = {entry["name"]: entry for entry in json.loads(shown.out)}
    assert (found["anchor"]["package"], found["anchor"]["version"]) == ("anchorage", "1.2")
    assert found["plop"]["package"] == "plopcli"
    assert not {"wreck", "twin", "other"} & set(found)
    warnings = [line for line in shown.err.splitlines() if "Warning:" in line]
    assert len(warnings) == 4
    assert any("'wreck' of package wreck 0.1" in line and "nothing_of_this_name" in line for line in warnings)
    assert any("twin_a 3.0 and twin_b 3.0 both bring a method called 'twin'" in line for line in warnings)
    assert any("usurper 6.6 brings a method called 'plop', which plop itself has" in line for line in warnings)
    assert any("'other' of package usurper 6.6" in line and "no subclass of Method" in line for line in warnings)
    assert main(["methods", "anchor"]) == 0
    assert "anchorage 1.2" in capsys.readouterr().out
    assert main(["datasets", "--json"]) == 0
    (shapes,) = [entry for entry in json.loads(capsys.readouterr().out) if entry["name"] == "shapes"]
    assert (shapes["package"], shapes["version"]) == ("anchorage", "1.2")


@pytest.mark.usefixtures("installed")
def test_names_of_packages_work_in_settings(capsys: Any) -> None:
    words = ["run-scenario", "--method", "Anchor", "--dataset", "shapes", "--preset", "quick", "--print-config"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "hold = 10.0" in printed
    assert "batch = 4  # preset quick" in printed
    assert 'freeze_norm = "all"  # preset quick' in printed
    refused = {"wreck": "package wreck 0.1 cannot be loaded", "twin": "Uninstall all but one", "x": "no method"}
    for name, said in refused.items():
        assert main(["run-scenario", "--method", name, "--print-config"]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.usefixtures("fresh")
def test_nothing_is_imported_that_nobody_asked_for() -> None:
    registry: Registry[Any] = Registry("method", "plopcli.methods", {"ft": get_method("ft")})
    assert "anchor" in registry
    assert "wreck" in registry
    assert "anchor_method" not in sys.modules
    assert registry["anchor"].__name__ == "Anchor"
    with pytest.raises(UsageError, match=r"package wreck 0\.1"):
        registry["wreck"]
    with pytest.raises(KeyError):
        registry["missing"]
    assert registry.get("missing") is None
    assert (registry.origin("anchor"), str(registry.origin("ft"))) == (
        Origin("anchorage", "1.2"),
        str(METHODS.origin("ft")),
    )


def test_entries_of_another_kind_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("anchor", "json:dumps", "plopcli.methods")
    monkeypatch.setattr("plopcli.plugins.entry_points", lambda group: [entry])
    for check in (METHODS._check, lambda _, found: found):
        registry: Registry[Any] = Registry("method", "plopcli.methods", {}, check)
        assert list(registry) == ([] if check is METHODS._check else ["anchor"])
        assert len(registry.problems()) == 1 - len(registry)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A method in a file, under a name of its own, and nothing left of it afterwards."""
    path = tmp_path / "mine" / "held.py"
    path.parent.mkdir()
    path.write_text(ANCHOR.replace('Literal["anchor"] = "anchor"', 'Literal["held"] = "held"'))
    monkeypatch.setattr("plopcli.methods.from_file._FILES", {})
    monkeypatch.setattr(METHODS, "_loaded", dict(METHODS._loaded))
    return path


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a new process knows nothing of the file."""
    monkeypatch.setattr("plopcli.methods.from_file._FILES", {})
    del METHODS["held"]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_method_from_a_file_trains_resumes_and_needs_no_code_to_measure(
    processes: int,
    file: Path,
    toy_root: Path,
    tmp_path: Path,
    quiet: Console,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    run, copy = tmp_path / "run", tmp_path / "run" / "method.py"
    keys = {**TINY, "data.root": toy_root, "compute.processes": processes, "compute.gpus": 0, "data.workers": 0}
    words = ["--dataset", "toy", "--task", "18-1", "--run", str(run)]
    words += [word for key, value in keys.items() for word in ("--set", f"{key}={value}")]
    assert main(["run-scenario", "--method", str(file), *words]) == 0
    assert copy.read_text() == file.read_text()
    assert json.loads((run / "environment.json").read_text())["method"] == str(file)
    results = json.loads((run / "results.json").read_text())
    whole = tmp_path / "whole"
    shutil.copytree(run / "checkpoints", whole)

    forget(monkeypatch)
    assert "held" not in METHODS
    again = evaluate_path(run, quiet)
    assert [step["miou"] for step in again.content()["steps"]] == [step["miou"] for step in results["steps"]]
    assert read_settings(run / "settings.toml").method.model_dump() == {"name": "held", "fusion": "off", "hold": 10.0}
    assert main(["report", str(run)]) == 0
    assert "held" in capsys.readouterr().out

    (run / "checkpoints" / "step-2.pt").unlink()
    assert main(["run-scenario", "--run", str(run), "--resume"]) == 2
    refused = capsys.readouterr().err
    assert "not run unasked" in refused
    assert f"--method {copy}" in refused
    assert "held" not in METHODS
    assert main(["run-scenario", "--run", str(run), "--resume", "--method", str(copy)]) == 0
    first, second = (load_checkpoint(path / "step-2.pt").model for path in (run / "checkpoints", whole))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import nothing_of_this_name", "ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("x = (", "SyntaxError"),
        ("raise SystemExit(0)", "SystemExit"),
        ("x = 1", "it holds none"),
        (ANCHOR + "\n\nclass Other(Method):\n    Settings = AnchorSettings\n", "it holds Anchor, Other"),
        (ANCHOR.replace('Literal["anchor"] = "anchor"', 'Literal["plop"] = "plop"'), "there is a method called 'plop'"),
        (ANCHOR.replace('Literal["anchor"] = "anchor"', 'Literal["A_B"] = "A_B"'), "Call it a-b"),
    ],
)
def test_files_that_hold_no_method(code: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.py"
    path.write_text(code)
    with pytest.raises(UsageError) as caught:
        resolve_settings({"method.name": str(path)}, environment={})
    assert said in caught.value.message
    assert "wrong.py" in caught.value.message
    with pytest.raises(UsageError, match=r"missing\.py: No such file"):
        load_method_file(tmp_path / "missing.py")


def test_only_the_command_line_has_a_file_run(file: Path, tmp_path: Path) -> None:
    file.write_text("raise AssertionError('it was run')")
    config = tmp_path / "config.toml"
    config.write_text(f'[method]\nname = "{file}"\n')
    for layer in (
        {"config": config, "environment": {}},
        {"environment": {"PLOP_METHOD_NAME": str(file)}},
        {"environment": {}, "assignments": [f"method.name={file}"]},
    ):
        with pytest.raises(UsageError, match="only where --method names it"):
            resolve_settings({}, **layer)  # type: ignore[arg-type]


def test_text_in_the_recipe_of_a_method(file: Path) -> None:
    code = file.read_text()
    file.write_text(
        code.replace("    first_step =", '    recipe = {"train.later.freeze_norm": "all"}\n    first_step =')
    )
    resolved = resolve_settings({"method.name": str(file)}, environment={}, preset="none")
    assert resolved.settings.train.later.freeze_norm == "all"
    assert resolved.origins["train.later.freeze_norm"] == "preset method/held"
    assert resolved.presets[-1].source.startswith('train.later.freeze_norm = "all" is part of it')
