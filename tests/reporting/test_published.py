from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from written_runs import write_run, written_results

from plopcli.reporting.comparison import compare, read_runs
from plopcli.reporting.tables import ComparisonTable, comparison_tables


def tables(path: Path, **head: Any) -> list[ComparisonTable]:
    results = written_results(last=(80.0, 65.0, 12.0, 24.0)) | head
    return comparison_tables(compare(read_runs([write_run(path, results)]))[0])


def cells(table: ComparisonTable, name: str) -> list[str]:
    return next([cell.text for cell in row.cells] for row in table.rows if row.name.startswith(name))


def test_like_is_compared_with_like(tmp_path: Path) -> None:
    with_background, without = tables(tmp_path / "run", dataset="voc", task="15-1")
    assert cells(with_background, "PLOP [") == ["–", "–", "–", "65.1", "21.1", "54.6", "67.2"]
    assert cells(with_background, "MiB [")[3:] == ["34.2", "13.5", "29.3", "54.2"]
    assert cells(with_background, "plop")[3:6] == ["72.5", "18.0", "45.2"]
    assert "without background" in without.title
    assert cells(without, "MiB [")[3:] == ["35.1", "13.5", "29.7", "–"]
    assert cells(without, "EWC [")[3:] == ["0.3", "4.3", "1.3", "–"]
    assert cells(without, "plop")[3:6] == ["65.0", "18.0", "33.7"]
    names = [row.name.partition(" [")[0] for row in with_background.rows]
    assert "EWC" not in names, "published without background only"
    assert len(names) == len(set(names))
    assert [row.name for row in without.rows if row.name.startswith("EWC")] == ["EWC [1]"], "told once, by its origin"
    assert any("PLOP (Douillard et al., CVPR 2021), Table 1" in note for note in with_background.notes)
    assert any("49.7 to 55.2" in note for note in with_background.notes)
    assert not any(cell.best for row in (*with_background.rows, *without.rows) if row.published for cell in row.cells)


@pytest.mark.parametrize(
    "head",
    [
        {"dataset": "voc", "task": "15-1", "split": "val"},
        {"dataset": "voc", "task": "15-1-order3"},
        {"dataset": "voc", "task": "15-1", "protocol": "sequential"},
        {"dataset": "toy", "task": "15-1"},
    ],
)
def test_nothing_is_put_beside_what_was_measured_otherwise(tmp_path: Path, head: dict[str, str]) -> None:
    (table,) = tables(tmp_path / "run", **head)
    assert not any(row.published for row in table.rows)


def test_domains_have_published_rows_in_the_main_table(tmp_path: Path) -> None:
    (table,) = tables(tmp_path / "run", dataset="cityscapes-domain", task="1-1", protocol="domain")
    assert cells(table, "PLOP [")[5] == "45.2"


def _rows() -> Iterator[tuple[str, str, bool, list[float]]]:
    content = json.loads(resources.files("plopcli.reporting").joinpath("published.json").read_text())
    for table in content["tables"]:
        for method, values in table["rows"].items():
            if table["dataset"] == "voc" and values[0] is not None:
                yield method, table["task"], table["background"], values


@pytest.mark.parametrize(("method", "task", "background", "values"), list(_rows()))
def test_the_convention_of_a_row_is_what_its_figures_say(
    method: str, task: str, background: bool, values: list[float]
) -> None:
    """Mean over all classes = weighted mean of old and new, if background is counted as the row says."""
    first = int(task.partition("-")[0])
    old, new, together, _ = values
    olds = first + background
    weighted = (olds * old + (20 - first) * new) / (olds + 20 - first)
    assert weighted == pytest.approx(together, abs=0.35)
