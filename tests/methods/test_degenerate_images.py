"""Every method, on images that have nothing to teach or next to nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from drawn_outputs import NEW, OLD, step_pass
from tensors import assert_finite
from torch import Tensor

from plopcli.data.batches import Batch
from plopcli.methods import METHODS
from plopcli.methods.base import Method, StepContext
from plopcli.models.segmenter import Outputs

#: Labels of two images, of the side of the images.
LABELS = {
    "background": [0, 0],
    "no background": [OLD, OLD + 1],
    "ignored": [255, 255],
    "one of them ignored": [255, 0],
    "one without background": [OLD, 0],
}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name, kind in METHODS.items() if not kind.merges_steps),
    ("lwf-mc", {"targets": "disjoint"}),
    ("plop", {"estimator": "exact"}),
    ("plop", {"pseudo": "median"}),
    ("plop", {"pseudo": "median", "estimator": "exact"}),
    ("plop", {"pseudo": "threshold", "pseudo_threshold": 0.5, "pseudo_rejected": "unbiased"}),
    ("plop", {"pseudo": "naive", "learn_background": False}),
    ("plop", {"pseudo": "confidence"}),
    ("plop", {"pod": "global"}),
    ("plop", {"pod": "spatial", "pod_prepro": "abs"}),
    ("plop", {"pod_apply": "head", "pod_logits_size": "large", "pod_prepro": "relu"}),
]


def drawn(classes: int, size: int, scale: float, trained: bool = False) -> Outputs:
    """Outputs whose maps are of the side of the images, from 1 pixel on."""

    def draw(channels: int) -> Tensor:
        return (scale * torch.randn(2, channels, size, size)).requires_grad_(trained)

    return Outputs(draw(classes), draw(classes), tuple(draw(3) for _ in range(5)), draw(3))


@pytest.mark.parametrize(("size", "scale"), [(1, 0.0), (1, 100.0), (8, 100.0)])
@pytest.mark.parametrize(("name", "settings"), VARIANTS, ids=lambda value: str(value))
def test_losses_and_gradients_are_finite(name: str, settings: dict[str, Any], size: int, scale: float) -> None:
    kind = METHODS[name]
    if "pod_scales" in kind.Settings.model_fields and size == 1 and settings.get("pod") != "spatial":
        settings = {**settings, "pod_scales": (1,)}  # maps of one pixel have no windows
    for what, labels in LABELS.items():
        method: Method = kind(kind.Settings(**settings), StepContext(1, (OLD, NEW)))
        truth = torch.tensor(labels)[:, None, None].expand(2, size, size).contiguous()
        old, new = drawn(OLD, size, scale), drawn(OLD + NEW, size, scale, trained=True)
        method.before_step(step_pass([old.logits], [truth]))

        terms = method.losses(Batch(torch.zeros(2, 3, size, size), truth), new, old)
        torch.stack(list(terms.values())).sum().backward()

        assert_finite(terms)
        assert_finite({"loss": terms["classification"], **method.diagnostics})
        assert new.logits.grad is not None, what
        for tensor in (new.logits, new.small, *new.features, new.encoder):
            assert tensor is not None
            assert tensor.grad is None or tensor.grad.isfinite().all(), what
