"""What EWC, PI and RW share: a penalty on moving the parameters that mattered to earlier steps.

Each keeps tables of tensors by parameter name. Those that the next step starts from (the Fisher information, the
score) are *carried*: raw, as the previous step left them, wherever the checkpoint was loaded to. Those that a step
works with are *running*: on the parameters' device.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from plopcli.data.batches import Batch
from plopcli.losses.precision import full_precision
from plopcli.methods.base import BEGINNING, Moment, StepContext, StepData
from plopcli.methods.learning import Learning, LearningSettings
from plopcli.models.segmenter import Outputs, Segmenter
from plopcli.settings.sections import MethodSettings, NonNegative

Table = dict[str, Tensor]
Tables = dict[str, Table]
Parameters = Mapping[str, nn.Parameter]


class RegulariserSettings(LearningSettings):
    """Settings of every parameter regulariser."""

    importance: NonNegative = 100.0
    """Factor of the penalty."""
    normalize: bool = True
    """Scale every carried table to [0, 1] before it weighs the penalty, each parameter's on its own."""


class Regularised(Learning):
    """Cross-entropy, and ``importance * sum of w (theta - theta_old)^2`` over the parameters of the previous model.

    The weights ``w`` of a parameter are the sum of its carried tables, each scaled to [0, 1] (`scaled`) unless they are
    wanted raw. Step 0 has no penalty, but gathers what the next step carries. A parameter that an earlier step did not
    train has no penalty; what one had carried stays as it is in steps that do not train it.
    """

    #: Names of the tables that the next step starts from, and of those that a step works with.
    carries: ClassVar[tuple[str, ...]]
    runs: ClassVar[tuple[str, ...]]

    settings: RegulariserSettings

    def __init__(self, settings: RegulariserSettings, context: StepContext) -> None:
        super().__init__(settings, context)
        self.carried: Tables = {name: {} for name in self.carries}
        self.running: Tables = {name: {} for name in self.runs}
        #: Calls of `after_gradients` in this step.
        self.calls = 0
        #: Parameters of the previous model: the very ones, no copies.
        self.old: Mapping[str, Tensor] = {}
        #: Weights by name, derived from the carried tables by the first call in this process.
        self._weights: Table | None = None
        self._shapes: Mapping[str, torch.Size] = {}

    @classmethod
    def step_0_key(cls, settings: MethodSettings) -> Mapping[str, Any]:
        """The classification loss, and tables that depend on all settings but those that step 0 has no use for."""
        unused = {"importance", "normalize", "init", "classification", "focal_gamma", "fusion"}
        return {**super().step_0_key(settings), "gathers": settings.model_dump(mode="json", exclude=unused)}

    def begin(self, parameters: Parameters) -> Tables:
        """The running tables when the step begins; copies of whatever they start from."""
        raise NotImplementedError

    def update(self, values: list[Tensor], gradients: list[Tensor]) -> None:
        """Takes in one iteration's values and gradients of the parameters, in the order of the running tables."""
        raise NotImplementedError

    def finish(self, parameters: Mapping[str, Tensor]) -> Tables:
        """The raw tables that the next step carries, of the parameters that this step trained."""
        raise NotImplementedError

    def initialise(self, model: Segmenter, old_model: Segmenter | None) -> None:
        """Remembers the previous model's parameters.

        Raises:
            DataError: The tables loaded are those of another network.
        """
        super().initialise(model, old_model)
        if old_model is not None:
            self.old = {name: parameter.detach() for name, parameter in old_model.named_parameters()}
        self._shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        self._check_shapes()

    def losses(self, batch: Batch, new: Outputs, old: Outputs | None, at: Moment = BEGINNING) -> dict[str, Tensor]:
        """``classification``; the penalty comes with `after_gradients`."""
        return {"classification": self.classify(batch, new)}

    def after_gradients(self, parameters: Parameters) -> dict[str, Tensor]:
        """Updates the tables, and gives the penalty, ``regulariser``, from step 1 on."""
        with torch.no_grad():
            if self._weights is None:
                self._prepare(parameters)
            values = [parameter.detach() for parameter in parameters.values()]
            self.update(values, [_gradient(parameter) for parameter in parameters.values()])
        self.calls += 1
        if not self._weights:
            return {}
        names = self._weights.keys()
        penalty = weighted_distance(
            [parameters[name] for name in names], [self.old[name] for name in names], list(self._weights.values())
        )
        return {"regulariser": self.settings.importance * penalty}

    @torch.no_grad()
    def after_step(self, model: Segmenter, data: StepData) -> None:
        """Turns the running tables into those that the next step carries."""
        if self.calls == 0:
            return
        finished = self.finish({name: parameter.detach() for name, parameter in model.named_parameters()})
        for name in self.carries:
            self.carried[name] = {**self.carried[name], **finished[name]}
        self.running, self._weights, self.calls = {name: {} for name in self.runs}, None, 0

    def carried_state(self) -> dict[str, Any]:
        """Copies of all tables, on the CPU. After `after_step` no running ones are left."""
        return {
            "method": self.settings.name,
            "calls": self.calls,
            "carried": _copied(self.carried),
            "running": _copied(self.running),
        }

    def load_carried_state(self, state: Mapping[str, Any], *, same_step: bool) -> None:
        """Takes up the carried tables and, in the same step, the running ones.

        Raises:
            DataError: The state is of another method, or damaged.
        """
        if self.context.step == 0 and not same_step:
            return
        if state.get("method") != self.settings.name:
            raise self._unfit("it holds no state of this method")
        self.carried = self._tables(state, "carried", self.carries)
        if same_step:
            self.running = self._tables(state, "running", self.runs)
            calls = state.get("calls")
            if not isinstance(calls, int) or calls < 0:
                raise self._unfit("its state lacks the number of updates")
            self.calls = calls
        self._weights = None
        self._check_shapes()

    def _prepare(self, parameters: Parameters) -> None:
        loaded, self.running = self.running, self.begin(parameters)
        if self.calls > 0:  # resumed: what was loaded takes the place of the beginning
            for table, tensors in self.running.items():
                if tensors.keys() != loaded[table].keys():
                    raise self._unfit(f"its {table} is not of the parameters that are trained")
                for name, tensor in tensors.items():
                    tensor.copy_(loaded[table][name])
        self._weights = {}
        for name, parameter in parameters.items():
            if name in self.old and all(name in self.carried[table] for table in self.carries):
                weights = torch.zeros_like(parameter)
                for table in self.carries:
                    carried = placed(self.carried[table][name], parameter)
                    weights += scaled(carried) if self.settings.normalize else carried
                self._weights[name] = weights

    def _tables(self, state: Mapping[str, Any], kind: str, expected: Iterable[str]) -> Tables:
        tables = state.get(kind)
        found: Tables = {}
        for table in expected:
            tensors = tables.get(table) if isinstance(tables, Mapping) else None
            if not isinstance(tensors, Mapping):
                raise self._unfit(f"its state lacks the {kind} {table}")
            if not all(isinstance(tensor, Tensor) and tensor.is_floating_point() for tensor in tensors.values()):
                raise self._unfit(f"its {kind} {table} is not made of floating-point tensors")
            found[table] = dict(tensors)
        return found

    def _check_shapes(self) -> None:
        if not self._shapes:
            return
        for table, tensors in (*self.carried.items(), *self.running.items()):
            for name, tensor in tensors.items():
                if tensor.shape != self._shapes.get(name):
                    raise self._unfit(f"its {table} of {name} does not fit the network")


def scaled(values: Tensor) -> Tensor:
    """``values`` moved and scaled to [0, 1]; equal ones become 0."""
    low, high = values.aminmax()
    return (values - low) / (high - low + 1e-8)


def weighted_distance(new: Sequence[Tensor], old: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """``sum of w (new - old)^2`` over all elements of all tensors, a scalar, at least float32.

    Args:
        new: Tensors, any shapes.
        old: As many of the same shapes; get no gradient.
        weights: As many of the same shapes, not negative.
    """
    moved = torch._foreach_sub(list(new), list(old))
    terms = torch._foreach_mul(torch._foreach_mul(moved, moved), list(weights))
    return torch.stack([full_precision(term).sum() for term in terms]).sum()


def accumulate_fisher(fisher: Mapping[str, Tensor], gradients: list[Tensor], alpha: float) -> None:
    """``F <- alpha g^2 + (1 - alpha) F``, in place: the running diagonal of the Fisher information matrix.

    Source: Chaudhry et al., Riemannian Walk for Incremental Learning, ECCV 2018, equation 10.
    """
    tensors = list(fisher.values())
    # Not addcmul: it would round otherwise than the original.
    taken = torch._foreach_mul(gradients, gradients)
    torch._foreach_mul_(taken, alpha)
    torch._foreach_mul_(tensors, 1 - alpha)
    torch._foreach_add_(tensors, taken)


def starting_fisher(carried: Mapping[str, Tensor], parameters: Parameters) -> Table:
    """The carried Fisher information, and 1 for parameters that have none."""
    return {
        name: placed(carried[name], parameter) if name in carried else torch.ones_like(parameter)
        for name, parameter in parameters.items()
    }


def placed(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A copy of ``tensor`` on the device, of the type and in the memory layout of ``parameter``."""
    return torch.empty_like(parameter).copy_(tensor)


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _copied(tables: Tables) -> Tables:
    return {
        table: {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}
        for table, tensors in tables.items()
    }
