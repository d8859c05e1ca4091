"""Metrics of semantic segmentation from one confusion matrix (Long et al., CVPR 2015), grouped as the papers do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:  # reports are made without torch
    import torch
    from torch import Tensor

IGNORED = 255
_EPS = 1e-6

Matrix = npt.NDArray[np.int64]
Vector = npt.NDArray[np.float64]


class ConfusionMatrix:
    """Counts (classes, classes) of pixels on ``device``, rows truth, columns prediction; truth 255 is ignored."""

    def __init__(self, classes: int, device: torch.device | str = "cpu") -> None:
        import torch

        self.classes = classes
        self.counts = torch.zeros(classes, classes, dtype=torch.int64, device=device)

    def update(self, truth: Tensor, prediction: Tensor) -> None:
        """Adds the pixels of two integer maps of the same shape."""
        import torch

        cells = self.classes**2
        pairs = truth.long() * self.classes + prediction.long()
        # One bin more takes the ignored pixels: picking out the others would wait for the device.
        pairs = torch.where(truth == IGNORED, cells, pairs).flatten()
        self.counts += torch.bincount(pairs, minlength=cells + 1)[:cells].view(self.classes, self.classes)

    def numpy(self) -> Matrix:
        """The counts on the host."""
        counts: Matrix = self.counts.cpu().numpy()
        return counts


def iou(confusion: Matrix) -> Vector:
    """IoU of every class in 0..1; nan where a class does not occur in the truth, even if it was predicted."""
    hits = np.diag(confusion).astype(np.float64)
    truth, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    values: Vector = np.where(truth > 0, hits / (truth + predicted - hits + _EPS), np.nan)
    return values


def class_accuracy(confusion: Matrix) -> Vector:
    """Recall of every class in 0..1; nan where a class does not occur in the truth."""
    truth = confusion.sum(axis=1)
    values: Vector = np.where(truth > 0, np.diag(confusion) / (truth + _EPS), np.nan)
    return values


def mean(values: Vector) -> float | None:
    """Mean over the classes that occur; None where none does."""
    present = values[~np.isnan(values)]
    return float(present.mean()) if len(present) else None


def summary(confusion: Matrix) -> dict[str, float | None]:
    """Overall, mean-class and frequency-weighted figures in 0..1."""
    total = confusion.sum()
    truth = confusion.sum(axis=1)
    present = truth > 0
    return {
        "overall_accuracy": float(np.diag(confusion).sum() / total) if total else None,
        "mean_accuracy": mean(class_accuracy(confusion)),
        "frequency_weighted_iou": float((truth[present] / total * iou(confusion)[present]).sum()) if total else None,
        "miou": mean(iou(confusion)),
    }


def percent(value: float | None) -> float | None:
    """A share as percentage; nan and None are None."""
    return None if value is None or np.isnan(value) else 100 * float(value)


def step_metrics(
    confusion: Matrix,
    names: Sequence[str],
    base_classes: int | None,
    domains: Mapping[str, Matrix] | None = None,
) -> dict[str, Any]:
    """The figures of one step, in percent with full precision.

    Args:
        confusion: Counts over the classes seen so far, in learned order.
        names: Their names.
        base_classes: How many of them count as old: the classes of step 0, background in them (PLOP's convention).
            None where steps bring domains: no class is old or new, and none is background.
        domains: The counts of each domain, where steps bring domains.

    Returns:
        ``iou`` and ``accuracy`` by class name, ``miou`` of all, old and new, the same without background in
        ``miou_foreground`` (MiB's convention for old), and the figures of `summary`. Where steps bring domains, too
        ``domains``: mIoU and IoU by class name of each.
    """
    ious = iou(confusion)
    nothing = ious[:0]
    if base_classes is None:
        groups = foreground = {"all": ious, "old": nothing, "new": nothing}
    else:
        groups = {"all": ious, "old": ious[:base_classes], "new": ious[base_classes:]}
        foreground = {"all": ious[1:], "old": ious[1:base_classes], "new": ious[base_classes:]}
    figures: dict[str, Any] = {
        "iou": {name: percent(value) for name, value in zip(names, ious, strict=True)},
        "miou": {group: percent(mean(values)) for group, values in groups.items()},
        "miou_foreground": {group: percent(mean(values)) for group, values in foreground.items()},
        "accuracy": {name: percent(value) for name, value in zip(names, class_accuracy(confusion), strict=True)},
        **{name: percent(value) for name, value in summary(confusion).items() if name != "miou"},
    }
    if domains is not None:
        figures["domains"] = {domain: _by_class(iou(counts), names) for domain, counts in domains.items()}
    return figures


def _by_class(ious: Vector, names: Sequence[str]) -> dict[str, Any]:
    return {
        "miou": percent(mean(ious)),
        "iou": {name: percent(value) for name, value in zip(names, ious, strict=True)},
    }
