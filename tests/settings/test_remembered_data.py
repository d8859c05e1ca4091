"""The data that a run remembers are beaten only by what is typed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from plopcli.cli.app import app
from plopcli.cli.resolution import resolve
from plopcli.evaluation.evaluate import Changes
from plopcli.resolution.layers import Resolved, settings_to_toml


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """Another data root with a data set of the same name."""
    (tmp_path / "elsewhere" / "toy").mkdir(parents=True)
    return tmp_path / "elsewhere"


@pytest.mark.parametrize("by", ["path", "root"])
def test_evaluation_looks_where_the_run_did(
    by: str, tiny: Callable[..., Resolved], toy_root: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLOP_DATA_ROOT", str(elsewhere))
    settings = tiny(**({"data__path": toy_root / "toy"} if by == "path" else {})).settings
    assert Changes().apply(settings).data == settings.data
    assert Changes(data_root=elsewhere).apply(settings).data.root == elsewhere
    assert Changes(data_root=elsewhere).apply(settings).data.path is None
    lost = {"path": Path("gone")} if by == "path" else {"root": Path("gone")}
    settings = settings.model_copy(update={"data": settings.data.model_copy(update=lost)})
    assert (Changes().apply(settings).data.root, Changes().apply(settings).data.path) == (elsewhere, None)
    (elsewhere / "toy").rmdir()
    assert Changes().apply(settings).data == settings.data


@pytest.mark.parametrize("variable", ["PLOP_DATA_ROOT", "PLOP_DATA_PATH"])
def test_a_resumed_run_keeps_its_data(
    variable: str, tiny: Callable[..., Resolved], tmp_path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import typer

    settings = tiny().settings
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "settings.toml").write_text(settings_to_toml(settings))
    monkeypatch.setenv(variable, str(elsewhere))
    command = typer.main.get_command(app).commands["run-scenario"]  # type: ignore[attr-defined]

    def resumed(*words: str) -> Resolved:
        arguments = ["--run", str(tmp_path / "run"), "--resume", *words]
        return resolve(command.make_context("run-scenario", arguments).params)

    assert resumed().settings.data == settings.data
    assert resumed("--data-root", str(elsewhere)).settings.data.root == elsewhere
    assert resumed("--data-path", str(elsewhere)).settings.data.path == elsewhere
