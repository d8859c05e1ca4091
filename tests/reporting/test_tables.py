from __future__ import annotations

import re
from io import StringIO
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from plopcli.reporting.tables import class_table, comparison_table, markdown_table, step_table


def run(method: str, steps: list[dict[str, Any]], avg: float | None) -> dict[str, Any]:
    classes = list(steps[-1]["iou"])
    head = {"dataset": "toy", "task": "2-1", "protocol": "overlapped", "method": method, "seed": 42}
    numbered = [{"step": number, **step} for number, step in enumerate(steps)]
    return {**head, "classes": classes, "steps": numbered, "avg": avg}


def plop() -> dict[str, Any]:
    return run(
        "plop",
        [
            {"iou": {"background": 91.23, "cat": 60.0}, "miou": {"all": 75.62, "old": 75.62, "new": None}},
            {
                "iou": {"background": 80.0, "cat": 65.04, "dog": 12.34, "owl": None},
                "miou": {"all": 52.46, "old": 72.5, "new": 12.34},
            },
        ],
        avg=64.04,
    )


def fine_tuning() -> dict[str, Any]:
    return run(
        "ft",
        [
            {"iou": {"background": 90.0}, "miou": {"all": 90.0, "old": 90.0, "new": None}},
            {"iou": {"background": 8.0, "dog": 20.0}, "miou": {"all": 14.0, "old": 8.0, "new": 20.0}},
        ],
        avg=52.0,
    )


def joint() -> dict[str, Any]:
    return run("joint", [{"iou": {"background": 95.0}, "miou": {"all": 82.0, "old": 95.0, "new": None}}], avg=82.0)


def printed(table: Table, width: int = 100, styles: bool = False) -> str:
    colours: Literal["standard"] | None = "standard" if styles else None
    console = Console(width=width, file=StringIO(), force_terminal=styles, color_system=colours)
    console.print(table)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def cells(table: Table, first: str, width: int = 100) -> list[str]:
    """The words of the line that begins with ``first``."""
    return next(line.split() for line in printed(table, width).splitlines() if line.strip().startswith(first))


def test_step_table_shows_what_every_step_learned_and_its_miou() -> None:
    table = step_table(plop())
    assert cells(table, "0") == ["0", "background,", "cat", "75.6", "–", "75.6"]
    assert cells(table, "1") == ["1", "dog,", "owl", "72.5", "12.3", "52.5"]
    assert cells(table, "avg")[-1] == "64.0"
    assert "toy 2-1 overlapped, plop, seed 42" in printed(table)


def test_step_table_shortens_long_lists_of_classes() -> None:
    names = [f"class{number}" for number in range(101)]
    step = {"iou": dict.fromkeys(names, 1.0), "miou": {"all": 1.0, "old": 1.0, "new": None}}
    text = printed(step_table(run("plop", [step], avg=1.0)))
    assert "class5 and 95 more" in text
    assert "class6" not in text


def test_class_table_shows_iou_after_learning_and_at_the_end() -> None:
    table = class_table(plop())
    assert cells(table, "background") == ["background", "0", "91.2", "80.0", "-11.2"]
    assert cells(table, "cat") == ["cat", "0", "60.0", "65.0", "+5.0"]
    assert cells(table, "dog") == ["dog", "1", "12.3", "12.3", "+0.0"]
    assert cells(table, "owl") == ["owl", "1", "–", "–", "–"]


def test_comparison_table_shows_the_last_step_and_the_average() -> None:
    table = comparison_table([("PLOP", plop()), ("FT", fine_tuning()), ("joint", joint())])
    assert cells(table, "PLOP") == ["PLOP", "72.5", "12.3", "52.5", "64.0"]
    assert cells(table, "FT") == ["FT", "8.0", "20.0", "14.0", "52.0"]
    assert cells(table, "joint") == ["joint", "95.0", "–", "82.0", "82.0"]


def test_the_best_is_bold_and_joint_does_not_compete() -> None:
    text = printed(comparison_table([("PLOP", plop()), ("FT", fine_tuning()), ("joint", joint())]), styles=True)
    numbers = ["72.5", "12.3", "52.5", "64.0", "8.0", "20.0", "14.0", "52.0", "95.0", "82.0"]
    assert all(number in text for number in numbers)
    assert re.findall(r"\x1b\[1m *([0-9.]+)", text) == ["72.5", "52.5", "64.0", "20.0"]


def test_markdown_has_the_same_numbers() -> None:
    assert markdown_table([("PLOP", plop()), ("FT", fine_tuning()), ("a|b", joint())]).splitlines() == [
        "| run | old | new | all | avg |",
        "|---|---:|---:|---:|---:|",
        "| PLOP | **72.5** | 12.3 | **52.5** | **64.0** |",
        "| FT | 8.0 | **20.0** | 14.0 | 52.0 |",
        "| a\\|b | 95.0 | – | 82.0 | 82.0 |",
    ]


def test_joint_runs_compete_among_themselves_and_equal_values_share_the_first_place() -> None:
    table = markdown_table([("one", joint()), ("two", joint())])
    assert table.count("**95.0**") == 2
    assert "**–**" not in table


def test_ten_beats_nine() -> None:
    better, worse = plop(), plop()
    better["steps"][-1]["miou"]["old"], worse["steps"][-1]["miou"]["old"] = 10.0, 9.9
    table = markdown_table([("better", better), ("worse", worse)])
    assert "| better | **10.0** |" in table
    assert "| worse | 9.9 |" in table


def test_names_with_brackets_are_shown_as_they_are() -> None:
    assert "FT [bold]" in printed(comparison_table([("FT [bold]", fine_tuning())]))


def test_numbers_are_whole_in_a_narrow_terminal() -> None:
    results = plop()
    results["steps"][0]["iou"] = {"background": 1.0, **{f"a class with a long name {n}": 1.0 for n in range(9)}}
    text = printed(step_table(results), width=50)
    assert "75.6" in text
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 50
