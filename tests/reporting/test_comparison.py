from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from written_runs import write_run, written_results

from plopcli.errors import DataError
from plopcli.reporting.comparison import FIGURES, compare, read_runs, run_labels
from plopcli.reporting.tables import comparison_tables

LAST = [(80.0, 65.0, 12.0, 24.0), (70.0, 61.0, 20.0, 30.0), (76.0, 66.0, 0.0, 18.0)]


def test_runs_that_differ_in_the_seed_only_form_one_row_with_mean_and_deviation(tmp_path: Path) -> None:
    results = [written_results("plop", seed, last) for seed, last in enumerate(LAST)]
    paths = [write_run(tmp_path / f"p{n}", each, "output.tensorboard=false") for n, each in enumerate(results)]
    (comparison,) = compare(read_runs(paths))
    (entry,) = comparison.entries
    assert entry.label == "plop"
    iou = np.array(LAST)
    plain = {"old": iou[:, :2].mean(1), "new": iou[:, 2:].mean(1), "all": iou.mean(1), "step 0": np.full(3, 75.0)}
    plain["kept %"] = 100 * plain["old"] / 75.0
    plain["avg"] = np.array([np.mean([step["miou"]["all"] for step in each["steps"]]) for each in results])
    for name, spread in zip(FIGURES, entry.figures(), strict=True):
        assert spread is not None
        assert spread.mean == pytest.approx(plain[name].mean(), abs=1e-12)
        assert spread.deviation == pytest.approx(plain[name].std(ddof=1), abs=1e-12)
    foreground = dict(zip(FIGURES, entry.figures("miou_foreground"), strict=True))
    assert foreground["old"] is not None
    assert foreground["old"].mean == pytest.approx(iou[:, 1].mean(), abs=1e-12)
    assert run_labels([comparison]) == {path: f"plop, seed {seed}" for seed, path in enumerate(paths)}


def test_where_and_how_fast_a_run_was_computed_does_not_tell_it_apart(tmp_path: Path) -> None:
    write_run(tmp_path / "a", written_results(seed=0), "compute.gpus=0", "data.workers=0", "data.root=/one")
    write_run(tmp_path / "b", written_results(seed=1), "compute.timeout=5", "data.workers=4", "data.root=/other")
    assert len(compare(read_runs([tmp_path / "a", tmp_path / "b"]))[0].entries) == 1


def test_settings_of_one_method_are_told_apart(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path / f"plain{seed}", written_results(seed=seed))
        write_run(tmp_path / f"exact{seed}", written_results(seed=seed), "method.estimator=exact")
    write_run(tmp_path / "weak", written_results(), "method.pod_factor=0.5")
    write_run(tmp_path / "ft", written_results("ft"))
    (comparison,) = compare(read_runs(sorted(tmp_path.iterdir())))
    rows = {entry.label: len(entry.runs) for entry in comparison.entries}
    assert rows == {"plop estimator=exact": 2, "ft": 1, "plop": 2, "plop pod_factor=0.5": 1}
    assert comparison.common == ("plop: pod_factor=0.0003, estimator=reference where not said otherwise",)


def test_the_same_seed_twice_is_no_spread_unless_asked_for(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / name, written_results(seed=4)) for name in ("one", "again")]
    (comparison,) = compare(read_runs([*paths, paths[0]]))
    assert [(entry.label, len(entry.runs)) for entry in comparison.entries] == [("one", 1), ("again", 1)]
    assert len(compare(read_runs(paths), pool=True)[0].entries) == 1


def test_runs_without_settings_are_told_apart_by_their_folder(tmp_path: Path) -> None:
    for name in ("x", "y"):
        write_run(tmp_path / name, written_results()) / "settings.toml"
        (tmp_path / name / "settings.toml").unlink()
    (comparison,) = compare(read_runs([tmp_path / "x", tmp_path / "y"]))
    assert [entry.label for entry in comparison.entries] == ["x", "y"]


def test_an_unfinished_run_stands_alone_and_does_not_compete(tmp_path: Path) -> None:
    half = written_results("ft", 1)
    half["steps"], half["avg"] = half["steps"][:2], 70.0
    paths = [
        write_run(tmp_path / "a", written_results("ft", 0, LAST[1])),
        write_run(tmp_path / "b", half),
        write_run(tmp_path / "c", written_results("plop", 0, LAST[0])),
    ]
    (comparison,) = compare(read_runs(paths))
    (table,) = comparison_tables(comparison)
    assert [row.name for row in table.rows] == ["a", "b (after step 1, not finished)", "plop"]
    assert not any(cell.best for cell in table.rows[1].cells)
    column = table.head.index("all") - 1
    assert [row.cells[column].best for row in table.rows] == [True, False, True], "45.25 as shown is 45.2, twice"
    with pytest.raises(DataError, match=r"different numbers of steps \(seed 0: 3, seed 1: 2\)"):
        compare(read_runs(paths), pool=True)


def test_best_is_by_mean_and_joint_does_not_compete(tmp_path: Path) -> None:
    paths = [
        write_run(tmp_path / "p0", written_results("plop", 0, (80.0, 10.0, 9.9, 9.9))),
        write_run(tmp_path / "p1", written_results("plop", 1, (80.0, 10.0, 9.9, 9.9))),
        write_run(tmp_path / "m", written_results("mib", 0, (78.0, 10.0, 10.0, 10.0))),
        write_run(tmp_path / "j", written_results("joint", 0, (90.0, 90.0, 90.0, 90.0), steps=1)),
    ]
    (table,) = comparison_tables(compare(read_runs(paths))[0])
    best = {
        row.name: [name for name, cell in zip(table.head[1:], row.cells, strict=True) if cell.best]
        for row in table.rows
    }
    assert best["joint"] == []
    assert "new" in best["mib"], "10.0 beats 9.9 as a number, not as a text"
    assert "new" not in best["plop"]
    assert "old" in best["plop"]
    assert "step 0" in best["plop"], "equal values share the first place"
    assert "step 0" in best["mib"]
    assert table.rows[-1].cells[1].text == "–"


def test_only_what_stands_on_the_same_ground_is_compared(tmp_path: Path) -> None:
    paths = [
        write_run(tmp_path / "a", written_results()),
        write_run(tmp_path / "b", written_results(protocol="disjoint")),
        write_run(tmp_path / "c", written_results(split="val")),
        write_run(tmp_path / "d", written_results(evaluation="full")),
        write_run(tmp_path / "e", written_results("ft")),
    ]
    comparisons = compare(read_runs(paths))
    assert [len(comparison.entries) for comparison in comparisons] == [2, 1, 1, 1]
    assert str(comparisons[1].setting) == "toy 1-1 disjoint, central crops of split test"


def test_a_folder_without_results_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no results\.json"):
        read_runs([tmp_path])
