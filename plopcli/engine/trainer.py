"""The training core: one optimizer step.

Forward passes of the new and the frozen old model, the method's loss terms, scaled backward, accumulation, the
method's view of the final gradients, optimizer and schedule: all methods and all commands go through `Trainer.iterate`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from plopcli.data.batches import Batch
from plopcli.devices.precision import Precision
from plopcli.devices.process import Process
from plopcli.errors import PlopError
from plopcli.methods.base import Method, Moment
from plopcli.models.segmenter import Outputs, Segmenter

#: How DistributedDataParallel is told not to send buffers around: renamed in torch 2.15.
_BUFFERS: str = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in signature(DistributedDataParallel).parameters
    else "broadcast_buffers"
)


@dataclass
class Iteration:
    """What one optimizer step leaves: detached scalars on the device, read on the host only when logged."""

    number: int
    lr: float
    terms: dict[str, Tensor]
    diagnostics: dict[str, Tensor] = field(default_factory=dict)
    #: Seconds that the host waited for its images.
    waited: float = 0.0


def read_iterations(iterations: Sequence[Iteration], process: Process) -> list[dict[str, Any]]:
    """The iterations as plain numbers, means over all processes; waits for the device once."""
    names = [[*done.terms, *done.diagnostics] for done in iterations]
    scalars = [value.double() for done in iterations for value in (*done.terms.values(), *done.diagnostics.values())]
    values = iter(process.mean(torch.stack(scalars)).tolist())
    rows = []
    for done, own in zip(iterations, names, strict=True):
        numbers = {name: next(values) for name in own}
        rows.append(
            {
                "iteration": done.number,
                "lr": done.lr,
                "loss": sum(numbers[name] for name in done.terms),
                "terms": {name: numbers[name] for name in done.terms},
                "diagnostics": {name: numbers[name] for name in done.diagnostics},
            }
        )
    return rows


class Trainer:
    """Trains ``model``, and what the method has of its own, for one step of a scenario.

    Args:
        model: The network, in train mode.
        old_model: The frozen network of the previous step, in eval mode; None at step 0.
        method: Gives the loss terms.
        optimizer: Moves the parameters.
        schedule: Stepped after every optimizer step.
        precision: Autocast and loss scaling.
        process: This process; with several, gradients are averaged over them.
        accumulation: Micro-batches per optimizer step and process.
        epoch: Iterations of an epoch.
        total: Iterations of the step.
        compiler: Backend of `torch.compile` for the training passes of both networks; None runs them as they are.
        tolerance: Iterations in a row whose loss or gradients may be not finite; they move nothing.
    """

    def __init__(
        self,
        model: Segmenter,
        old_model: Segmenter | None,
        method: Method,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
        precision: Precision,
        process: Process,
        accumulation: int = 1,
        *,
        epoch: int = 1,
        total: int = 1,
        compiler: str | None = None,
        tolerance: int = 0,
    ) -> None:
        self.model = model
        self.process = process
        self.method = method
        self.optimizer = optimizer
        self.schedule = schedule
        self.precision = precision
        self.accumulation = accumulation
        self.tolerance = tolerance
        self.epoch, self.total = epoch, total
        #: Of the network, as the method's hooks see them.
        self.parameters: Mapping[str, nn.Parameter] = {
            name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
        }
        self._trained = [*self.parameters.values(), *(own for own in method.parameters() if own.requires_grad)]
        self.iteration = 0
        self._lost_in_a_row = 0
        self._terms = _distributed(LossTerms(_compiled(model, compiler), method), process)
        self._old_network = None if old_model is None else _compiled(old_model, compiler)

    def iterate(self, batches: Sequence[Batch]) -> Iteration:
        """One optimizer step over ``batches``, the micro-batches of this iteration.

        Raises:
            PlopError: More iterations in a row than are tolerated were not finite; the network is as before them.
        """
        statistics = [buffer.clone() for buffer in self._buffers()] if self.tolerance else []
        self.optimizer.zero_grad(set_to_none=True)
        done = Iteration(self.iteration, self._rate(), {})
        for position, batch in enumerate(batches, start=1):
            with self._exchanging(position == len(batches)):
                terms = self._backward(batch, 1 / len(batches))
            for name, value in terms.items():
                done.terms[name] = done.terms[name] + value if name in done.terms else value
        self.precision.unscale(self.optimizer)
        lost = self.tolerance > 0 and self._lost(done, statistics)
        if lost or self.precision.overflowed(self._trained):
            # For method and schedule, this iteration has not happened.
            self.precision.skip()
            one = torch.ones((), device=self.precision.device)
            done.diagnostics = {"skipped": one, "not_finite": one} if lost else {"skipped": one}
            self.iteration += 1
            return done
        penalties = self.method.after_gradients(self.parameters)
        if penalties:
            torch.stack(list(penalties.values())).sum().backward()
            done.terms |= {name: value.detach() for name, value in penalties.items()}
        self.precision.step(self.optimizer)
        self.schedule.step()
        self.method.after_optimizer_step(self.parameters)
        done.diagnostics = dict(self.method.diagnostics)
        self.iteration += 1
        return done

    def _lost(self, done: Iteration, statistics: Sequence[Tensor]) -> bool:
        """Whether this iteration is not finite; if so, it leaves no trace in the running statistics."""
        suspects = list(done.terms.values())
        if not self.precision.scaler.is_enabled():  # else an overflow, which is fp16's own affair
            suspects += [parameter.grad for parameter in self._trained if parameter.grad is not None]
        bad = torch.stack([~suspect.isfinite().all() for suspect in suspects]).any()
        if float(self.process.sum(bad.double())) == 0:
            self._lost_in_a_row = 0
            return False
        with torch.no_grad():
            for buffer, before in zip(self._buffers(), statistics, strict=True):
                buffer.copy_(before)
        self._lost_in_a_row += 1
        if self._lost_in_a_row > self.tolerance:
            raise PlopError(
                f"{self._lost_in_a_row} iterations in a row were not finite, up to iteration {self.iteration}; "
                f"train.skip_non_finite allows {self.tolerance}.",
                "Skipping does not help here. A lower learning rate may (--lr, --lr-later), in another run.",
            )
        return True

    def _buffers(self) -> list[Tensor]:
        return [*self.model.buffers(), *self.method.buffers()]

    def _moment(self) -> Moment:
        return Moment(self.iteration, self.iteration // self.epoch, self.iteration / self.total)

    def _rate(self) -> float:
        """The recipe's learning rate now, before the factors of the parts."""
        group = self.optimizer.param_groups[0]
        return float(self.optimizer.defaults["lr"] * group["lr"] / group["initial_lr"])

    def state_dict(self) -> dict[str, Any]:
        """All that training changes, for a snapshot: tensors, in part the very ones, and plain values."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.precision.scaler.state_dict(),
            "method": self.method.saved_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any], iteration: int) -> None:
        """Takes up what `state_dict` gave after ``iteration`` iterations.

        Raises:
            KeyError, RuntimeError, TypeError, ValueError: The state is of something else.
            DataError: The method says so.
        """
        self.model.load_state_dict(state["model"])
        self.method.load_carried_state(state["method"], same_step=True)
        self.method.load_tensors(state["method"], same_step=True)
        self.optimizer.load_state_dict(dict(state["optimizer"]))
        for parameter, kept in self.optimizer.state.items():
            for name, value in kept.items():
                # The fused optimizer reads its tensors in the order in which they lie in memory.
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    kept[name] = torch.empty_like(parameter).copy_(value)
        self.schedule.load_state_dict(dict(state["schedule"]))
        if state["scaler"] and self.precision.scaler.is_enabled():
            self.precision.scaler.load_state_dict(dict(state["scaler"]))
        self.iteration = iteration

    def _exchanging(self, last: bool) -> AbstractContextManager[None]:
        """Processes exchange gradients once an iteration, with the last micro-batch."""
        if last or not isinstance(self._terms, DistributedDataParallel):
            return nullcontext()
        return self._terms.no_sync()

    def _backward(self, batch: Batch, weight: float) -> dict[str, Tensor]:
        features = self.method.uses_features
        with self.precision.autocast():
            old: Outputs | None = None
            if self._old_network is not None and self.method.uses_old_model:
                with torch.no_grad():
                    old = self._old_network(batch.images, features=features)
            terms: dict[str, Tensor] = self._terms(batch, old, self._moment())
        self.precision.backward(torch.stack([term * weight for term in terms.values()]).sum())
        return {name: term.detach() * weight for name, term in terms.items()}


class LossTerms(nn.Module):
    """Everything that has a backward pass, from a batch to the method's loss terms, as one module to be wrapped.

    Args:
        network: The network, compiled perhaps.
        method: The method, whose own parameters take part.
    """

    def __init__(self, network: nn.Module, method: Method) -> None:
        super().__init__()
        self.network = network
        self.method = method

    def forward(self, batch: Batch, old: Outputs | None, at: Moment) -> dict[str, Tensor]:
        """Named loss terms, scalars."""
        new = self.network(batch.images, features=self.method.uses_features)
        return self.method.losses(batch, new, old, at)


def _compiled(model: Segmenter, compiler: str | None) -> nn.Module:
    # Crops have one size: what is compiled for it alone is faster.
    if compiler is None:
        return model
    compiled: nn.Module = torch.compile(model, backend=compiler, dynamic=False)  # type: ignore[assignment]
    return compiled


def _distributed(terms: LossTerms, process: Process) -> nn.Module:
    if process.world == 1:
        return terms
    options: dict[str, Any] = {_BUFFERS: False}
    return DistributedDataParallel(
        terms,
        device_ids=[process.device.index] if process.device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        # Running statistics are equal everywhere where norms are synchronised, and averaged by the engine elsewhere.
        **options,
    )
