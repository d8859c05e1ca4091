from __future__ import annotations

from typing import Any

import pytest
import torch

from plopcli.errors import DataError, UsageError
from plopcli.evaluation.augmentation import Augmentation, probabilities
from plopcli.methods import get_method
from plopcli.models.classifiers import PLAIN, SIGMOID, ClassifierPlan, build_classifiers
from plopcli.models.segmenter import Segmenter, build_segmenter
from plopcli.settings.sections import ModelSettings

SMALL = ModelSettings(backbone="resnet18", width=16, head_channels=8, output_stride=8, pretrained=False)
SSUL = ClassifierPlan("3x3-norm-relu-1x1", ("unknown",), "sigmoid", ("unknown",))
DKD = ClassifierPlan(extra=("auxiliary",), scores="sigmoid", threshold=0.5)


def test_a_plain_plan_is_the_argmax_of_softmax() -> None:
    scores = torch.randn(2, 5, 4, 4)
    assert torch.equal(PLAIN.labels(scores), scores.argmax(1))
    assert PLAIN.class_scores(scores) is scores
    torch.testing.assert_close(PLAIN.probabilities(scores), scores.softmax(1))
    torch.testing.assert_close(SIGMOID.probabilities(scores), scores.sigmoid())
    assert torch.equal(SIGMOID.labels(scores), scores.argmax(1))


def test_extra_channels_are_no_classes_and_may_join_the_background() -> None:
    # Channels: unknown, background, one class.
    scores = torch.tensor([[0.2, 0.3, 0.45], [0.9, 0.05, 0.6]]).logit()[:, :, None]
    found = SSUL.probabilities(scores)
    torch.testing.assert_close(found[:, :, 0], torch.tensor([[0.5, 0.45], [0.95, 0.6]]))
    assert SSUL.labels(scores)[:, 0].tolist() == [0, 0]
    assert SSUL.class_scores(scores).argmax(1)[:, 0].tolist() == [0, 0]
    torch.testing.assert_close(DKD.probabilities(scores)[:, :, 0], torch.tensor([[0.3, 0.45], [0.05, 0.6]]))


def test_below_the_threshold_everything_is_background() -> None:
    classes = torch.tensor([[0.99, 0.5, 0.4], [0.99, 0.50001, 0.3], [0.0, 0.2, 0.7]])
    assert DKD.decide(classes[:, :, None])[:, 0].tolist() == [0, 1, 2]
    scores = torch.cat([torch.zeros(3, 1), classes.logit(eps=1e-6)], 1)[:, :, None]
    assert DKD.labels(scores)[:, 0].tolist() == [0, 1, 2]
    assert torch.equal(DKD.class_scores(scores).argmax(1), DKD.labels(scores))


def test_a_plan_comes_back_as_it_was_stored() -> None:
    for plan in (PLAIN, SSUL, DKD):
        assert ClassifierPlan.restored(plan.stored()) == plan
    damaged: list[dict[str, Any]] = [
        {},
        PLAIN.stored() | {"scores": "arg"},
        PLAIN.stored() | {"extra": 3},
        PLAIN.stored() | {"background": ["unknown"]},
        PLAIN.stored() | {"threshold": "0.5"},
        PLAIN.stored() | {"extra": ["a.b"]},
        PLAIN.stored() | {"extra": [f"x{n}" for n in range(1000)]},
    ]
    for stored in damaged:
        with pytest.raises(DataError, match="What scores mean"):
            ClassifierPlan.restored(stored)


@pytest.mark.parametrize("plan", [PLAIN, SSUL, DKD], ids=lambda plan: plan.kind + plan.scores)
def test_class_counts_are_data_whatever_the_classifiers_are(plan: ClassifierPlan) -> None:
    model = build_segmenter(SMALL, (3, 2), plan).eval()
    model.add_classifier(1)
    assert model.class_counts == (3, 2, 1)
    assert [layer.out_channels for layer in model.classifiers] == [3, 2, 1]
    outputs = model(torch.randn(1, 3, 32, 32))
    assert outputs.logits.shape[1] == 6
    assert outputs.scores.shape[1] == 6 + len(plan.extra)
    grouped = [parameter for part in model.parts().values() for parameter in part.parameters]
    assert len(grouped) == len({*grouped}) == len(list(model.parameters()))
    twin = Segmenter.restored(model.form(), model.class_counts, model.state_dict())
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin.eval()(torch.ones(1, 3, 32, 32)).scores, model(torch.ones(1, 3, 32, 32)).scores)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(UsageError, match="1x2"):
        build_classifiers(ClassifierPlan(kind="1x2"), 8, (2,))


def test_looks_are_averaged_as_the_method_trains_its_scores() -> None:
    kind = get_method("lwf-mc")
    plan = kind.classifier(kind.Settings())
    assert plan.scores == "sigmoid"
    learning = get_method("ft")
    assert learning.classifier(learning.Settings(classification="bce")).scores == "sigmoid"
    assert learning.classifier(learning.Settings()) == PLAIN
    scores = torch.randn(1, 3, 8, 8)
    found = probabilities(lambda images: scores, plan, torch.zeros(1, 3, 8, 8), Augmentation(flip=True))
    torch.testing.assert_close(found, (scores.sigmoid() + scores.flip(-1).sigmoid()) / 2)
