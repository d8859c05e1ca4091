"""The training core: one optimizer step, and the loop over a step's iterations.

Forward passes of the new and the frozen old model, the method's loss terms, scaled backward, accumulation, the
method's view of the final gradients, optimizer and schedule: all methods and all commands go through `Trainer.iterate`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from plopcli.devices.precision import Precision
from plopcli.errors import PlopError
from plopcli.methods.base import Batch, Method
from plopcli.models.segmenter import Outputs, Segmenter


@dataclass
class Iteration:
    """What one optimizer step leaves: detached scalars on the device, read on the host only when logged."""

    number: int
    lr: float
    terms: dict[str, Tensor]
    diagnostics: dict[str, Tensor] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """The iteration as plain numbers; waits for the device."""
        names = [*self.terms, *self.diagnostics]
        values = torch.stack([t.float() for t in (*self.terms.values(), *self.diagnostics.values())]).tolist()
        numbers = dict(zip(names, values, strict=True))
        return {
            "iteration": self.number,
            "lr": self.lr,
            "loss": sum(numbers[name] for name in self.terms),
            "terms": {name: numbers[name] for name in self.terms},
            "diagnostics": {name: numbers[name] for name in self.diagnostics},
        }


class Trainer:
    """Trains ``model`` for one step of a scenario.

    Args:
        model: The network, in train mode.
        old_model: The frozen network of the previous step, in eval mode; None at step 0.
        method: Gives the loss terms.
        optimizer: Moves the parameters.
        schedule: Stepped after every optimizer step.
        precision: Autocast and loss scaling.
        accumulation: Micro-batches per optimizer step.
    """

    def __init__(
        self,
        model: Segmenter,
        old_model: Segmenter | None,
        method: Method,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
        precision: Precision,
        accumulation: int = 1,
    ) -> None:
        self.model = model
        self.old_model = old_model
        self.method = method
        self.optimizer = optimizer
        self.schedule = schedule
        self.precision = precision
        self.accumulation = accumulation
        self.parameters: Mapping[str, nn.Parameter] = {
            name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
        }
        self.iteration = 0

    def iterate(self, batches: Sequence[Batch]) -> Iteration:
        """One optimizer step over ``batches``, the micro-batches of this iteration."""
        self.optimizer.zero_grad(set_to_none=True)
        done = Iteration(self.iteration, self._rate(), {})
        for batch in batches:
            terms = self._backward(batch, 1 / len(batches))
            for name, value in terms.items():
                done.terms[name] = done.terms[name] + value if name in done.terms else value
        self.precision.unscale(self.optimizer)
        if self.precision.overflowed(self.parameters.values()):
            # The scaler skips this step and lowers its scale: for method and schedule it has not happened.
            self.precision.step(self.optimizer)
            done.diagnostics = {"skipped": torch.ones((), device=self.precision.device)}
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

    def _rate(self) -> float:
        """The recipe's learning rate now, before the factors of the parts."""
        group = self.optimizer.param_groups[0]
        return float(self.optimizer.defaults["lr"] * group["lr"] / group["initial_lr"])

    def run(
        self, batches: Iterator[Batch], iterations: int, print_every: int, record: Callable[[list[Iteration]], None]
    ) -> None:
        """Trains until ``iterations`` are done, handing every ``print_every`` of them to ``record``.

        Raises:
            PlopError: A loss term is not finite; names the term and the iteration.
        """
        waiting: list[Iteration] = []
        while self.iteration < iterations:
            waiting.append(self.iterate(list(islice(batches, self.accumulation))))
            if len(waiting) == print_every or self.iteration == iterations:
                record(waiting)
                waiting = []

    def _backward(self, batch: Batch, weight: float) -> dict[str, Tensor]:
        features = self.method.uses_features
        with self.precision.autocast():
            old: Outputs | None = None
            if self.old_model is not None and self.method.uses_old_model:
                with torch.no_grad():
                    old = self.old_model(batch.images, features=features)
            new = self.model(batch.images, features=features)
            terms = self.method.losses(batch, new, old)
        self.precision.backward(torch.stack([term * weight for term in terms.values()]).sum())
        return {name: term.detach() * weight for name, term in terms.items()}


def check_finite(row: Mapping[str, Any], step: int) -> None:
    """Stops a run whose loss has a term that is not finite.

    Raises:
        PlopError: Names the terms and where training stood.
    """
    bad = [name for name, value in row["terms"].items() if not math.isfinite(value)]
    if bad:
        raise PlopError(
            f"Loss term {', '.join(bad)} is not finite at step {step}, iteration {row['iteration']} "
            f"({', '.join(f'{name} {value:g}' for name, value in row['terms'].items())}).",
            "A lower learning rate helps most often (--lr, --lr-later); the checkpoints of earlier steps are intact.",
        )
