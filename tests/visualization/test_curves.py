from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from plopcli.runs.results import Results
from plopcli.visualization.curves import plot_comparison, plot_miou, plot_training

CLASSES = ["background", "cat", "dog", "horse"]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved."""
    figures: list[Figure] = []
    save = Figure.savefig

    def keep(self: Figure, *args: Any, **kwargs: Any) -> None:
        figures.append(self)
        save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def continual(name: str = "plop", scale: float = 1.0) -> Results:
    """Three steps; dog, the class of step 1, has no pixel in the truth."""
    steps = [
        {"iou": {"background": 90.0, "cat": 50.0}, "miou": {"all": 70.0, "old": 70.0, "new": None}},
        {"iou": {"background": 80.0, "cat": 40.0, "dog": None}, "miou": {"all": 60.0, "old": 60.0, "new": None}},
        {
            "iou": {"background": 70.0, "cat": 20.0, "dog": None, "horse": 0.0},
            "miou": {"all": scale * 30.0, "old": 45.0, "new": 0.0},
        },
    ]
    for number, step in enumerate(steps):
        step["step"] = number
    return results(name, steps, avg=53.3)


def joint() -> Results:
    iou = {"background": 95.0, "cat": 80.0, "dog": None, "horse": 70.0}
    return results("joint", [{"step": 0, "iou": iou, "miou": {"all": 82.0, "old": 87.5, "new": None}}], avg=82.0)


def results(method: str, steps: list[dict[str, Any]], avg: float | None) -> Results:
    run = {"dataset": "toy", "task": "1-1", "protocol": "overlapped", "method": method, "seed": 42}
    return Results.model_validate({**run, "classes": list(CLASSES), "steps": steps, "avg": avg})


def rows(step: int, iterations: int, **terms: float | None) -> list[dict[str, Any]]:
    """A log in which every term falls from its value to half of it."""
    return [
        {
            "step": step,
            "iteration": at,
            "terms": {name: value and value * (1 - 0.5 * at / iterations) for name, value in terms.items()},
            "lr": 0.1 * (1 - at / iterations),
        }
        for at in range(iterations)
    ]


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        picture.load()
        assert picture.format == "PNG"
        return picture.size


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_training_shows_every_term_of_every_step(tmp_path: Path, drawn: list[Figure]) -> None:
    log = rows(0, 15, ce=1.0) + rows(1, 8, ce=1.0, pod=2.0)
    plot_training(log, tmp_path / "t.png")
    assert size(tmp_path / "t.png") == (1210, 660)
    figure = drawn[0]
    losses, rates = figure.axes
    assert legend(figure) == ["ce", "pod"]
    assert losses.get_yscale() == "linear"
    ce = [line for line in losses.lines if line.get_color() == "C0" and len(line.get_xdata()) > 2]
    assert [len(line.get_ydata()) for line in ce] == [15, 8]
    assert max(ce[0].get_xdata()) < 1 < min(ce[1].get_xdata())
    np.testing.assert_allclose(ce[0].get_ydata(), [row["terms"]["ce"] for row in log[:15]])
    assert [label.get_text() for label in rates.get_xticklabels()] == ["step 0\n15 it.", "step 1\n8 it."]


def test_training_smooths_long_logs_and_keeps_the_raw_values(tmp_path: Path, drawn: list[Figure]) -> None:
    noise = np.random.default_rng(0).normal(size=400)
    log = [{"step": 0, "iteration": at, "terms": {"ce": 5 + value}, "lr": 0.1} for at, value in enumerate(noise)]
    plot_training(log, tmp_path / "t.png")
    raw, smooth = (line for line in drawn[0].axes[0].lines if len(line.get_xdata()) == 400)
    np.testing.assert_allclose(raw.get_ydata(), 5 + noise)
    assert np.std(smooth.get_ydata()) < 0.4
    assert np.mean(smooth.get_ydata()) == pytest.approx(5 + noise.mean(), abs=0.05)


def test_training_is_logarithmic_where_terms_lie_far_apart(tmp_path: Path, drawn: list[Figure]) -> None:
    plot_training(rows(0, 5, ce=1.0, pod=1e-4) + rows(1, 5, ce=1.0, pod=0.0), tmp_path / "t.png")
    assert drawn[0].axes[0].get_yscale() == "log"


def test_training_takes_the_later_of_two_rows_and_passes_over_gaps(tmp_path: Path, drawn: list[Figure]) -> None:
    log = rows(0, 4, ce=1.0)
    log[1]["terms"]["ce"] = math.nan
    log[2]["terms"]["ce"] = None
    log.append({"step": 0, "iteration": 3, "terms": {"ce": 7.0}, "lr": 0.1})
    log.append({"step": 0, "miou": 3.0})
    plot_training(log, tmp_path / "t.png")
    (line,) = (line for line in drawn[0].axes[0].lines if len(line.get_xdata()) == 2 and line.get_color() == "C0")
    assert list(line.get_ydata()) == [1.0, 7.0]


@pytest.mark.parametrize(
    "log", [[], rows(0, 1, ce=1.0), rows(0, 3, ce=None), [row for step in range(25) for row in rows(step, 2, ce=1.0)]]
)
def test_training_draws_short_and_empty_logs(tmp_path: Path, log: list[dict[str, Any]]) -> None:
    plot_training(log, tmp_path / "t.png")
    assert size(tmp_path / "t.png") == (1210, 660)


def test_miou_shows_the_three_curves_and_the_heat_map(tmp_path: Path, drawn: list[Figure]) -> None:
    plot_miou(continual(), tmp_path / "m.png")
    width, height = size(tmp_path / "m.png")
    assert width == 880
    assert 450 < height < 900
    curves, heat = drawn[0].axes[:2]
    lines = {line.get_label(): line.get_ydata() for line in curves.lines}
    assert list(lines) == ["old (45.0 at the end)", "new (0.0 at the end)", "all (30.0 at the end)"]
    np.testing.assert_array_equal(lines["new (0.0 at the end)"], [math.nan, math.nan, 0.0])
    np.testing.assert_array_equal(lines["all (30.0 at the end)"], [70.0, 60.0, 30.0])
    iou = heat.images[0].get_array()
    assert isinstance(iou, np.ma.MaskedArray)
    nan = math.nan
    np.testing.assert_array_equal(iou.filled(nan), [[90, 50, nan, nan], [80, 40, nan, nan], [70, 20, nan, 0]])
    assert [label.get_text() for label in heat.get_xticklabels()] == CLASSES
    assert sorted(text.get_text() for text in heat.texts) == ["0", "20", "40", "50", "70", "80", "90"]


def test_miou_of_a_single_step(tmp_path: Path, drawn: list[Figure]) -> None:
    plot_miou(joint(), tmp_path / "m.png")
    assert size(tmp_path / "m.png")[0] == 880
    assert [line.get_label() for line in drawn[0].axes[0].lines] == ["old (87.5 at the end)", "all (82.0 at the end)"]


def test_miou_without_a_single_value(tmp_path: Path) -> None:
    miou = dict.fromkeys(("all", "old", "new"))
    run = results("ft", [{"step": 0, "iou": dict.fromkeys(CLASSES), "miou": miou}], avg=None)
    plot_miou(run, tmp_path / "m.png")
    assert size(tmp_path / "m.png")[0] == 880


def test_miou_of_many_classes_with_any_name_stays_legible(tmp_path: Path, drawn: list[Figure]) -> None:
    names = [f"$class {number}_{{" for number in range(150)]
    step = {"step": 0, "iou": dict.fromkeys(names, 50.0), "miou": {"all": 50.0, "old": 50.0, "new": None}}
    plot_miou(results("plop", [step], avg=50.0).model_copy(update={"classes": names}), tmp_path / "m.png")
    width, _ = size(tmp_path / "m.png")
    assert 2000 < width < 2600
    heat = drawn[0].axes[1]
    labels = [label.get_window_extent() for label in heat.get_xticklabels()]
    assert all(left.x1 <= right.x0 + 2 for left, right in pairwise(labels))
    assert not heat.texts


def test_comparison_draws_every_run_and_joint_as_a_bound(tmp_path: Path, drawn: list[Figure]) -> None:
    runs = [("PLOP", continual()), ("FT", continual("ft", scale=0.1)), ("joint", joint())]
    plot_comparison(runs, tmp_path / "c.png")
    assert size(tmp_path / "c.png") == (1320, 550)
    assert legend(drawn[0]) == ["PLOP", "FT", "joint"]
    every, old = drawn[0].axes
    assert [list(line.get_ydata()) for line in every.lines] == [[70.0, 60.0, 30.0], [70.0, 60.0, 3.0], [82.0, 82.0]]
    assert [line.get_linestyle() for line in every.lines] == ["-", "-", "--"]
    assert list(old.lines[2].get_ydata()) == [87.5, 87.5]
    bottom, top = every.get_ylim()
    assert bottom == 0
    assert top > 87.5


def test_comparison_of_joint_runs_only(tmp_path: Path, drawn: list[Figure]) -> None:
    plot_comparison([("joint", joint())], tmp_path / "c.png")
    assert list(drawn[0].axes[0].lines[0].get_ydata()) == [82.0]


def test_the_legend_of_long_names_stays_on_the_figure(tmp_path: Path, drawn: list[Figure]) -> None:
    name = "runs/voc-15-1-overlapped-plop-with-a-very-long-name"
    plot_comparison([(f"{name}-{number}", continual()) for number in range(7)], tmp_path / "c.png")
    box = drawn[0].legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= 1320


def test_run_names_are_shown_as_they_are(tmp_path: Path, drawn: list[Figure]) -> None:
    plot_comparison([("a$b$", continual()), ("$", joint())], tmp_path / "c.png")
    assert legend(drawn[0]) == ["a$b$", "$"]
    assert not any(text.get_parse_math() for text in drawn[0].legends[0].get_texts())
