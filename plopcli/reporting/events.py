"""TensorBoard events of a run, grouped by what they tell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class EventWriter:
    """Writes scalars by group; does nothing where there is no folder.

    Args:
        folder: Where to write; None switches events off.
    """

    def __init__(self, folder: Path | None) -> None:
        self._writer: SummaryWriter | None = None
        if folder is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder))

    def iterations(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Loss terms, diagnostics and learning rate of iterations."""
        if self._writer is None:
            return
        for row in rows:
            at = row["iteration"]
            group = f"step-{row['step']}"
            self._writer.add_scalar(f"{group}/loss", row["loss"], at)
            self._writer.add_scalar(f"{group}/lr", row["lr"], at)
            for kind in ("terms", "diagnostics"):
                for name, value in row[kind].items():
                    self._writer.add_scalar(f"{group}/{kind}/{name}", value, at)

    def step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Figures of a step."""
        if self._writer is None:
            return
        for group, value in metrics["miou"].items():
            if value is not None:
                self._writer.add_scalar(f"miou/{group}", value, step)
        for name, value in metrics["iou"].items():
            if value is not None:
                self._writer.add_scalar(f"iou/{name}", value, step)
        self._writer.flush()

    def validation(self, step: int, epoch: int, miou: float | None) -> None:
        """MIoU on the validation set after an epoch of a step."""
        if self._writer is not None and miou is not None:
            self._writer.add_scalar(f"step-{step}/val/miou", miou, epoch)

    def close(self) -> None:
        """Finishes the event file."""
        if self._writer is not None:
            self._writer.close()
