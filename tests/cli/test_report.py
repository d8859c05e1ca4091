"""`plop report`: what it prints and writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from written_runs import write_run, written_results

from plopcli.cli.app import main

LAST = ((80.0, 65.0, 12.0, 24.0), (70.0, 61.0, 20.0, 30.0))


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    """Two seeds of PLOP and one of fine-tuning."""
    plop = [write_run(tmp_path / f"plop-{n}", written_results("plop", n, last)) for n, last in enumerate(LAST)]
    return [*map(str, plop), str(write_run(tmp_path / "ft", written_results("ft", 0, (50.0, 0.0, 1.0, 40.0))))]


def test_runs_side_by_side(tmp_path: Path, runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", *runs, "--curves", str(tmp_path / "c.png")]) == 0
    shown = capsys.readouterr().out
    assert "toy 1-1 overlapped, plop, seed 1" in shown, "a table of each run"
    row = next(line.split() for line in shown.splitlines() if line.split()[:2] == ["plop", "2"])
    assert " ".join(row[2:]) == "75.0 ± 0.0 92.0 ± 6.6 69.0 ± 4.9 21.5 ± 4.9 45.2 ± 0.0 59.2 ± 0.2"
    assert (tmp_path / "c.png").stat().st_size > 1000
    assert main(["report", *runs, "--seeds"]) == 0
    seeds = capsys.readouterr().out
    assert "69.0 ± 4.9" in seeds
    assert "seed 1" not in seeds, "the table over seeds alone"


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("--markdown", "| ft | 1 | **75.0** | 33.3 | 25.0 | 20.5 | 22.8 | 46.0 |"),
        ("--latex", r"ft & 1 & \textbf{75.0} & 33.3 & 25.0 & 20.5 & 22.8 & 46.0 \\"),
        ("--csv", "toy,1-1,overlapped,test,central crops of split test,measured,ft,yes,1,0,3,75.0,,"),
    ],
)
def test_formats(runs: list[str], capsys: pytest.CaptureFixture[str], form: str, text: str) -> None:
    assert main(["report", *runs, form]) == 0
    assert text in capsys.readouterr().out


def test_one_format_at_a_time(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", *runs, "--csv", "--latex"]) == 2
    assert "--latex and --csv contradict each other" in capsys.readouterr().err


def test_json_of_each_run_and_of_the_comparison(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", *runs, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [run["label"] for run in told] == ["plop, seed 0", "plop, seed 1", "ft"]
    assert told[1]["steps"][2]["iou"]["cat"] == 61.0
    assert main(["report", *runs, "--json", "--seeds"]) == 0
    (comparison,) = json.loads(capsys.readouterr().out)
    assert [(entry["label"], entry["seeds"]) for entry in comparison["entries"]] == [("plop", [0, 1]), ("ft", [0])]
    assert comparison["entries"][0]["miou"]["old"]["mean"] == 69.0


def test_a_page_is_written_without_data_and_says_what_is_missing(
    tmp_path: Path, runs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "new" / "page.html"
    assert main(["report", *runs, "--html", str(page)]) == 0
    captured = capsys.readouterr()
    assert str(page) in captured.err
    assert "no images. The folder holds no checkpoints any more" in captured.err
    text = page.read_text()
    for label in ("plop, seed 0", "plop, seed 1", "ft"):
        assert f"<h2>{label}</h2>" in text
    assert "69.0 ± 4.9" in text
    assert main(["report", *runs, "--html", str(page / "below")]) == 2
    assert "Cannot write" in capsys.readouterr().err


def test_a_diagnosis_that_was_asked_for_and_cannot_be_made_is_an_error(
    runs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", runs[0], "--diagnose"]) == 2
    assert "two checkpoints of steps that follow each other" in capsys.readouterr().err


def test_a_folder_without_results_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 3
    assert "no results.json" in capsys.readouterr().err
