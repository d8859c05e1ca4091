"""TensorBoard events of a run, by the iterations of the whole run, in which each measurement counts as one, too.

::

loss, terms/, diagnostics/             of every iteration
lr, lr/PART                            learning rate of the recipe, and of every part of the network
time/                                  seconds of an iteration, those of them spent waiting for images, images per
                                       second; means since the events before
memory/peak (GiB)                      of the GPU, or of this process
val/miou                               within steps
miou/, miou without background/        after every step, in both conventions of the literature
iou/CLASS, accuracy/, domain/          after every step
over steps/                            after every step: avg, hIoU, forgetting and backward transfer so far
confusion, predictions/IMAGE           pictures, after every step
_hparams_/                             settings beside the final figures, once the run is finished

A run that goes on writes a file of its own, which begins by telling TensorBoard to forget all later iterations that it
has read from the files before (``purge_step``). Measurements count, so that this point lies before or behind them.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

from plopcli.files.atomic import naming
from plopcli.runs.results import SUMMARY, Results, StepResults
from plopcli.settings.keys import leaves
from plopcli.settings.sections import MethodSettings

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch.utils.tensorboard import SummaryWriter

#: What the table of hyper-parameters shows beside the settings: tags of events.
_FINAL = ("miou/all", "miou/old", "miou/new", "over steps/avg", "over steps/hiou", "over steps/forgetting")

P = ParamSpec("P")


def _named(method: Callable[Concatenate[EventWriter, P], None]) -> Callable[Concatenate[EventWriter, P], None]:
    """``method``, whose errors of the system name the folder of the events: TensorBoard's own name nothing."""

    @functools.wraps(method)
    def writing(self: EventWriter, /, *arguments: P.args, **more: P.kwargs) -> None:
        if self._folder is not None:
            with naming(self._folder):
                method(self, *arguments, **more)

    return writing


class EventWriter:
    """Writes scalars by group; does nothing where there is no folder.

    Args:
        folder: Where to write; None switches events off.
        lengths: Iterations of every step.
    """

    def __init__(self, folder: Path | None, lengths: Sequence[int] = ()) -> None:
        self._folder, self._lengths = folder, tuple(lengths)
        self._purge: int | None = None
        #: Where this writer begins; measurements before are told already.
        self._begins = 0
        self._open: SummaryWriter | None = None

    @property
    def is_on(self) -> bool:
        """Whether anything is written; what costs something to make need not be made otherwise."""
        return self._folder is not None

    @property
    def _writer(self) -> SummaryWriter:
        """Opened when something is written: a file of its own each time. There is a folder wherever `_named` is."""
        if self._open is None:
            from torch.utils.tensorboard import SummaryWriter

            _leave_errors_to_the_main_thread()
            self._open = SummaryWriter(str(self._folder), purge_step=self._purge)
            self._purge = None
        return self._open

    def resume(self, step: int, iteration: int, measured: int) -> None:
        """Has TensorBoard forget what was written after the point where a run goes on.

        Args:
            step: The step to train.
            iteration: Iterations of it that are done.
            measured: Steps whose figures stay.
        """
        self.close()
        self._purge = self._at(step, iteration)
        if iteration == 0 and measured < step:  # the step before is to be measured again
            self._purge -= 1
        if self._folder is not None and any(self._folder.glob("events.out.tfevents.*")):
            self._begins = self._purge

    def _at(self, step: int, iteration: int) -> int:
        """Where an iteration of a step stands in the whole run, in which each measurement counts as one, too."""
        return sum(length + 1 for length in self._lengths[:step]) + iteration

    def _measured_at(self, step: int) -> int:
        return self._at(step + 1, 0) - 1

    def _is_told(self, step: int) -> bool:
        """Whether the events of a step that is measured again are there: the figures will be the same."""
        return self._measured_at(step) < self._begins

    @_named
    def iterations(self, rows: Iterable[Mapping[str, Any]], parts: Mapping[str, float]) -> None:
        """Loss terms, diagnostics and learning rates of iterations.

        Args:
            rows: As in the metrics file.
            parts: Factor on the learning rate of every part of the network that is trained.
        """
        writer = self._writer
        for row in rows:
            at = self._at(row["step"], row["iteration"])
            writer.add_scalar("loss", row["loss"], at)
            writer.add_scalar("lr", row["lr"], at)
            for part, factor in parts.items():
                writer.add_scalar(f"lr/{part}", factor * row["lr"], at)
            for kind in ("terms", "diagnostics"):
                for name, value in row[kind].items():
                    writer.add_scalar(f"{kind}/{name}", value, at)

    @_named
    def pace(self, step: int, iteration: int, figures: Mapping[str, float]) -> None:
        """Times and memory up to ``iteration`` of a step, by their tag."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, self._at(step, iteration))

    @_named
    def validation(self, step: int, iteration: int, miou: float | None) -> None:
        """MIoU on the validation set after ``iteration`` iterations of a step."""
        if miou is not None:
            self._writer.add_scalar("val/miou", miou, self._at(step, iteration))

    @_named
    def step(self, results: StepResults) -> None:
        """Figures of a step."""
        if self._is_told(results.step):
            return
        writer = self._writer
        groups: dict[str, Mapping[str, float | None]] = {
            "miou": dict(results.miou),
            "miou without background": dict(results.miou_foreground or {}),
            "iou": results.iou,
            "accuracy": {name: getattr(results, name) for name in SUMMARY},
            "domain": {name: found.miou for name, found in (results.domains or {}).items()},
        }
        for group, values in groups.items():
            for name, value in values.items():
                if value is not None:
                    writer.add_scalar(f"{group}/{name}", value, self._measured_at(results.step))
        writer.flush()

    @_named
    def over_steps(self, results: Results) -> None:
        """Figures over the steps up to the last one measured."""
        if self._is_told(results.steps[-1].step):
            return
        writer = self._writer
        changes = {"forgetting": results.forgetting, "backward_transfer": results.backward_transfer}
        means = {name: None if change is None else change.mean for name, change in changes.items()}
        for name, value in {"avg": results.avg, "hiou": results.hiou, **means}.items():
            if value is not None:
                writer.add_scalar(f"over steps/{name}", value, self._measured_at(results.steps[-1].step))
        writer.flush()

    @_named
    def picture(self, tag: str, pixels: npt.NDArray[np.uint8], step: int) -> None:
        """A picture (H, W, 3) of ``step``."""
        if self._is_told(step):
            return
        # The name of a file may hold bytes that are no UTF-8, in which TensorBoard keeps tags.
        tag = tag.encode("utf-8", "backslashreplace").decode()
        self._writer.add_image(tag, pixels, self._measured_at(step), dataformats="HWC")

    @_named
    def finish(self, settings: Mapping[str, Any]) -> None:
        """The settings, nested, as hyper-parameters beside the final figures; written into this very run.

        TensorBoard's own ``add_hparams`` would make a run of its own of them.
        """
        from torch.utils.tensorboard.summary import hparams

        writer = self._writer
        file_writer: Any = writer.file_writer
        keys = leaves(MethodSettings)
        deciding = {key: value for key, value in _flat(settings) if key not in keys or keys[key].decides != "nothing"}
        for summary in hparams(deciding, dict.fromkeys(_FINAL, 0.0)):
            # At the very end, so that a run that goes on tells them anew.
            file_writer.add_summary(summary, self._at(len(self._lengths), 0))
        writer.flush()

    @_named
    def flush(self) -> None:
        """Brings what was written so far to the event file."""
        if self._open is not None:
            self._open.flush()

    @_named
    def close(self) -> None:
        """Finishes the event file."""
        if self._open is not None:
            writer, self._open = self._open, None
            writer.close()


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, bool | int | float | str]]:
    """Dotted keys and plain values of nested settings."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, bool | int | float | str) else str(value)


def _leave_errors_to_the_main_thread() -> None:
    """Has an error of TensorBoard's writing thread told once: by the next call that writes, which raises it again."""
    told = threading.excepthook
    if getattr(told, "leaves_writers", False):
        return

    def tell(error: threading.ExceptHookArgs) -> None:
        if type(error.thread).__module__ != "tensorboard.summary.writer.event_file_writer":
            told(error)

    tell.leaves_writers = True  # type: ignore[attr-defined]
    threading.excepthook = tell
