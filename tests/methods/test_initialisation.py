from __future__ import annotations

import torch
from torch import nn

from plopcli.methods.initialisation import balance_new_classifier


def test_new_classes_share_the_background_s_probability() -> None:
    classifiers = [nn.Conv2d(8, count, 1).double() for count in (5, 2, 3)]
    features = torch.randn(2, 8, 3, 3, dtype=torch.float64)

    def probabilities(count: int) -> torch.Tensor:
        return torch.cat([c(features) for c in classifiers[:count]], 1).softmax(1)

    before = probabilities(2)
    balance_new_classifier(classifiers)
    after = probabilities(3)

    torch.testing.assert_close(after[:, 0] + after[:, 7:].sum(1), before[:, 0])
    torch.testing.assert_close(after[:, 1:7], before[:, 1:7])
    for c in range(7, 10):
        torch.testing.assert_close(after[:, c], after[:, 0])


def test_parameters_stay_trainable_leaves() -> None:
    classifiers = [nn.Conv2d(4, 2, 1), nn.Conv2d(4, 1, 1)]
    balance_new_classifier(classifiers)
    parameters = [p for c in classifiers for p in c.parameters()]
    assert [(p.is_leaf, p.requires_grad, p.grad_fn) for p in parameters] == [(True, True, None)] * 4
