"""What is trained is what moves: parts, rates, decay, warm-up, dropout, statistics."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from plopcli.data.batches import Batch
from plopcli.devices.precision import Precision
from plopcli.devices.process import Process
from plopcli.engine.optim import build_optimizer, build_schedule, prepare_training, rate_factor
from plopcli.engine.setup import initialise
from plopcli.engine.trainer import Trainer
from plopcli.errors import DataError, PlopError
from plopcli.losses.classification import cross_entropy
from plopcli.methods.base import BEGINNING, Method, Moment, StepContext
from plopcli.models.abn import batch_norms
from plopcli.models.classifiers import PLAIN, ClassifierPlan
from plopcli.models.segmenter import Outputs, Part, Segmenter, build_segmenter
from plopcli.settings.sections import MethodSettings, ModelSettings, StepRecipe

SMALL = ModelSettings(backbone="resnet18", width=16, head_channels=8, output_stride=8, pretrained=False)
CPU = Process(torch.device("cpu"))


class Settings(MethodSettings):
    name: str = "probe"


class WithModule(Method):
    """Cross-entropy of logits that a module of its own has scaled, and a table of classes."""

    Settings = Settings
    table: Tensor

    def initialise(self, model: Segmenter, old_model: Segmenter | None) -> None:
        self.scale = nn.Linear(1, 1)
        self.register_buffer("table", torch.zeros(self.context.total, 2))

    def losses(self, batch: Batch, new: Outputs, old: Outputs | None, at: Moment = BEGINNING) -> dict[str, Tensor]:
        scaled = new.logits * self.scale(new.logits.new_ones(1))
        return {"classification": cross_entropy(scaled, batch.labels).mean()}


def _trained(method: Method, recipe: StepRecipe, plan: ClassifierPlan = PLAIN) -> tuple[Trainer, Segmenter]:
    torch.manual_seed(0)
    model = build_segmenter(SMALL, (3,), plan)
    initialise(method, model, None, CPU)
    prepare_training(model, method, recipe)
    optimizer = build_optimizer(model, method, recipe)
    schedule = build_schedule(optimizer, recipe, 10)
    return Trainer(model, None, method, optimizer, schedule, Precision("float32", CPU.device), CPU), model


def _batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(4, 3, 32, 32, generator=generator)
    return Batch(images, torch.randint(0, 3, (4, 32, 32), generator=generator))


def _method(kind: type[Method] = WithModule, classes: tuple[int, ...] = (3,)) -> Method:
    return kind(Settings(), StepContext(len(classes) - 1, classes))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_module_of_the_method_moves_and_goes_on_bitwise(optimizer: str) -> None:
    recipe = StepRecipe(lr=0.01, optimizer=optimizer, warmup=0.5)
    method = _method()
    trainer, model = _trained(method, recipe)
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    trainer.iterate([_batch()])
    trainer.iterate([_batch()])
    assert not torch.equal(before["scale.weight"], method.state_dict()["scale.weight"])
    kept = torch.load(_saved(trainer.state_dict()), weights_only=True)
    trainer.iterate([_batch()])

    again = _method()
    resumed, other = _trained(again, recipe)
    resumed.load_state_dict(kept, 2)
    resumed.iterate([_batch()])
    for one, two in ((model, other), (method, again)):
        for name, tensor in one.state_dict().items():
            assert torch.equal(tensor, two.state_dict()[name]), name


def _saved(state: object) -> io.BytesIO:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return buffer


def _without_its_own(self: Method, model: Segmenter) -> dict[str, Part]:
    return model.parts()


def _twice(self: Method, model: Segmenter) -> dict[str, Part]:
    return {**Method.parts(self, model), "again": model.parts()["head"]._replace(recipe="head")}


def _keeps_the_network(self: Method, model: Segmenter) -> dict[str, Part]:
    self.network = model
    return Method.parts(self, model)


@pytest.mark.parametrize(
    ("parts", "said"),
    [(_without_its_own, "would never move"), (_twice, "is in 2 parts"), (_keeps_the_network, "is in 2 parts")],
)
def test_what_would_not_move_or_move_twice_is_refused(
    parts: Callable[[Method, Segmenter], dict[str, Part]], said: str
) -> None:
    kind = type("Faulty", (WithModule,), {"parts": parts})
    with pytest.raises(PlopError, match=said) as error:
        _trained(_method(kind), StepRecipe())
    assert "Method.parts" in str(error.value.hint)


def test_every_part_has_its_rate_and_its_decay() -> None:
    recipe = StepRecipe(
        lr=0.1, lr_body=0.5, lr_method=2, lr_extra=3, weight_decay=0.01, decay_body=0, decay_method=0.5, decay_extra=4
    )
    trainer, _ = _trained(_method(), recipe, ClassifierPlan(extra=("unknown",)))
    groups = {group["name"]: (group["lr"], group["weight_decay"]) for group in trainer.optimizer.param_groups}
    expected = {
        "body": (0.05, 0.0),
        "head": (0.1, 0.01),
        "classifier": (0.1, 0.01),
        "extra": (0.3, 0.04),
        "method": (0.2, 0.005),
    }
    assert groups.keys() == expected.keys()
    for name, values in expected.items():
        assert groups[name] == pytest.approx(values), name


def test_the_rate_warms_up_to_the_schedule_s() -> None:
    warm = StepRecipe(epochs=2, warmup=0.2, warmup_factor=0.1)
    plain = StepRecipe(epochs=2)
    # Four of twenty iterations.
    rising = [rate_factor(warm, i, 10) / rate_factor(plain, i, 10) for i in range(20)]
    assert rising == pytest.approx([0.1, 0.325, 0.55, 0.775, *[1.0] * 16])


def test_dropout_is_for_training_alone_and_statistics_have_their_momentum() -> None:
    _, model = _trained(_method(), StepRecipe(dropout=0.5, norm_momentum=0.2, norm_momentum_body=0.01))
    assert {norm.momentum for norm in batch_norms(model.body)} == {0.01}
    assert {norm.momentum for norm in batch_norms(model.head)} == {0.2}
    images = _batch().images
    with torch.no_grad():
        assert not torch.equal(model(images).small, model(images).small)
        model.eval()
        assert torch.equal(model(images).small, model(images).small)


def test_rows_of_old_classes_come_from_the_step_before() -> None:
    first, second, third = _method(), _method(classes=(3, 2)), _method(classes=(3, 2))
    model = build_segmenter(SMALL, (3,))
    for method in (first, second, third):
        initialise(method, model, None, CPU)
    first.table += 7
    second.load_tensors(first.saved_state(), same_step=False)
    assert second.table.tolist() == [[7, 7]] * 3 + [[0, 0]] * 2
    third.load_tensors(second.saved_state(), same_step=True)
    assert torch.equal(third.table, second.table)
    for state in ({}, {"tensors": 3}, {"tensors": {"table": torch.zeros(9, 2)}}):
        with pytest.raises(DataError, match="cannot go on"):
            second.load_tensors(state, same_step=False)
