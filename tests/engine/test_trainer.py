"""The training core: order of hooks, accumulation, schedules, frozen parts, loss that is not finite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import pytest
import torch
from tensors import assert_same_tensors
from torch import Tensor, nn

from plopcli.data.batches import Batch
from plopcli.devices.precision import Precision
from plopcli.devices.process import Process
from plopcli.engine.metrics_log import check_finite
from plopcli.engine.optim import build_optimizer, build_schedule, prepare_training, rate_factor
from plopcli.engine.trainer import Trainer
from plopcli.errors import PlopError, UsageError
from plopcli.losses.classification import cross_entropy
from plopcli.methods.base import BEGINNING, Method, Moment, StepContext
from plopcli.models.segmenter import Outputs, Segmenter, build_segmenter
from plopcli.settings.sections import MethodSettings, ModelSettings, StepRecipe, TrainSettings

CPU = Process(torch.device("cpu"))
SMALL = ModelSettings(backbone="resnet18", width=8, head_channels=16, pretrained=False, norm="bn")


class ProbeSettings(MethodSettings):
    name: Literal["probe"] = "probe"


class Probe(Method):
    """Cross-entropy, an L2 penalty through the hook, and a diary."""

    Settings = ProbeSettings
    summary: ClassVar[str] = "probe"
    source: ClassVar[str] = "tests"
    penalty = 0.0

    def __init__(self) -> None:
        super().__init__(ProbeSettings(), StepContext(0, (3,)))
        self.diary: list[str] = []
        self.seen: dict[str, Tensor] = {}

    def losses(self, batch: Batch, new: Outputs, old: Outputs | None, at: Moment = BEGINNING) -> dict[str, Tensor]:
        self.diary.append("losses")
        return {"classification": cross_entropy(new.logits, batch.labels).mean()}

    def after_gradients(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        self.diary.append("gradients")
        self.seen = {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}
        if not self.penalty:
            return {}
        return {"regulariser": self.penalty * torch.stack([p.square().sum() for p in parameters.values()]).sum()}

    def after_optimizer_step(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.diary.append("step")


def _trainer(method: Method, recipe: StepRecipe, *, accumulation: int = 1) -> tuple[Trainer, Segmenter]:
    torch.manual_seed(0)
    model = build_segmenter(SMALL, (3,)).double()
    prepare_training(model, method, recipe)
    optimizer = build_optimizer(model, method, recipe)
    schedule = build_schedule(optimizer, recipe, 10)
    precision = Precision("float32", torch.device("cpu"))
    return Trainer(model, None, method, optimizer, schedule, precision, CPU, accumulation), model


def _batch(images: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(1)
    pictures = torch.randn(images, 3, 32, 32, generator=generator, dtype=torch.float64)
    return Batch(pictures, torch.randint(0, 3, (images, 32, 32), generator=generator))


FROZEN = StepRecipe(freeze_norm="all", epochs=1, lr=0.01)


def test_accumulation_equals_the_whole_batch() -> None:
    batch = _batch()
    whole, one = _trainer(Probe(), FROZEN)
    split, other = _trainer(Probe(), FROZEN, accumulation=2)
    first = whole.iterate([batch])
    second = split.iterate([Batch(batch.images[:2], batch.labels[:2]), Batch(batch.images[2:], batch.labels[2:])])
    torch.testing.assert_close(first.terms["classification"], second.terms["classification"])
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_hooks_come_in_order_and_see_the_gradients_of_the_losses_alone() -> None:
    method = Probe()
    method.penalty = 10.0
    trainer, model = _trainer(method, FROZEN, accumulation=2)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    done = trainer.iterate([_batch(), _batch()])
    assert method.diary == ["losses", "losses", "gradients", "step"]
    assert set(done.terms) == {"classification", "regulariser"}
    name = "head.red_conv.weight"
    gradient = dict(model.named_parameters())[name].grad
    assert gradient is not None
    torch.testing.assert_close(gradient, method.seen[name] + 2 * method.penalty * before[name])


def test_parts_have_their_own_rates_and_zero_freezes() -> None:
    recipe = StepRecipe(lr=0.1, lr_body=0, lr_head=0.5, lr_old=0)
    model = build_segmenter(SMALL, (3,))
    model.add_classifier(2)
    method = Probe()
    prepare_training(model, method, recipe)
    groups = {group["name"]: group["lr"] for group in build_optimizer(model, method, recipe).param_groups}
    assert groups == {"head": 0.05, "classifier": 0.1}
    assert not any(p.requires_grad for p in [*model.body.parameters(), *model.cls[0].parameters()])


def test_frozen_norms_keep_their_statistics() -> None:
    for scope, moves in [("none", {"body", "head"}), ("body", {"head"}), ("all", set())]:
        trainer, model = _trainer(Probe(), StepRecipe(freeze_norm=scope, lr=0.01))
        before = {name: b.clone() for name, b in model.named_buffers()}
        trainer.iterate([_batch()])
        moved = {name.split(".")[0] for name, b in model.named_buffers() if not torch.equal(b, before[name])}
        assert moved == moves


def test_a_part_with_rate_zero_keeps_its_statistics_and_nothing_to_train_is_refused() -> None:
    trainer, model = _trainer(Probe(), StepRecipe(lr=0.01, lr_body=0))
    before = {name: b.clone() for name, b in model.body.named_buffers()}
    trainer.iterate([_batch()])
    assert_same_tensors(dict(model.body.named_buffers()), before)
    with pytest.raises(UsageError, match="learning rate 0"):
        _trainer(Probe(), StepRecipe(lr_body=0, lr_head=0, lr_classifier=0, lr_old=0))


def test_the_logged_rate_is_the_recipes() -> None:
    trainer, _ = _trainer(Probe(), StepRecipe(lr=0.1, lr_body=0.5, lr_old=0.1, schedule="step", step_size=1, epochs=3))
    rates = [trainer.iterate([_batch(2)]).lr for _ in range(11)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10] == pytest.approx(0.01)


class _OverflowOnce(Precision):
    """Plays fp16 whose first gradients overflow."""

    def __init__(self) -> None:
        super().__init__("float32", torch.device("cpu"))
        self.calls = 0

    def overflowed(self, parameters: object) -> bool:
        self.calls += 1
        return self.calls == 1

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.calls > 1:
            super().step(optimizer)


def test_an_overflowed_step_did_not_happen_for_method_and_schedule() -> None:
    method = Probe()
    trainer, model = _trainer(method, FROZEN)
    trainer.precision = _OverflowOnce()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    first = trainer.iterate([_batch(2)])
    assert float(first.diagnostics["skipped"]) == 1
    assert method.diary == ["losses"]
    assert_same_tensors(dict(model.named_parameters()), before)
    second = trainer.iterate([_batch(2)])
    assert second.lr == first.lr
    assert method.diary == ["losses", "losses", "gradients", "step"]


def test_schedules() -> None:
    poly = StepRecipe(epochs=2)
    assert rate_factor(poly, 0, 10) == 1
    assert rate_factor(poly, 5, 10) == pytest.approx(0.75**0.9)
    assert rate_factor(poly, 20, 10) == 0
    step = StepRecipe(epochs=30, schedule="step", step_size=10, gamma=0.1)
    assert [rate_factor(step, epoch * 7, 7) for epoch in (9, 10, 20)] == pytest.approx([1, 0.1, 0.01])
    counted = StepRecipe(schedule="step", step_size=10, step_iterations=50, gamma=0.1)
    assert [rate_factor(counted, iteration, 7) for iteration in (49, 50, 99, 100)] == pytest.approx([1, 0.1, 0.1, 0.01])
    assert rate_factor(StepRecipe(schedule="constant"), 500, 7) == 1


def test_recipes_change_from_a_step_on() -> None:
    train = TrainSettings(from_step={2: {"lr": 0.5, "freeze_norm": "all"}, 3: {"lr": 0.25}})
    assert [train.recipe(step).lr for step in range(5)] == [0.01, 0.001, 0.5, 0.25, 0.25]
    assert [train.recipe(step).freeze_norm for step in (1, 2, 4)] == ["none", "all", "all"]


def test_a_term_that_is_not_finite_stops_with_its_name() -> None:
    row = {"iteration": 7, "terms": {"classification": 0.3, "pod": float("nan")}, "diagnostics": {}}
    with pytest.raises(PlopError, match="pod is not finite at step 2, iteration 7"):
        check_finite(row, 2)
    check_finite({"iteration": 7, "terms": {"classification": 0.3}}, 2)


def test_an_overflow_leaves_the_momentum_of_a_fused_optimizer_alone() -> None:
    precision = Precision("fp16", torch.device("cpu"))
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, fused=True)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    scale = precision.scaler.get_scale()
    precision.backward(model(torch.full((1, 2), float("inf"))).sum())
    precision.unscale(optimizer)
    assert precision.overflowed(model.parameters())
    precision.skip()
    assert_same_tensors(dict(model.named_parameters()), before)
    assert precision.scaler.get_scale() < scale
    assert not optimizer.state
    optimizer.zero_grad()
    precision.backward(model(torch.ones(1, 2)).sum())
    precision.unscale(optimizer)
    assert not precision.overflowed(model.parameters())
    precision.step(optimizer)
    torch.testing.assert_close(model.bias.detach(), before["bias"] - 0.1 * 1.9)
