from __future__ import annotations

import copy
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from drawn_outputs import data_of
from parity_data import inputs
from pydantic import ValidationError
from torch import Tensor, nn

from plopcli.data.batches import Batch
from plopcli.errors import DataError
from plopcli.losses.classification import cross_entropy
from plopcli.methods import METHODS, get_method
from plopcli.methods.base import StepContext
from plopcli.methods.regularised import Regularised
from plopcli.models.segmenter import Outputs, Segmenter

GOLDEN = Path(__file__).parents[1] / "parity_data"
#: Golden files by method, also of a folder named by PLOP_PARITY; what comes after the method in a file's name is free.
FILES = sorted(Path(os.environ.get("PLOP_PARITY") or GOLDEN).glob("regulariser_*.npz"))
NAMES = [name for name, method in METHODS.items() if issubclass(method, Regularised)]
CLASSES = (3, 1, 2)
STEP_PASS = data_of()


def test_these_are_all_of_them() -> None:
    assert NAMES == ["ewc", "rw", "pi"]
    assert FILES or "PLOP_PARITY" in os.environ


@pytest.mark.parametrize("name", NAMES)
def test_step_0_is_shared_by_those_that_gather_the_same(name: str) -> None:
    kind = METHODS[name]
    own = kind.step_0_key(kind.Settings())
    assert own == kind.step_0_key(kind.Settings(importance=7.0))
    others = [other.step_0_key(other.Settings()) for method, other in METHODS.items() if method != name]
    assert own not in others
    if name != "pi":
        assert own != kind.step_0_key(kind.Settings(alpha=0.5))


class Net(nn.Module):
    """A network of nothing but parameters."""

    def __init__(self, values: Mapping[str, Any], dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        for name, value in values.items():
            self.register_parameter(name, nn.Parameter(torch.as_tensor(value, dtype=dtype).clone()))

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}


class Run:
    """One step of a method on a network without losses: moves and gradients come from `inputs`."""

    def __init__(
        self, name: str, step: int, net: Net, old: Net | None, state: dict[str, Any] | None = None, **settings: Any
    ) -> None:
        kind = get_method(name)
        method = kind(kind.Settings(**settings), StepContext(step, CLASSES[: step + 1]))
        assert isinstance(method, Regularised)
        self.method, self.net, self.step = method, net, step
        if state is not None:
            method.load_carried_state(state, same_step=False)
        method.initialise(cast(Segmenter, net), cast(Segmenter, old))

    def update(self, number: int, case: str = "reg") -> Tensor | None:
        """Moves the parameters, gives them gradients, and has the method see them."""
        moves = inputs.regulariser_move(min(self.step, 1), number, case)
        gradients = inputs.regulariser_gradient(min(self.step, 1), number, case)
        with torch.no_grad():
            for name, parameter in self.net.trained.items():
                parameter += torch.as_tensor(moves[name]).to(parameter)
                parameter.grad = torch.as_tensor(gradients[name]).to(parameter)
        return self.method.after_gradients(self.net.trained).get("regulariser")

    def end(self) -> dict[str, Any]:
        self.method.after_step(cast(Segmenter, self.net), STEP_PASS)
        return self.method.carried_state()


def start(step: int, old: Net | None = None, dtype: torch.dtype = torch.float64, case: str = "reg") -> Net:
    """The network of a step: the previous one's parameters, and new ones as drawn."""
    drawn: dict[str, Any] = dict(inputs.regulariser_start(step, case))
    return Net(drawn | {name: p.detach() for name, p in old.named_parameters()} if old else drawn, dtype)


def after_step_0(name: str, updates: int = 12, dtype: torch.dtype = torch.float64) -> tuple[Net, dict[str, Any]]:
    """A network and a state after ``updates`` iterations of step 0."""
    run = Run(name, 0, start(0, dtype=dtype), None)
    for number in range(updates):
        assert run.update(number) is None
    run.net.zero_grad()
    return run.net, run.end()


@pytest.mark.parity
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_penalties_and_states_are_the_reference_s(path: Path) -> None:
    golden = np.load(path)
    name = next(part for part in re.split("[^a-z]+", path.stem.lower()) if part in NAMES)
    case = str(golden["case"]) if "case" in golden else "reg"
    old, state = None, None
    for step in range(2):
        run = Run(name, step, start(step, old, case=case), old, state, importance=1)
        for number in range(inputs.REGULARISER_UPDATES):
            penalty = run.update(number, case)
            if (key := f"s{step}/penalty_after_{number}") in golden:
                ours = 0.0 if penalty is None else penalty.item()
                assert ours == pytest.approx(float(golden[key]), rel=1e-9, abs=0)
        old, state = run.net, run.end()
        checked = 0
        for table, tensors in state["carried"].items():
            for parameter, tensor in tensors.items():
                expected = golden[f"s{step}/{table}/{parameter}"]
                np.testing.assert_allclose(tensor.numpy(), expected, rtol=0, atol=1e-9 * np.abs(expected).max())
                checked += 1
        assert checked == sum(key.count("/") == 2 and key.startswith(f"s{step}/") for key in golden.files)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("stop", [0, 1, 7, 10, 11])
def test_a_resumed_step_goes_on_bitwise(name: str, step: int, stop: int, tmp_path: Path) -> None:
    old, state = after_step_0(name, dtype=torch.float32) if step else (None, None)
    run = Run(name, step, start(step, old, torch.float32), old, state)
    for number in range(stop):
        run.update(number)
    torch.save({"method": run.method.carried_state(), "net": run.net.state_dict()}, tmp_path / "middle.pt")
    kept = copy.deepcopy(run.method.carried_state())
    undisturbed = [run.update(number) for number in range(stop, 15)]

    stored = torch.load(tmp_path / "middle.pt")
    for order in ("state first", "initialised first"):
        resumed = Run(name, step, start(step, old, torch.float32), None if order == "state first" else old)
        resumed.method.load_carried_state(stored["method"], same_step=True)
        resumed.method.initialise(cast(Segmenter, resumed.net), cast(Segmenter, old))
        resumed.net.load_state_dict(stored["net"])
        again = [resumed.update(number) for number in range(stop, 15)]

        assert [None if p is None else p.item() for p in again] == [
            None if p is None else p.item() for p in undisturbed
        ]
        assert same(resumed.method.carried_state(), run.method.carried_state())
        assert same(stored["method"], kept)  # training on does not change what was loaded
    assert same(resumed.end(), run.end())


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return torch.equal(a, b) if isinstance(a, Tensor) else bool(a == b)


@pytest.mark.parametrize("name", NAMES)
def test_the_penalty_pulls_parameters_back_by_their_weights(name: str) -> None:
    old, state = after_step_0(name)
    run = Run(name, 1, start(1, old), old, state, importance=7)
    assert run.update(0) == 0
    run.net.zero_grad()
    penalty = run.method.after_gradients(run.net.trained)["regulariser"]
    penalty.backward()
    assert all(p.grad is not None and (p.grad == 0).all() for n, p in run.net.named_parameters() if n != "c")

    run.update(1)
    run.net.zero_grad()
    penalty = run.method.after_gradients(run.net.trained)["regulariser"]
    penalty.backward()
    expected = torch.zeros((), dtype=torch.float64)
    for parameter in ("a", "b"):
        weights = torch.zeros(())
        for table in state["carried"].values():
            low, high = table[parameter].min(), table[parameter].max()
            weights = weights + (table[parameter] - low) / (high - low + 1e-8)
        now = run.net.get_parameter(parameter)
        moved = (now - old.get_parameter(parameter)).detach()
        expected += 7 * (weights * moved**2).sum()
        assert now.grad is not None
        torch.testing.assert_close(now.grad, 14 * weights * moved)
        assert 0 <= weights.min() < weights.max()
    torch.testing.assert_close(penalty.detach(), expected)
    assert run.net.get_parameter("c").grad is None  # the new classifier has nothing to be held to
    assert all(p.grad is None for p in old.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_frozen_parameters_keep_what_they_carry(name: str) -> None:
    old, state = after_step_0(name)
    net = start(1, old)
    net.get_parameter("a").requires_grad_(False)
    run = Run(name, 1, net, old, state)
    for number in range(3):
        penalty = run.update(number)
    assert penalty is not None
    assert penalty > 0
    after = run.end()
    for table in run.method.carries:
        assert torch.equal(after["carried"][table]["a"], state["carried"][table]["a"])
        assert not torch.equal(after["carried"][table]["b"], state["carried"][table]["b"])
        assert "c" in after["carried"][table]


@pytest.mark.parametrize("name", NAMES)
def test_a_parameter_frozen_until_now_has_no_penalty_yet(name: str) -> None:
    net = start(0)
    net.get_parameter("b").requires_grad_(False)
    first = Run(name, 0, net, None)
    for number in range(3):
        first.update(number)
    state = first.end()
    run = Run(name, 1, start(1, net), net, state)
    run.update(0)
    with torch.no_grad():
        run.net.get_parameter("b").add_(1)
    assert run.method.after_gradients(run.net.trained)["regulariser"] == 0
    carried = run.end()["carried"]
    assert carried
    assert [name for name, table in carried.items() if "b" not in table] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_parameter_without_gradient_counts_as_one_of_gradient_zero(name: str) -> None:
    states = []
    for gradient in (None, torch.zeros(5, dtype=torch.float64)):
        run = Run(name, 0, start(0), None)
        run.update(0)
        run.net.get_parameter("b").grad = gradient
        run.method.after_gradients(run.net.trained)
        states.append(run.end())
    assert same(*states)


@pytest.mark.parametrize("name", NAMES)
def test_steps_of_which_every_iteration_was_skipped_change_nothing(name: str) -> None:
    old, state = after_step_0(name)
    run = Run(name, 1, start(1, old), old, state)
    assert same(run.end(), state)


@pytest.mark.parametrize("name", NAMES)
def test_tables_are_carried_over_three_steps(name: str) -> None:
    old, state = after_step_0(name)
    second = Run(name, 1, start(1, old), old, state)
    for number in range(12):
        second.update(number)
    state = second.end()
    assert state["calls"] == 0
    assert [tables for tables in state["running"].values() if tables] == []
    third = Run(name, 2, start(1, second.net), second.net, state)
    third.update(0)
    penalty = third.update(1)
    assert penalty is not None
    assert penalty > 0


@pytest.mark.parametrize("name", NAMES)
def test_classification_is_cross_entropy_and_needs_no_old_model(name: str) -> None:
    kind = get_method(name)
    for step in range(2):
        method = kind(kind.Settings(), StepContext(step, CLASSES[: step + 1]))
        logits, labels = torch.randn(2, 4, 8, 8), torch.randint(3, (2, 8, 8))
        terms = method.losses(Batch(torch.zeros(0), labels), Outputs(logits, logits), None)
        assert not method.uses_old_model
        assert not method.uses_features
        assert terms == {"classification": cross_entropy(logits, labels).mean()}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "damage",
    ["empty", "another method", "no table", "list", "plain numbers", "integers", "shape", "unknown name"],
)
def test_states_that_do_not_fit_are_refused(name: str, damage: str) -> None:
    old, state = after_step_0(name)
    table = get_method(name).carries[-1]  # type: ignore[attr-defined]
    tensors = state["carried"][table]
    if damage == "empty":
        state = {}
    elif damage == "another method":
        state["method"] = "plop"
    elif damage == "no table":
        del state["carried"][table]
    elif damage == "list":
        state["carried"] = [tensors]
    elif damage == "plain numbers":
        tensors["a"] = [1.0] * 12
    elif damage == "integers":
        tensors["a"] = torch.ones(3, 4, dtype=torch.int64)
    elif damage == "shape":
        tensors["a"] = torch.ones(4, 3)
    else:
        tensors["z"] = torch.ones(2)
    with pytest.raises(DataError, match=f"Method {name} cannot go on") as error:
        Run(name, 1, start(1, old), old, state)
    assert error.value.hint


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "damage", ["no calls", "negative calls", "no running", "no table", "shape", "another parameter"]
)
def test_states_that_do_not_fit_the_running_step_are_refused(name: str, damage: str) -> None:
    run = Run(name, 0, start(0), None)
    run.update(0)
    state = run.method.carried_state()
    table = run.method.runs[-1]
    if damage == "no calls":
        del state["calls"]
    elif damage == "negative calls":
        state["calls"] = -1
    elif damage == "no running":
        del state["running"]
    elif damage == "no table":
        del state["running"][table]
    elif damage == "shape":
        state["running"][table]["a"] = torch.ones(2)
    else:
        del state["running"][table]["a"]
    resumed = Run(name, 0, start(0), None)
    with pytest.raises(DataError, match=f"Method {name} cannot go on"):  # noqa: PT012
        resumed.method.load_carried_state(state, same_step=True)
        resumed.update(1)


@pytest.mark.parametrize("name", NAMES)
def test_an_iteration_never_waits_for_the_device(name: str) -> None:
    """Reading a value of a meta tensor raises, as it would stall a GPU."""
    old, state = after_step_0(name)
    run = Run(name, 1, start(1, old).to("meta"), old.to("meta"), state)
    for _ in range(2):
        for parameter in run.net.parameters():
            parameter.grad = torch.empty_like(parameter)
        run.method.after_gradients(run.net.trained)["regulariser"].backward()


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        *((name, {"importance": -1}) for name in NAMES),
        *((name, {"name": "ft"}) for name in NAMES),
        ("ewc", {"alpha": 1.1}),
        ("rw", {"alpha": -0.1}),
        ("rw", {"score_every": 0}),
        ("pi", {"alpha": 0.9}),
    ],
)
def test_impossible_settings_are_refused(name: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        get_method(name).Settings(**wrong)


@pytest.mark.parametrize(
    ("name", "setting"), [("ewc", {"alpha": 0.5}), ("rw", {"alpha": 0.5}), ("rw", {"score_every": 3})]
)
def test_settings_change_what_is_gathered(name: str, setting: dict[str, Any]) -> None:
    states = []
    for settings in ({}, setting):
        run = Run(name, 0, start(0), None, **settings)
        for number in range(12):
            run.update(number)
        states.append(run.end()["carried"])
    changed = {table for table in states[0] if not same(states[0][table], states[1][table])}
    assert changed == ({"score"} if "score_every" in setting else set(states[0]))


@pytest.mark.parametrize("name", NAMES)
def test_carried_tables_can_weigh_the_penalty_raw(name: str) -> None:
    old, state = after_step_0(name)
    penalties = []
    for normalize in (True, False):
        run = Run(name, 1, start(1, old), old, copy.deepcopy(state), importance=1, normalize=normalize)
        run.update(0)
        penalties.append(run.update(1))
    moves = inputs.regulariser_move(1, 1)
    expected = sum(
        (state["carried"][table][parameter] * torch.as_tensor(moves[parameter]) ** 2).sum()
        for table in METHODS[name].carries  # type: ignore[attr-defined]
        for parameter in ("a", "b")
    )
    raw = penalties[1]
    assert raw is not None
    torch.testing.assert_close(raw.detach(), expected)
    assert raw != penalties[0]
