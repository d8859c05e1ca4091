"""Training of a method's own before the training of a step: a few tensors, while the network stands still."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import torch

from plopcli.data.batches import Batch
from plopcli.data.loading import PHASE
from plopcli.devices.process import Process
from plopcli.engine.batches import batches
from plopcli.engine.faults import errors_told
from plopcli.engine.run import Run
from plopcli.engine.setup import StepSetup
from plopcli.engine.trainer import Iteration, read_iterations
from plopcli.errors import PlopError
from plopcli.methods.base import Moment, Phase
from plopcli.models.layout import is_channels_last


def train_phase(run: Run, setup: StepSetup) -> None:
    """Runs the method's phase, if it has one, to its end; a run that stops in it begins it anew.

    Raises:
        PlopError: A loss is not finite, or a file could not be read.
    """
    phase = setup.method.phase()
    if phase is None:
        return
    schedule = replace(setup.schedule, purpose=PHASE, replayed=None)
    total = setup.method.phase_epochs * schedule.iterations_per_epoch
    setup.model.train()
    loaded = batches(setup.images, schedule, 0, total, run.process, channels_last=is_channels_last(setup.model))
    tensors = [tensor for group in phase.optimizer.param_groups for tensor in group["params"]]
    sums: dict[str, float] = {}
    label = f"step {schedule.step}: {phase.name}"
    with errors_told(run.settings), closing(loaded), run.log.progress(label) as bar:
        for iteration in range(total):
            phase.optimizer.zero_grad(set_to_none=True)
            at = Moment(iteration, iteration // schedule.iterations_per_epoch, iteration / total)
            terms: dict[str, torch.Tensor] = {}
            for _ in range(schedule.accumulation):
                for name, value in _backward(run, setup, phase, next(loaded), at, schedule.accumulation).items():
                    terms[name] = terms.get(name, torch.zeros_like(value)) + value
            _average_gradients(tensors, run.process)
            phase.optimizer.step()
            if phase.schedule is not None:
                phase.schedule.step()
            (row,) = read_iterations([Iteration(iteration, phase.optimizer.param_groups[0]["lr"], terms)], run.process)
            if not all(value - value == 0 for value in row["terms"].values()):
                raise PlopError(
                    f"A loss of phase {phase.name} is not finite at step {schedule.step}, iteration {iteration}: "
                    f"{row['terms']}.",
                    "Use a lower learning rate for it.",
                )
            if run.process.is_main:
                run.folder.append_metrics([{"step": schedule.step, "phase": phase.name, **row}])
            for name, value in row["terms"].items():
                sums[name] = sums.get(name, 0.0) + value
            bar.update(iteration + 1, total, "")
            if (iteration + 1) % schedule.iterations_per_epoch == 0:
                means = ", ".join(f"{name} {value / schedule.iterations_per_epoch:.4f}" for name, value in sums.items())
                run.log.say(f"  step {schedule.step} {phase.name} epoch {at.epoch + 1}: {means}")
                sums = {}
    phase.finish()


def _backward(
    run: Run, setup: StepSetup, phase: Phase, batch: Batch, at: Moment, parts: int
) -> dict[str, torch.Tensor]:
    with run.precision.autocast():
        with torch.no_grad():
            old = None if setup.old_model is None else setup.old_model(batch.images, features=True)
            new = setup.model(batch.images, features=True)
        terms = {name: term / parts for name, term in phase.losses(batch, new, old, at).items()}
    torch.stack(list(terms.values())).sum().backward()
    return {name: term.detach() for name, term in terms.items()}


def _average_gradients(tensors: list[torch.Tensor], process: Process) -> None:
    if process.world > 1:
        for tensor in tensors:
            if tensor.grad is None:  # others may have one, and all have to move alike
                tensor.grad = torch.zeros_like(tensor)
            process.mean(tensor.grad)
