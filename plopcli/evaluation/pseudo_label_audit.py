"""Pseudo-labels against the hidden truth: how many are accepted, and how many of these are right.

In a step the old classes are hidden in the background of its images. Methods with pseudo-labels predict them with the
model of the step before. The data set has the true classes, which training never sees: this module compares the two.
Young classes (learned a step or two ago) that are labelled as background are forgotten.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from plopcli.console.log import RunLog
from plopcli.data.batches import Batch
from plopcli.data.loading import EvaluationImages, evaluation_batches
from plopcli.data.transforms import normalise
from plopcli.devices.precision import Precision, choose_precision
from plopcli.devices.process import Process, evaluation_batch, fixed_sizes, planned_process
from plopcli.errors import PlopError, UsageError
from plopcli.evaluation.evaluate import Changes, scenario_of
from plopcli.losses.classification import IGNORED
from plopcli.losses.pseudo_labels import PseudoLabels
from plopcli.methods import get_method
from plopcli.methods.base import Method, StepContext
from plopcli.models.segmenter import Outputs, Segmenter
from plopcli.runs.checkpoint import Checkpoint
from plopcli.runs.diagnosis import ClassAudit, Diagnosis, StepAudit, read_diagnosis, write_diagnosis
from plopcli.runs.folder import RunFolder
from plopcli.runs.restore import build_model, load, place
from plopcli.scenarios.protocols import evaluation_table
from plopcli.scenarios.published_splits import read_splits
from plopcli.scenarios.scenario import Scenario
from plopcli.settings.sections import RunSettings

#: The rule of methods without one: every prediction of the old model is counted.
ARGMAX = "argmax"
#: Batches after which the time that an audit takes is estimated; the first ones of a process are slow.
_PROBED = 3

Advance = Callable[[int, int], None]


class LongAuditError(PlopError):
    """An audit would take longer than its caller has patience for."""


def audit_run(folder: RunFolder, changes: Changes, log: RunLog, patience: float | None = None) -> Diagnosis:
    """Audits the pseudo-labels of every later step of a run, and writes the result as `diagnosis.json` in its folder.

    Steps that were audited before, with the same checkpoints and data, are not audited again.

    Args:
        folder: The run.
        changes: Another place of the data, or another device.
        log: Where to show progress.
        patience: Seconds that it may take; None: any.

    Raises:
        UsageError: There is nothing to audit: no later step, or steps bring domains and hide nothing.
        DataError: A checkpoint is damaged, or the data set is missing or another.
        LongAuditError: It would take longer than ``patience``.
    """
    steps = [step for step in folder.steps() if step > 0 and folder.checkpoint(step - 1).is_file()]
    if not steps:
        raise UsageError(f"{folder.path} has no two checkpoints of steps that follow each other.", _NO_STEPS)
    first, stored = load(folder.checkpoint(steps[0]))
    settings = changes.apply(stored)
    scenario = scenario_of(first, settings)
    if scenario.shares_classes:
        raise UsageError("Its steps bring domains: every class is in every label, and nothing is hidden.")
    if settings.scenario.splits is not None:
        official = read_splits(settings.scenario.splits, len(scenario.task.groups), scenario.data.splits["train"])
        scenario = replace(scenario, official=official)
    process = planned_process(settings.compute)
    if process.world > 1:
        raise UsageError("An audit runs on one device.", "Use --gpus 1, or --gpus 0 for the CPU.")
    known = {audit.key: audit for audit in read_diagnosis(folder.diagnosis).steps}
    keys = {step: _key(folder, step, scenario, settings) for step in steps}
    pending = [step for step in steps if keys[step] not in known]
    auditor = _Auditor(scenario, process, choose_precision(settings.compute, process.device), changes)
    watch = _Watch(patience, sum(len(scenario.training(step)) for step in pending))
    for step in pending:
        with log.progress(f"pseudo-labels of step {step}", "images") as bar:
            audit = auditor.audit(folder, step, keys[step], watch, bar.update)
        known[audit.key] = audit
        _keep(folder.diagnosis, Diagnosis(steps=[known[keys[done]] for done in steps if keys[done] in known]), log)
    return Diagnosis(steps=[known[keys[step]] for step in steps])


_NO_STEPS = "Pseudo-labels are those of a step by the model of the step before: both checkpoints are needed."


class _Watch:
    """Ends an audit that takes too long, as early as that is known."""

    def __init__(self, patience: float | None, images: int) -> None:
        self._patience, self._images = patience, images
        self._done = self._batches = 0
        self._started = time.monotonic()

    def count(self, images: int) -> None:
        """Counts a batch.

        Raises:
            LongAuditError: The audit would take longer than ``patience``.
        """
        self._done += images
        self._batches += 1
        if self._patience is None or self._batches < _PROBED:
            return
        seconds = (time.monotonic() - self._started) / self._done * self._images
        if seconds > self._patience:
            raise LongAuditError(
                f"Comparing the pseudo-labels of {self._images} images with the hidden truth would take about "
                f"{seconds / 60:.0f} minutes here.",
                "plop report RUN --diagnose does it, once.",
            )


@dataclass(frozen=True)
class _Auditor:
    scenario: Scenario
    process: Process
    precision: Precision
    changes: Changes

    def audit(self, folder: RunFolder, step: int, key: str, watch: _Watch, advance: Advance) -> StepAudit:
        """Audits one step."""
        old, _ = load(folder.checkpoint(step - 1))
        new, stored = load(folder.checkpoint(step))
        settings = self.changes.apply(stored)
        model = place(build_model(old, settings), self.process.device, settings.compute)
        method = _method(new, settings)
        rule: str | None = None
        split = self.scenario.training(step)
        # The ids of the files, so that each mask is read once for what was seen and for what is true.
        raw = EvaluationImages(replace(split, table=np.arange(256, dtype=np.uint8)), settings.data)
        seen = torch.from_numpy(split.table.astype(np.int64))
        table = evaluation_table(self.scenario.task, step)[self.scenario.data.label_table]
        true = torch.from_numpy(table.astype(np.int64))
        size = self.changes.batch or evaluation_batch(settings.train.batch, settings.compute)
        counts = torch.zeros(4, len(new.classes), dtype=torch.int64)
        done = 0
        batches = evaluation_batches(raw, size, pin_memory=self.process.device.type == "cuda")
        with torch.no_grad(), fixed_sizes(settings.data.evaluation == "crop"), closing(batches):
            for loaded in batches:
                images = normalise(loaded.pixels.to(self.process.device), channels_last=settings.compute.channels_last)
                with self.precision.autocast():
                    outputs = model(images, features=method.uses_features)
                batch = Batch(images, seen[loaded.labels.long()].to(self.process.device))
                if (pseudo := method.pseudo_labels(batch, outputs)) is not None:
                    rule = str(method.report().get("pseudo", method.settings.name))
                else:
                    pseudo = _every_prediction(model, outputs, batch.labels)
                counts += _count(pseudo, true[loaded.labels.long()].to(self.process.device), len(new.classes))
                done += len(loaded.pixels)
                advance(done, len(split))
                watch.count(len(loaded.pixels))
        return StepAudit(
            step=step,
            images=len(split),
            rule=rule or ARGMAX,
            used=rule is not None,
            base=self.scenario.base_classes or 0,
            classes={
                name: ClassAudit(pixels=row[0], accepted=row[1], right=row[2], background=row[3])
                for name, row in zip(new.classes, counts.T.tolist(), strict=True)
            },
            key=key,
        )


def _count(pseudo: PseudoLabels, truth: Tensor, classes: int) -> Tensor:
    """Pixels (4, classes) by their true class: hidden, accepted, right, and accepted as background; on the CPU."""
    hidden = pseudo.background & (truth != IGNORED)
    accepted = pseudo.accepted & hidden
    masks = (hidden, accepted, accepted & (pseudo.labels == truth), accepted & (pseudo.labels == 0))
    return torch.stack([torch.bincount(truth[mask], minlength=classes) for mask in masks]).cpu()


def _method(checkpoint: Checkpoint, settings: RunSettings) -> Method:
    """The method of a step, with its state in the checkpoint."""
    context = StepContext(checkpoint.step, tuple(checkpoint.class_counts))
    method = get_method(settings.method.name)(settings.method, context)
    method.load_carried_state(checkpoint.method, same_step=True)
    return method


def _every_prediction(model: Segmenter, outputs: Outputs, labels: Tensor) -> PseudoLabels:
    """Pseudo-labels for a method without any: every prediction of the old model in the background."""
    background = labels < sum(model.class_counts)
    return PseudoLabels(torch.where(background, model.plan.labels(outputs.scores), labels), background, background)


def _key(folder: RunFolder, step: int, scenario: Scenario, settings: RunSettings) -> str:
    """Digest of everything that an audit of ``step`` depends on."""
    digest = hashlib.sha256(f"{scenario.fingerprint} {settings.data.evaluation} {settings.data.crop}".encode())
    for number in (step - 1, step):
        with folder.checkpoint(number).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _keep(path: Path, diagnosis: Diagnosis, log: RunLog) -> None:
    try:
        write_diagnosis(path, diagnosis)
    except OSError as error:
        log.say(f"{path} cannot be written ({error.strerror}): the next report has to compare again.", "yellow")
