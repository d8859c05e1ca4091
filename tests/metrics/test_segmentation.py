"""Metrics against golden values of the original and a plain recomputation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from parity_data import inputs

from plopcli.metrics.segmentation import ConfusionMatrix, class_accuracy, iou, mean, step_metrics, summary

PARITY = Path(__file__).parent.parent / "parity_data"


@pytest.mark.parity
@pytest.mark.parametrize(("case", "classes"), [("a", 21), ("b", 151)])
def test_golden_metrics(case: str, classes: int) -> None:
    truth, prediction = inputs.metric_inputs(case, classes)
    matrix = ConfusionMatrix(classes)
    matrix.update(torch.from_numpy(truth), torch.from_numpy(prediction))
    with np.load(PARITY / "metrics.npz") as golden:
        assert np.array_equal(matrix.numpy(), golden[f"{case}/confusion"])
        np.testing.assert_allclose(iou(matrix.numpy()), golden[f"{case}/iou"], rtol=1e-6)
        found = summary(matrix.numpy())
        for ours, theirs in {
            "overall_accuracy": "Overall Acc",
            "mean_accuracy": "Mean Acc",
            "frequency_weighted_iou": "FreqW Acc",
            "miou": "Mean IoU",
        }.items():
            assert found[ours] == pytest.approx(float(golden[f"{case}/{theirs}"]), rel=1e-6)


def test_pieces_add_up_and_void_does_not_count() -> None:
    rng = np.random.default_rng(0)
    truth, prediction = rng.integers(0, 5, (6, 30, 30)), rng.integers(0, 5, (6, 30, 30))
    truth[rng.random(truth.shape) < 0.2] = 255
    pieces = ConfusionMatrix(5)
    for t, p in zip(truth, prediction, strict=True):
        pieces.update(torch.from_numpy(t), torch.from_numpy(p))
    for label in range(5):
        for predicted in range(5):
            assert pieces.numpy()[label, predicted] == ((truth == label) & (prediction == predicted)).sum()


def test_an_absent_class_has_no_iou_even_when_predicted() -> None:
    confusion = np.array([[8, 0, 2], [0, 10, 0], [0, 0, 0]])
    assert np.isnan(iou(confusion)[2])
    assert np.isnan(class_accuracy(confusion)[2])
    assert mean(iou(confusion)) == pytest.approx((0.8 + 1) / 2)


def test_groups_of_a_step() -> None:
    confusion = np.diag([10, 10, 10, 10])
    confusion[3] = [5, 0, 0, 5]
    entry = step_metrics(confusion, ["background", "cat", "dog", "bird"], base_classes=3)
    assert entry["iou"]["bird"] == pytest.approx(50)
    assert entry["miou"]["new"] == pytest.approx(50)
    assert entry["miou"]["old"] == pytest.approx((100 * 10 / 15 + 200) / 3)
    assert entry["miou_foreground"]["old"] == pytest.approx(100)
    first = step_metrics(np.diag([1, 1, 1]), ["background", "cat", "dog"], base_classes=3)
    assert first["miou"]["new"] is None
