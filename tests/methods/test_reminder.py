from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from drawn_outputs import data_of
from parity_data import inputs
from pydantic import ValidationError
from tensors import assert_finite, assert_same_tensors
from torch import Tensor

from plopcli.data.batches import Batch
from plopcli.errors import DataError
from plopcli.losses.similarity import prototypes_of, similarity_distillation, similarity_weights, sum_by_class
from plopcli.methods.base import StepContext, StepData
from plopcli.methods.plop import Plop, PlopSettings
from plopcli.methods.reminder import Reminder, ReminderSettings
from plopcli.models.segmenter import Outputs, Segmenter, build_segmenter
from plopcli.resolution.layers import resolve_settings
from plopcli.settings.sections import ModelSettings

OLD, NEW, CHANNELS = 4, 2, 8
THRESHOLDS = {"thresholds": torch.full((OLD + NEW,), 0.05), "pixels": torch.ones(6), "accepted": torch.ones(6)}


def reminder(step: int = 1, classes: tuple[int, ...] = (OLD, NEW), **settings: Any) -> Reminder:
    return Reminder(ReminderSettings(**settings), StepContext(step, classes))


def prototypes(classes: int = OLD) -> dict[str, Tensor]:
    return {"prototypes": torch.randn(classes, CHANNELS), "prototype_pixels": torch.arange(classes)}


def prepared(state: dict[str, Tensor], **settings: Any) -> Reminder:
    """REMINDER in step 1, with thresholds and prototypes."""
    method = reminder(**settings)
    method.load_carried_state(THRESHOLDS | state, same_step=True)
    return method


def outputs(classes: int, trained: bool = False, scale: float = 3.0) -> Outputs:
    def draw(*shape: int) -> Tensor:
        return (scale * torch.randn(2, *shape)).requires_grad_(trained)

    features = tuple(draw(CHANNELS, side, side) for side in (8, 4, 4, 4, 4))
    return Outputs(draw(classes, 16, 16), draw(classes, 4, 4), features)


def batch(labels: Tensor | None = None) -> Batch:
    drawn = torch.from_numpy(inputs.label_maps("reminder", 2, 16, [OLD, OLD + 1]))
    return Batch(torch.zeros(2, 3, 16, 16), drawn if labels is None else labels)


def centres(labels: Tensor) -> Tensor:
    """Labels (B, 16, 16) at the centres of 4 x 4 cells."""
    return labels[:, 2::4, 2::4]


def network() -> Segmenter:
    settings = ModelSettings(backbone="resnet18", width=8, head_channels=CHANNELS, pretrained=False)
    return build_segmenter(settings, (OLD,))


def step_pass(features: list[Tensor], labels: list[Tensor]) -> StepData:
    """A pass over images that are themselves the new model's f_5."""

    def batches() -> Iterator[Batch]:
        return (Batch(f, y) for f, y in zip(features, labels, strict=True))

    def new_outputs(images: Tensor) -> Outputs:
        return Outputs(images, images, (images,))

    return data_of(batches, lambda images: pytest.fail("not of the old model"), lambda tensor: tensor, new_outputs)


def test_without_its_factor_it_is_plop_bitwise() -> None:
    given, new, old = batch(), outputs(OLD + NEW), outputs(OLD)
    method, plain = reminder(similarity_factor=0), Plop(PlopSettings(), StepContext(1, (OLD, NEW)))
    for one in (method, plain):
        one.load_carried_state(THRESHOLDS, same_step=True)
    terms, expected = method.losses(given, new, old), plain.losses(given, new, old)
    assert_same_tensors(terms, expected)
    method.after_step(network(), step_pass([], []))
    assert method.carried_state().keys() == plain.carried_state().keys()
    settings = [one.settings for one in (method, plain)]
    assert Reminder.step_0_key(settings[0]) == Plop.step_0_key(settings[1])


def test_its_term_comes_on_top_of_plop_s() -> None:
    given, new, old, state = batch(), outputs(OLD + NEW), outputs(OLD), prototypes()
    method = prepared(state)
    plain = Plop(PlopSettings(), StepContext(1, (OLD, NEW)))
    plain.load_carried_state(THRESHOLDS, same_step=True)

    terms = method.losses(given, new, old)

    for name, value in plain.losses(given, new, old).items():
        assert torch.equal(terms.pop(name), value)
    own = prototypes_of(sum_by_class(new.features[-1], centres(given.labels), OLD, NEW))
    weights = similarity_weights(own, state["prototypes"])
    expected = 0.5 * similarity_distillation(new.logits, given.labels, old.logits, weights, 3.0)
    assert list(terms) == ["similarity_distillation"]
    torch.testing.assert_close(terms["similarity_distillation"], expected)


def test_every_setting_of_the_term_changes_it() -> None:
    given, new, old, state = batch(), outputs(OLD + NEW), outputs(OLD), prototypes()

    def term(**settings: Any) -> float:
        return prepared(state, **settings).losses(given, new, old)["similarity_distillation"].item()

    usual = term()
    assert term(similarity_factor=1.0) == pytest.approx(2 * usual)
    assert term(similarity_temperature=1.0) != pytest.approx(usual)
    assert term(similarity_delta=1.0) < usual
    other = prepared(prototypes()).losses(given, new, old)["similarity_distillation"].item()
    assert other != pytest.approx(usual), "the prototypes count"


def test_the_term_alone_needs_features_and_the_old_model_but_no_pod() -> None:
    method = prepared(prototypes(), pod_factor=0, pod_logits="off", pseudo="off")
    assert method.uses_features
    assert method.uses_old_model
    terms = method.losses(batch(), outputs(OLD + NEW), outputs(OLD))
    assert terms.keys() == {"classification", "similarity_distillation"}
    assert terms["similarity_distillation"] > 0
    assert not reminder(0, (OLD,)).uses_features


@pytest.mark.parametrize("label", [0, OLD, 255])
def test_losses_and_gradients_are_finite_on_images_of_one_label(label: int) -> None:
    new = outputs(OLD + NEW, trained=True, scale=30)
    terms = prepared(prototypes()).losses(batch(torch.full((2, 16, 16), label)), new, outputs(OLD, scale=30))
    sum(terms.values()).backward()
    assert_finite(terms)
    assert bool(terms["similarity_distillation"] > 0) == (label == OLD)
    for tensor in (new.logits, new.small, *new.features):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()


def test_objects_too_small_for_the_feature_map_resemble_all_classes_alike() -> None:
    labels = torch.zeros(2, 16, 16, dtype=torch.int64)
    labels[0, 0, 0] = OLD  # at no cell's centre
    new, old = outputs(OLD + NEW), outputs(OLD)
    term = prepared(prototypes()).losses(batch(labels), new, old)["similarity_distillation"]
    weights = torch.full((NEW, OLD), 1 / OLD)
    torch.testing.assert_close(term, 0.5 * similarity_distillation(new.logits, labels, old.logits, weights, 3.0))


def test_prototypes_are_means_over_all_images_of_the_step_that_brings_a_class() -> None:
    features = [torch.randn(2, CHANNELS, 4, 4) for _ in range(3)]
    first_labels = [torch.randint(OLD, (2, 16, 16)) for _ in range(3)]
    first = reminder(0, (OLD,))
    first.after_step(network(), step_pass(features, first_labels))
    flat, known = torch.cat(features).permute(0, 2, 3, 1), centres(torch.cat(first_labels))
    means = torch.stack([flat[known == c].mean(0) for c in range(OLD)])
    torch.testing.assert_close(first.carried_state()["prototypes"], means)
    assert first.report()["prototype_pixels"] == [int((known == c).sum()) for c in range(OLD)]

    second = reminder()
    second.load_carried_state(first.carried_state(), same_step=False)
    labels = [torch.tensor([0, OLD, 255])[torch.randint(3, (2, 16, 16))] for _ in range(3)]
    second.after_step(network(), step_pass(features, labels))
    later = second.carried_state()["prototypes"]
    assert torch.equal(later[:OLD], first.carried_state()["prototypes"]), "background stays that of step 0"
    torch.testing.assert_close(later[OLD], flat[centres(torch.cat(labels)) == OLD].mean(0))
    assert not later[OLD + 1].any(), "no image has it"
    assert second.report()["prototype_pixels"][-1] == 0


def test_prototypes_of_two_processes_are_those_of_one() -> None:
    features = [torch.randn(2, CHANNELS, 4, 4) for _ in range(2)]
    labels = [torch.randint(OLD, (2, 16, 16)) for _ in range(2)]
    alone = reminder(0, (OLD,))
    alone.after_step(network(), step_pass(features, labels))

    sent: list[Tensor] = []
    halves = [step_pass(features[i:][:1], labels[i:][:1]) for i in range(2)]

    def keep(tensor: Tensor) -> Tensor:
        sent.append(tensor.clone())
        return tensor

    other = data_of(halves[1].batches, halves[1].old_outputs, keep, halves[1].new_outputs)
    reminder(0, (OLD,)).after_step(network(), other)
    received = iter(sent)
    here = data_of(halves[0].batches, halves[0].old_outputs, lambda t: t + next(received), halves[0].new_outputs)
    method = reminder(0, (OLD,))
    method.after_step(network(), here)
    assert method.report() == alone.report()
    torch.testing.assert_close(method.carried_state()["prototypes"], alone.carried_state()["prototypes"])


def test_a_resumed_step_goes_on_with_its_prototypes() -> None:
    method = prepared(prototypes())
    resumed = reminder()
    resumed.load_carried_state(method.carried_state(), same_step=True)
    given, new, old = batch(), outputs(OLD + NEW), outputs(OLD)
    assert resumed.losses(given, new, old) == method.losses(given, new, old)
    features, labels = [torch.randn(2, CHANNELS, 4, 4)], [given.labels]
    for one in (method, resumed):
        one.after_step(network(), step_pass(features, labels))
    once = method.carried_state()
    again = reminder()
    again.load_carried_state(once, same_step=True)
    again.after_step(network(), step_pass(features, labels))
    for state in (resumed.carried_state(), again.carried_state()):
        assert_same_tensors(state, once)
    assert again.losses(given, new, old) == method.losses(given, new, old)


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"prototypes": torch.zeros(OLD, CHANNELS)},
        {"prototypes": torch.zeros(OLD - 1, CHANNELS), "prototype_pixels": torch.zeros(OLD - 1)},
        {"prototypes": torch.zeros(OLD), "prototype_pixels": torch.zeros(OLD)},
        {"prototypes": [0.0] * OLD, "prototype_pixels": torch.zeros(OLD)},
        {"prototypes": torch.zeros(OLD + NEW, CHANNELS), "prototype_pixels": torch.zeros(OLD + NEW)},
    ],
)
def test_a_state_without_the_old_classes_prototypes_is_refused(state: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="no prototypes of the 4 classes"):
        reminder().load_carried_state(state, same_step=False)


def test_step_0_of_other_methods_is_not_shared() -> None:
    plain = Plop.step_0_key(PlopSettings())
    assert Reminder.step_0_key(ReminderSettings()) != plain
    assert Reminder.step_0_key(ReminderSettings()) == Reminder.step_0_key(ReminderSettings(similarity_delta=1.0))


def test_where_steps_bring_domains_there_are_no_new_classes_to_mind() -> None:
    settings = resolve_settings(
        {"method.name": "reminder", "data.dataset": "cityscapes-domain"}, environment={}, preset="none"
    ).settings.method
    assert isinstance(settings, ReminderSettings)
    assert settings.similarity_factor == 0
    assert settings.pseudo == "off"


def test_a_step_never_waits_for_the_device() -> None:
    """Reading a value of a meta tensor raises, as it would stall a GPU."""
    method = prepared({key: value.to("meta") for key, value in prototypes().items()})

    def to_meta(given: Outputs, trained: bool) -> Outputs:
        def move(tensor: Tensor) -> Tensor:
            return torch.empty_like(tensor, device="meta", requires_grad=trained)

        return Outputs(move(given.logits), move(given.small), tuple(move(f) for f in given.features))

    given = Batch(*(torch.zeros(2, 16, 16, dtype=torch.int64, device="meta") for _ in range(2)))
    sum(method.losses(given, to_meta(outputs(OLD + NEW), True), to_meta(outputs(OLD), False)).values()).backward()


@pytest.mark.parametrize(
    "wrong", [{"similarity_factor": -1}, {"similarity_temperature": 0}, {"similarity_delta": -1}, {"name": "plop"}]
)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ReminderSettings(**wrong)
