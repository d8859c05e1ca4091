from __future__ import annotations

from io import StringIO
from typing import Any

from rich.console import Console
from rich.table import Table

from plopcli.reporting.run_tables import class_table, step_table
from plopcli.runs.results import Results


def run(method: str, steps: list[dict[str, Any]], avg: float | None) -> Results:
    classes = list(steps[-1]["iou"])
    head = {"dataset": "toy", "task": "2-1", "protocol": "overlapped", "method": method, "seed": 42}
    numbered = [{"step": number, **step} for number, step in enumerate(steps)]
    return Results.model_validate({**head, "classes": classes, "steps": numbered, "avg": avg})


def plop() -> Results:
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


def printed(table: Table, width: int = 100) -> str:
    console = Console(width=width, file=StringIO())
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


def test_numbers_are_whole_in_a_narrow_terminal() -> None:
    long = plop().content()
    long["steps"][0]["iou"] = {"background": 1.0, **{f"a class with a long name {n}": 1.0 for n in range(9)}}
    text = printed(step_table(Results.model_validate(long)), width=50)
    assert "75.6" in text
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 50
