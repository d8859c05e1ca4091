"""Figures over the steps, against plain recomputations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from plopcli.metrics.forgetting import backward_transfer, forgetting, harmonic
from plopcli.metrics.segmentation import step_metrics
from plopcli.runs.results import Results

NAMES = ["background", "cat", "dog", "owl", "bus"]


def entry(step: int, ious: dict[str, float | None], **groups: Any) -> dict[str, Any]:
    group = {"all": 50.0, "old": 60.0, "new": 20.0} | groups
    return {"step": step, "iou": ious, "miou": group, "miou_foreground": {"all": 40.0, "old": 50.0, "new": 20.0}}


def results(*entries: dict[str, Any], domains: list[list[str]] | None = None) -> Results:
    header = {"dataset": "toy", "task": "1-1", "protocol": "overlapped", "method": "ft", "seed": 0, "classes": NAMES}
    return Results.model_validate({**header, "steps": list(entries), "domains": domains, "avg": None})


THREE = results(
    entry(0, {"background": 90.0, "cat": 70.0}, all=80.0, old=80.0, new=None),
    entry(1, {"background": 92.0, "cat": 40.0, "dog": 30.0}, all=54.0),
    entry(2, {"background": 80.0, "cat": 10.0, "dog": 35.0, "owl": 50.0}, old=45.0, new=42.5, all=43.75),
)


def test_forgetting_is_from_the_best_and_transfer_from_the_first() -> None:
    found = THREE.figures.content()
    assert found["forgetting"]["by_class"] == {"background": 12.0, "cat": 60.0, "dog": -5.0, "owl": None}
    assert found["backward_transfer"]["by_class"] == {"background": -10.0, "cat": -60.0, "dog": 5.0, "owl": None}
    assert found["forgetting"]["mean"] == pytest.approx((12 + 60 - 5) / 3)
    assert found["forgetting"]["mean_foreground"] == pytest.approx((60 - 5) / 2)
    assert found["backward_transfer"]["mean"] == pytest.approx((-10 - 60 + 5) / 3)
    assert found["backward_transfer"]["mean_foreground"] == pytest.approx((-60 + 5) / 2)


def test_means_in_both_conventions() -> None:
    found = THREE.figures.content()
    assert found["avg"] == pytest.approx((80 + 54 + 43.75) / 3)
    assert found["avg_foreground"] == pytest.approx(40)
    assert found["hiou"] == pytest.approx(2 * 45 * 42.5 / 87.5)
    assert found["hiou_foreground"] == pytest.approx(2 * 50 * 20 / 70)


def test_the_matrix_has_no_value_before_a_class_was_learned() -> None:
    matrix = THREE.matrix
    assert matrix.names == ["background", "cat", "dog", "owl"]
    assert matrix.learned.tolist() == [0, 0, 1, 2]
    assert matrix.values[2].tolist() == [80, 10, 35, 50]
    assert np.isnan(matrix.values[0, 2:]).all()


def test_against_a_plain_recomputation() -> None:
    rng = np.random.default_rng(3)
    learned = np.array([0, 0, 0, 1, 1, 2, 4])
    values = rng.uniform(0, 100, (5, 7))
    values[rng.random(values.shape) < 0.15] = np.nan
    for column, first in enumerate(learned):
        values[:first, column] = np.nan
    fallen, changed = forgetting(values, learned), backward_transfer(values, learned)
    for column, first in enumerate(learned):
        earlier = [value for value in values[first:-1, column] if not np.isnan(value)]
        if earlier and not np.isnan(values[-1, column]):
            assert fallen[column] == pytest.approx(max(earlier) - values[-1, column], abs=1e-9)
        else:
            assert np.isnan(fallen[column])
        if first < 4 and not np.isnan(values[[first, -1], column]).any():
            assert changed[column] == pytest.approx(values[-1, column] - values[first, column], abs=1e-9)
        else:
            assert np.isnan(changed[column])


def test_one_step_has_nothing_to_forget() -> None:
    found = results(entry(0, {"background": 90.0, "cat": 70.0}, old=80.0, new=None)).figures.content()
    assert found["forgetting"]["mean"] is None
    assert found["forgetting"]["by_class"] == {"background": None, "cat": None}
    assert found["hiou"] is None
    assert found["avg"] == 50.0


def test_missing_steps_leave_no_figure_that_looks_like_a_result() -> None:
    for some in (results(), THREE.with_steps(THREE.steps[1:])):
        assert set(some.figures.content().values()) == {None}


def test_results_of_older_versions_and_a_last_step_without_pixels() -> None:
    old = results(*({**step.content(), "miou_foreground": None} for step in THREE.steps))
    assert old.figures.hiou_foreground is None
    assert old.figures.avg_foreground is None
    assert old.figures.avg is not None


def test_nothing_new_and_nothing_old_is_zero_not_a_division() -> None:
    assert harmonic(0.0, 0.0) == 0.0
    assert harmonic(60.0, 20.0) == pytest.approx(30)
    assert harmonic(None, 20.0) is None


def test_domains_take_the_place_of_classes() -> None:
    steps = [
        {
            "step": 0,
            "iou": {"road": 60.0},
            "miou": {"all": 60.0, "old": None, "new": None},
            "domains": {"aachen": {"miou": 60.0}},
        },
        {
            "step": 1,
            "iou": {"road": 50.0},
            "miou": {"all": 50.0, "old": None, "new": None},
            "domains": {"aachen": {"miou": 45.0}, "bremen": {"miou": 55.0}},
        },
    ]
    found = results(*steps, domains=[["aachen"], ["bremen"]]).figures.content()
    assert found["forgetting"] == {
        "mean": 15.0,
        "mean_foreground": 15.0,
        "by_domain": {"aachen": 15.0, "bremen": None},
    }
    assert found["hiou"] is None


def test_from_confusion_matrices_by_hand() -> None:
    """The whole way from pixels, written out once with nothing but loops and sets."""
    rng = np.random.default_rng(1)
    truth = [rng.integers(0, 3 + step, 4000) for step in range(3)]
    predicted = [np.where(rng.random(4000) < 0.6, t, rng.integers(0, 3 + step, 4000)) for step, t in enumerate(truth)]
    entries = []
    for step, (t, p) in enumerate(zip(truth, predicted, strict=True)):
        confusion = np.zeros((3 + step, 3 + step), dtype=np.int64)
        np.add.at(confusion, (t, p), 1)
        entries.append({"step": step, **step_metrics(confusion, NAMES[: 3 + step], 3)})

    def plain(step: int, label: int) -> float:
        hit = set(np.flatnonzero(truth[step] == label)) & set(np.flatnonzero(predicted[step] == label))
        either = set(np.flatnonzero(truth[step] == label)) | set(np.flatnonzero(predicted[step] == label))
        return 100 * len(hit) / (len(either) + 1e-6)

    found = results(*entries).figures.content()
    fallen = [max(plain(0, c), plain(1, c)) - plain(2, c) for c in range(3)] + [plain(1, 3) - plain(2, 3)]
    changed = [plain(2, c) - plain(0, c) for c in range(3)] + [plain(2, 3) - plain(1, 3)]
    old, new = (np.mean([plain(2, c) for c in group]) for group in (range(3), range(3, 5)))
    assert found["forgetting"]["mean"] == pytest.approx(np.mean(fallen), abs=1e-9)
    assert found["backward_transfer"]["mean"] == pytest.approx(np.mean(changed), abs=1e-9)
    assert found["hiou"] == pytest.approx(2 * old * new / (old + new), abs=1e-9)
    alls = [np.mean([plain(step, c) for c in range(3 + step)]) for step in range(3)]
    assert found["avg"] == pytest.approx(np.mean(alls), abs=1e-9)
    foreground = [np.mean([plain(step, c) for c in range(1, 3 + step)]) for step in range(3)]
    assert found["avg_foreground"] == pytest.approx(np.mean(foreground), abs=1e-9)
