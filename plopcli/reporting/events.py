"""TensorBoard events of a run, grouped by what they tell.

::

step-N/loss, terms/, diagnostics/      by iteration of step N
step-N/lr, lr/PART                     learning rate of the recipe, and of every part of the network
step-N/time/                           seconds of an iteration, those of them spent waiting for images, images per
                                       second; means since the events before
step-N/memory/peak GiB                 of the GPU, or of this process
step-N/val/miou                        by epoch
miou/, miou without background/        by step, in both conventions of the literature
iou/CLASS, accuracy/                   by step
over steps/                            by step: avg, hIoU, forgetting and backward transfer so far
confusion, predictions/IMAGE           pictures, by step
_hparams_/                             settings beside the final figures, once the run is finished
"""

from __future__ import annotations

import functools
import re
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

from plopcli.files.atomic import naming, write_atomic
from plopcli.settings.keys import leaves
from plopcli.settings.sections import MethodSettings

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch.utils.tensorboard import SummaryWriter

#: Of a record in an event file: length of the content and its check sum; another check sum comes behind the content.
_HEADER = struct.Struct("<QI")
_FOOTER = 4
_HPARAMS = "_hparams_/"
#: What the table of hyper-parameters shows beside the settings: tags of events by step.
_FINAL = ("miou/all", "miou/old", "miou/new", "over steps/avg", "over steps/hiou", "over steps/forgetting")
_ACCURACIES = ("overall_accuracy", "mean_accuracy", "frequency_weighted_iou")

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
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
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
            self._open = SummaryWriter(str(self._folder))
        return self._open

    @_named
    def iterations(self, rows: Iterable[Mapping[str, Any]], parts: Mapping[str, float]) -> None:
        """Loss terms, diagnostics and learning rates of iterations.

        Args:
            rows: As in the metrics file.
            parts: Factor on the learning rate of every part of the network that is trained.
        """
        writer = self._writer
        for row in rows:
            at = row["iteration"]
            group = f"step-{row['step']}"
            writer.add_scalar(f"{group}/loss", row["loss"], at)
            writer.add_scalar(f"{group}/lr", row["lr"], at)
            for part, factor in parts.items():
                writer.add_scalar(f"{group}/lr/{part}", factor * row["lr"], at)
            for kind in ("terms", "diagnostics"):
                for name, value in row[kind].items():
                    writer.add_scalar(f"{group}/{kind}/{name}", value, at)

    @_named
    def pace(self, step: int, iteration: int, figures: Mapping[str, float]) -> None:
        """Times and memory up to ``iteration`` of a step, by the rest of their tag."""
        for name, value in figures.items():
            self._writer.add_scalar(f"step-{step}/{name}", value, iteration)

    @_named
    def step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Figures of a step."""
        writer = self._writer
        groups = {"miou": metrics["miou"], "miou without background": metrics["miou_foreground"], "iou": metrics["iou"]}
        groups["accuracy"] = {name: metrics[name] for name in _ACCURACIES}
        if domains := metrics.get("domains"):
            groups["domain"] = {name: figures["miou"] for name, figures in domains.items()}
        for group, values in groups.items():
            for name, value in values.items():
                if value is not None:
                    writer.add_scalar(f"{group}/{name}", value, step)
        writer.flush()

    @_named
    def over_steps(self, step: int, results: Mapping[str, Any]) -> None:
        """Figures over the steps up to ``step``, the last one measured."""
        writer = self._writer
        changes = {name: (results[name] or {}).get("mean") for name in ("forgetting", "backward_transfer")}
        for name, value in {"avg": results["avg"], "hiou": results["hiou"], **changes}.items():
            if value is not None:
                writer.add_scalar(f"over steps/{name}", value, step)
        writer.flush()

    @_named
    def picture(self, tag: str, pixels: npt.NDArray[np.uint8], step: int) -> None:
        """A picture (H, W, 3) of ``step``."""
        self._writer.add_image(tag, pixels, step, dataformats="HWC")

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
            file_writer.add_summary(summary)
        writer.flush()

    @_named
    def validation(self, step: int, epoch: int, miou: float | None) -> None:
        """MIoU on the validation set after an epoch of a step."""
        if miou is not None:
            self._writer.add_scalar(f"step-{step}/val/miou", miou, epoch)

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

    @_named
    def rewind(
        self,
        iteration_stays: Callable[[int, int], bool],
        validation_stays: Callable[[int, int], bool],
        figures_stay: Callable[[int], bool],
    ) -> None:
        """Cuts events out of the files that are there, damaged ends included; TensorBoard then shows none twice.

        TensorBoard's own way, a purge from a point on, would hide all steps from the same iteration on.

        Args:
            iteration_stays: Called with step and iteration.
            validation_stays: Called with step and epoch.
            figures_stay: Called with the step.
        """
        assert self._folder is not None  # else `_named` does nothing
        self.close()

        def stays(tag: str, at: int) -> bool:
            if tag.startswith(_HPARAMS):
                return False  # told anew at the end
            match = re.match(r"step-(\d+)/(val/)?", tag)
            if match is None:
                return figures_stay(at)
            return (validation_stays if match[2] else iteration_stays)(int(match[1]), at)

        for path in sorted(self._folder.glob("events.out.tfevents.*")):
            content = path.read_bytes()
            kept = b"".join(record for record in _records(content) if _told(record, stays))
            if not kept:
                path.unlink()
            elif kept != content:
                write_atomic(path, kept)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, bool | int | float | str]]:
    """Dotted keys and plain values of nested settings."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, bool | int | float | str) else str(value)


def _records(content: bytes) -> Iterator[bytes]:
    """The whole records of an event file."""
    start = 0
    while start + _HEADER.size <= len(content):
        length, _ = _HEADER.unpack_from(content, start)
        end = start + _HEADER.size + length + _FOOTER
        if end > len(content):
            return
        yield content[start:end]
        start = end


def _told(record: bytes, stays: Callable[[str, int], bool]) -> bool:
    """Whether a record is kept: it holds no scalar, or one that stays."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from tensorboard.compat.proto.event_pb2 import Event

    try:
        event = Event.FromString(record[_HEADER.size : -_FOOTER])
    except DecodeError:
        return False
    return all(stays(value.tag, event.step) for value in event.summary.value)


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
