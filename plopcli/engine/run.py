"""What the steps of a run share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from plopcli.console.log import RunLog
from plopcli.devices.precision import Precision
from plopcli.devices.process import BatchLayout, Process, evaluation_batch
from plopcli.engine.abn_choice import AbnChoice
from plopcli.engine.checks import weights_digest
from plopcli.engine.status import Status
from plopcli.runs.events import EventWriter
from plopcli.runs.folder import RunFolder
from plopcli.scenarios.scenario import Scenario
from plopcli.settings.sections import RunSettings


@dataclass(frozen=True)
class Run:
    """Everything the steps of a run share.

    Args:
        settings: Its settings.
        scenario: What is learned when.
        folder: Where it writes.
        log: Where it tells.
        events: TensorBoard.
        process: This process.
        precision: What it computes in.
        layout: How the batch is spread.
        abn: What computes its norms.
        resumed_by: The command that goes on with it, once it has stopped.
        status: What it says about itself while it goes on.
    """

    settings: RunSettings
    scenario: Scenario
    folder: RunFolder
    log: RunLog
    events: EventWriter
    process: Process
    precision: Precision
    layout: BatchLayout
    abn: AbnChoice
    resumed_by: str
    status: Status

    @property
    def syncs_norm(self) -> bool:
        """Whether batch norm computes its statistics over all processes."""
        return self.process.world > 1 and self.settings.compute.sync_norm

    @property
    def evaluation_batch(self) -> int:
        """Images per forward pass in evaluation."""
        return evaluation_batch(self.settings.train.batch, self.settings.compute)

    def flush(self) -> None:
        """Brings metrics and events to the disk, before a checkpoint that counts on them."""
        self.events.flush()
        self.folder.flush()


def provenance(run: Run, step: int) -> dict[str, Any]:
    """What settings leave open, and yet decides about the weights of ``step``."""
    made: dict[str, Any] = {
        "precision": run.precision.name,
        "norm_batch": run.layout.micro * (run.process.world if run.syncs_norm else 1),
    }
    return made | ({"weights": weights_digest(run.settings)} if step == 0 else {})
