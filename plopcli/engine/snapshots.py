"""The state in the middle of a step: when it is saved, and how training goes on from it."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn

from plopcli.devices.flags import AsyncFlags
from plopcli.devices.signals import stop_asked
from plopcli.engine.compute_options import check_weights
from plopcli.engine.metrics_log import MetricsLog
from plopcli.engine.run import Run, provenance
from plopcli.engine.trainer import Trainer
from plopcli.errors import DamagedFileError, PlopError, StoppedError
from plopcli.runs.snapshot import Snapshot, write_snapshot

#: Ends of epochs pass without a snapshot where writing it would take more than this share of the time.
_SHARE = 0.1


class SnapshotKeeper:
    """Saves the state of a step's training: at ends of epochs, every so often, when asked to stop, and on failure.

    Every method but `saved_on_failure` must be called by all processes alike.

    Args:
        run: The run.
        step: The step.
        trainer: Its training.
        recorder: What takes up its iterations.
        total: Iterations of the step.
        seconds: Spent on the step's training before.
    """

    def __init__(self, run: Run, step: int, trainer: Trainer, recorder: MetricsLog, total: int, seconds: float) -> None:
        self._run, self._step, self._trainer, self._recorder, self._total = run, step, trainer, recorder, total
        self._ballot = AsyncFlags(run.process)
        self._saved_at = trainer.iteration
        self._saved_time = self._began = time.monotonic()
        self._earlier = seconds
        self._between_iterations = True
        #: How long the last snapshot took to write.
        self._cost = 0.0

    @property
    def seconds(self) -> float:
        """Spent on training the step so far."""
        return self._earlier + time.monotonic() - self._began

    def should_pause(self) -> bool:
        """Whether to look after the state now; to be asked after every iteration."""
        wanted = bool(self._ballot.without_waiting(int(stop_asked() > 0 or self._overdue())))
        return wanted or self._iterations_are_over()

    def save_if_due(self, *, epoch_ends: bool) -> None:
        """Saves the state where it is time, and ends the run where it was asked to stop.

        Raises:
            StoppedError: It was asked to stop.
            PlopError: The weights are not finite.
            MachineError: The snapshot cannot be written.
        """
        running = self._trainer.iteration < self._total
        due = self._overdue() or (epoch_ends and self._is_worth_it())
        asked, due_anywhere = self._ballot.now([stop_asked(), int(due)])
        if asked or (running and (due_anywhere or self._iterations_are_over())):
            self._save()
        if asked:
            self._run.process.barrier()
            raise self._stopped(asked)

    @contextmanager
    def iteration(self) -> Iterator[None]:
        """Around an iteration and what is recorded of it: a failure inside leaves the state between two iterations."""
        self._between_iterations = False
        yield
        self._between_iterations = True

    @contextmanager
    def saved_on_failure(self) -> Iterator[None]:
        """Saves the last finished iteration where getting the images of the next one fails, or is stopped.

        Where an iteration itself fails, nobody knows which part of the state has moved; and of several processes, only
        the one that fails knows. There the last snapshot has to do.
        """
        try:
            yield
        except Exception as error:
            if self._run.process.world > 1 or not self._between_iterations or getattr(error, "agreed", False):
                raise
            # Whatever goes wrong here, the failure to tell is the one before.
            with suppress(PlopError, OSError):
                self._recorder.flush()
                if self._trainer.iteration > self._saved_at:
                    self._save()
                    self._run.log.say(f"  step {self._step}: saved after {self._done()}", "yellow")
            if isinstance(error, StoppedError) and self._trainer.iteration == self._saved_at:
                raise self._stopped(error.signal) from None
            raise

    def _overdue(self) -> bool:
        minutes = self._run.settings.output.snapshot_minutes
        return self._run.process.is_main and minutes > 0 and time.monotonic() - self._saved_time >= 60 * minutes

    def _iterations_are_over(self) -> bool:
        every = self._run.settings.output.snapshot_iterations
        return every > 0 and self._trainer.iteration - self._saved_at >= every

    def _is_worth_it(self) -> bool:
        return self._run.process.is_main and time.monotonic() - self._saved_time >= self._cost / _SHARE

    def _save(self) -> None:
        start = time.monotonic()
        statistics = _own_statistics(self._run, self._trainer.model, self._trainer.method)
        if self._run.process.is_main:
            check_weights(self._trainer.model, f"iteration {self._trainer.iteration} of step {self._step}")
            # What the snapshot builds upon comes first, so that no power cut leaves a hole before it.
            self._run.flush()
            write_snapshot(self._run.folder, self._snapshot(statistics), self._run.settings.output.snapshots)
        self._saved_at, self._saved_time = self._trainer.iteration, time.monotonic()
        self._cost = self._saved_time - start

    def _snapshot(self, statistics: Tensor | None) -> Snapshot:
        run, device = self._run, self._run.process.device
        random = {"cpu": torch.get_rng_state()}
        if device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(device)
        return Snapshot(
            step=self._step,
            iteration=self._trainer.iteration,
            trainer=self._trainer.state_dict(),
            statistics=statistics,
            progress=self._recorder.state_dict(),
            random=random,
            seconds=self.seconds,
            settings=run.settings.model_dump(mode="json"),
            classes=run.scenario.class_names,
            task_steps=[list(learned) for learned in run.scenario.task.steps],
            data_fingerprint=run.scenario.fingerprint,
            images=run.scenario.images,
            made_with=provenance(run, self._step),
        )

    def _done(self) -> str:
        return f"iteration {self._trainer.iteration} of {self._total}"

    def _stopped(self, number: int) -> StoppedError:
        return StoppedError(
            number,
            f"Stopped by {signal.Signals(number).name}: step {self._step} is saved after {self._done()}.",
            f"Go on with: {self._run.resumed_by}",
            agreed=True,
        )


def restore(run: Run, trainer: Trainer, recorder: MetricsLog, snapshot: Snapshot) -> None:
    """Brings a step's training, freshly built, to where ``snapshot`` was taken.

    Raises:
        DamagedFileError: The snapshot does not fit.
    """
    try:
        trainer.load_state_dict(snapshot.trainer, snapshot.iteration)
        recorder.load_state_dict(snapshot.progress)
        if snapshot.statistics is not None:
            _take_statistics(run, trainer.model, trainer.method, snapshot.statistics)
        torch.set_rng_state(snapshot.random["cpu"])
        if run.process.device.type == "cuda" and "cuda" in snapshot.random:
            torch.cuda.set_rng_state(snapshot.random["cuda"], run.process.device)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise DamagedFileError(
            f"The snapshot of step {snapshot.step}, iteration {snapshot.iteration}, does not fit its own settings: "
            f"{str(error).partition(chr(10))[0]}",
            "Remove it (checkpoints/snapshot-*.pt): an older one is used, or the step begins anew.",
        ) from error


def _statistics_of(model: nn.Module, method: nn.Module) -> list[Tensor]:
    return [buffer for module in (model, method) for buffer in module.buffers() if buffer.is_floating_point()]


def _own_statistics(run: Run, model: nn.Module, method: nn.Module) -> Tensor | None:
    """Running statistics and buffers of the method, of every process in a row, where each keeps its own."""
    if run.process.world == 1 or (run.syncs_norm and next(method.buffers(), None) is None):
        return None
    own = torch.cat([buffer.flatten() for buffer in _statistics_of(model, method)])
    return torch.stack(run.process.gather(own)).cpu()


def _take_statistics(run: Run, model: nn.Module, method: nn.Module, statistics: Tensor) -> None:
    """This process's own statistics; their mean where the processes are not those that kept them."""
    own = statistics[run.process.rank] if len(statistics) == run.process.world else statistics.mean(0)
    buffers = _statistics_of(model, method)
    if run.syncs_norm:  # the network's have to be equal everywhere
        shared = sum(buffer.numel() for buffer in _statistics_of(model, nn.Module()))
        equal = bool((statistics[:, :shared] == statistics[:1, :shared]).all())
        own = torch.cat([statistics[0, :shared] if equal else statistics[:, :shared].mean(0), own[shared:]])
    for buffer, values in zip(buffers, own.split([buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(values.view_as(buffer))
