from __future__ import annotations

import csv
import io
import re
from pathlib import Path

from rich.console import Console
from written_runs import write_run, written_results

from plopcli.reporting.comparison import Comparison, Entry, MeasuredRun, by_label, setting_of
from plopcli.reporting.formats import as_csv, as_json, escape_latex, escape_markdown, latex, markdown, terminal_table
from plopcli.reporting.tables import Cell, ComparisonTable, Row, comparison_tables
from plopcli.runs.results import Results

ODD = r"50% of a_b & c|d #1 {x} ~^ $5 \o [bold]"
SHEET = ComparisonTable(
    "title | 100 %",
    ("run", "kept %", "all"),
    (
        Row(ODD, (Cell("95.9 ± 1.6", best=True), Cell("–"))),
        Row("PLOP [1]", (Cell("–"), Cell("54.6")), published=True),
    ),
    ("[1] published: somewhere & elsewhere",),
)


def comparison(last: tuple[float | None, ...] = (80.0, 65.0, 12.0, 24.0)) -> Comparison:
    results = [Results.model_validate(written_results("plop", seed, last)) for seed in (0, 1)]
    runs = [MeasuredRun(Path(str(seed)), each, None) for seed, each in enumerate(results)]
    return Comparison(setting_of(runs[0].results), (Entry('a "quoted", label', tuple(runs)),))


def test_markdown_is_one_table_whatever_the_names() -> None:
    lines = markdown(SHEET).splitlines()
    rows = [re.split(r"(?<!\\)\|", line) for line in lines if line.startswith("|")]
    assert {len(row) for row in rows} == {5}
    assert rows[2][1].strip() == r"50% of a\_b & c\|d #1 {x} ~^ $5 \\o \[bold\]"
    assert rows[2][2].strip() == "**95.9 ± 1.6**"
    assert rows[2][3].strip() == "–"
    assert escape_markdown("two\nlines") == "two lines"


def test_latex_escapes_everything_that_means_something_there() -> None:
    text = latex(SHEET)
    assert r"50\% of a\_b \& c\textbar{}d \#1 \{x\} \textasciitilde{}\textasciicircum{} \$5 \textbackslash{}o" in text
    assert r"\textbf{95.9 $\pm$ 1.6} & -- \\" in text
    assert r"run & kept \% & all \\" in text
    assert text.count(r"\begin{") == text.count(r"\end{") == 2
    assert text.index("54.6") > text.index(r"\midrule", text.index(r"\midrule") + 1), "published rows below a rule"
    assert escape_latex("a\nb") == "a b"


def test_csv_has_full_precision_and_nothing_where_there_is_nothing() -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv([comparison((80.0, 65.123456789, None, None))]))))
    assert [row["background"] for row in rows] == ["yes", "no"]
    assert rows[0]["label"] == 'a "quoted", label'
    assert float(rows[0]["old"]) == (80.0 + 65.123456789) / 2
    assert float(rows[1]["old"]) == 65.123456789
    assert rows[0]["old_sd"] == "0.0"
    assert rows[0]["new"] == rows[0]["new_sd"] == ""
    assert rows[0]["seeds"] == "0 1"
    assert rows[0]["dataset"] == "toy"


def test_csv_and_json_hold_what_was_published() -> None:
    runs = (MeasuredRun(Path("r"), Results.model_validate(written_results(dataset="voc", task="15-1")), None),)
    one = Comparison(setting_of(runs[0].results), (Entry("plop", runs),))
    rows = list(csv.DictReader(io.StringIO(as_csv([one]))))
    plop = next(row for row in rows if row["kind"] == "published" and row["label"] == "PLOP")
    assert (plop["all"], plop["avg"], plop["background"]) == ("54.64", "67.21", "yes")
    (told,) = as_json([one])
    assert {row["method"]: row["all"] for row in told["published"] if row["background"]}["PLOP"] == 54.64
    assert told["entries"][0]["miou"]["old"] == {"mean": 72.5, "deviation": None}
    assert told["entries"][0]["finished"] is True


def test_the_terminal_shows_names_as_they_are_and_the_best_in_bold() -> None:
    console = Console(width=100, file=io.StringIO(), force_terminal=True, color_system="standard")
    console.print(terminal_table(SHEET))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "[bold]" in shown
    assert re.findall(r"\x1b\[1m *([0-9.]+)", shown) == ["95.9"]


def test_labels_that_are_known_are_kept(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / str(seed), written_results("mib", seed)) for seed in (0, 1)]
    labelled = [
        ("mib 100", path, Results.model_validate(written_results("mib", seed))) for seed, path in enumerate(paths)
    ]
    (table,) = comparison_tables(by_label(labelled)[0])
    assert [(row.name, row.cells[0].text) for row in table.rows] == [("mib 100", "2")]
