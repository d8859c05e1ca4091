"""`results.json`: the measured figures of a run. Keys may be added, never renamed.

A file may come from an older or a newer version, or from somebody else: what this version does not know is kept, and
what it knows is checked before anything is computed from it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from plopcli.errors import UsageError
from plopcli.files.atomic import write_atomic
from plopcli.files.spreadsheet import csv_text
from plopcli.metrics.forgetting import Rows, backward_transfer, forgetting, harmonic
from plopcli.metrics.segmentation import Vector, mean

if TYPE_CHECKING:
    from plopcli.scenarios.scenario import Scenario
    from plopcli.settings.sections import RunSettings

GROUPS = ("all", "old", "new")
SUMMARY = ("overall_accuracy", "mean_accuracy", "frequency_weighted_iou")

#: In percent, or in percentage points; None where nothing was there to measure.
Percent = float | None
Count = Annotated[int, Field(ge=0)]


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", frozen=True, allow_inf_nan=False)

    def content(self) -> dict[str, Any]:
        """What a file holds of it: what was given, unknown keys included, and no defaults."""
        return self.model_dump(exclude_unset=True)


class GroupMeans(_Record):
    """Mean IoU of all, old and new classes."""

    all: Percent
    old: Percent
    new: Percent


class DomainResults(_Record):
    """Figures on the images of one domain; ``iou`` by class."""

    miou: Percent
    iou: dict[str, Percent] | None = None


class StepResults(_Record):
    """What was measured after a step.

    Attributes:
        step: Its number.
        checkpoint: What was measured.
        images: How many images it was measured on.
        iou: By name of the classes learned so far.
        miou: With background among the old classes (PLOP).
        miou_foreground: Without background (MiB).
        accuracy: By class.
        overall_accuracy: Of all pixels.
        mean_accuracy: Over the classes.
        frequency_weighted_iou: Classes weighted by their pixels.
        domains: By domain, where steps bring domains.
        train_seconds: What training the step took.
    """

    step: Count
    checkpoint: str | None = None
    images: Count | None = None
    iou: dict[str, Percent]
    miou: GroupMeans
    miou_foreground: GroupMeans | None = None
    accuracy: dict[str, Percent] | None = None
    overall_accuracy: Percent = None
    mean_accuracy: Percent = None
    frequency_weighted_iou: Percent = None
    domains: dict[str, DomainResults] | None = None
    train_seconds: float | None = None

    @property
    def by_name(self) -> dict[str, Percent]:
        """The IoU of each class learned so far; where steps bring domains, the mIoU of each of these."""
        return {name: found.miou for name, found in self.domains.items()} if self.domains else self.iou


class Change(_Record):
    """Forgetting or backward transfer: by class (or domain), and means over those learned before the last step."""

    mean: Percent
    mean_foreground: Percent
    by_class: dict[str, Percent] | None = None
    by_domain: dict[str, Percent] | None = None


class OverSteps(_Record):
    """Figures over all steps; None where steps are missing before the last one, since part would look like a result.

    Attributes:
        avg: Mean of mIoU "all" over the steps.
        hiou: Harmonic mean of mIoU "old" and "new" after the last step.
        avg_foreground: The same without background.
        hiou_foreground: The same without background.
        forgetting: Best earlier IoU minus the last one.
        backward_transfer: Last IoU minus that right after learning.
    """

    avg: Percent
    hiou: Percent
    avg_foreground: Percent
    hiou_foreground: Percent
    forgetting: Change | None
    backward_transfer: Change | None


class Augmentation(_Record):
    """Test-time augmentation; ``described`` is for people."""

    scales: list[float] | None = None
    flip: bool | None = None
    described: str


class StepMatrix(NamedTuple):
    """IoU of every class after every step.

    Attributes:
        names: Of the columns: classes in learned order, or domains.
        steps: Numbers of the rows.
        values: (steps, classes), in percent; nan where there is none.
        learned: (classes,): the row after which a class was learned.
        background: Whether the first column is background.
    """

    names: list[str]
    steps: list[int]
    values: Vector
    learned: Rows
    background: bool


class Results(_Record):
    """The content of a `results.json`."""

    dataset: str
    task: str
    protocol: str
    method: str
    seed: Count | str
    split: str | None = None
    evaluation: str | None = None
    classes: list[str]
    base_classes: Count | None = None
    domains: list[list[str]] | None = None
    steps: list[StepResults]
    avg: Percent
    hiou: Percent = None
    avg_foreground: Percent = None
    hiou_foreground: Percent = None
    forgetting: Change | None = None
    backward_transfer: Change | None = None
    batch_norm: str | None = None
    augmentation: Augmentation | None = None

    @classmethod
    def begin(cls, settings: RunSettings, scenario: Scenario, **more: Any) -> Results:
        """Results without a step yet; ``more`` is added, or takes the place of what settings say."""
        domains = [scenario.learned(step) for step in range(scenario.steps)] if scenario.shares_classes else None
        header = {
            "dataset": settings.data.dataset,
            "task": scenario.task.name,
            "protocol": scenario.protocol,
            "method": settings.method.name,
            "seed": settings.seed,
            "split": settings.data.results_on,
            "evaluation": settings.data.evaluation,
            "classes": scenario.class_names,
            "base_classes": scenario.base_classes,
            "domains": domains,
        }
        return cls(**{**header, **more, "steps": [], "avg": None}).with_steps([])

    @model_validator(mode="after")
    def _steps_in_order(self) -> Self:
        numbers = [step.step for step in self.steps]
        if numbers != sorted(set(numbers)):
            raise ValueError("its steps are not in order")
        if self.domains and numbers and numbers[-1] >= len(self.domains):
            raise ValueError(f"it has no domains of step {numbers[-1]}")
        return self

    def with_step(self, entry: StepResults) -> Results:
        """These with a step added; entries of that step and later ones are replaced."""
        return self.with_steps([*(step for step in self.steps if step.step < entry.step), entry])

    def with_steps(self, steps: Sequence[StepResults]) -> Results:
        """These with other steps, and what follows from them (`figures`)."""
        held = self.model_dump(exclude_unset=True, exclude={"steps"}) | {"steps": list(steps)}
        return Results(**held | dict(Results(**held).figures))

    @property
    def title(self) -> str:
        """What was run, for people."""
        return f"{self.dataset} {self.task} {self.protocol}, {self.method}, seed {self.seed}"

    @property
    def measured_on(self) -> str:
        """What of which images the figures are measured on, for people; others are not comparable."""
        kind = {"crop": "central crops", "full": "whole images"}.get(str(self.evaluation), "images")
        looks = f", {self.augmentation.described}" if self.augmentation else ""
        return f"{kind} of split {self.split or 'test'}{looks}"

    def is_finished(self) -> bool:
        """Whether the last step of the task is measured."""
        if not self.steps:
            return False
        if self.domains:
            return self.steps[-1].step == len(self.domains) - 1
        return len(self.steps[-1].iou) == len(self.classes)

    def learned(self) -> list[list[str]]:
        """The classes, or domains, that each measured step brought."""
        matrix = self.matrix
        brought: list[list[str]] = [[] for _ in self.steps]
        for name, row in zip(matrix.names, matrix.learned, strict=True):
            brought[row].append(name)
        return brought

    @cached_property
    def matrix(self) -> StepMatrix:
        """IoU of every class (or mIoU of every domain) after every step."""
        rows = [step.by_name for step in self.steps]
        seen = dict.fromkeys(name for row in rows for name in row)
        domains = [name for brought in self.domains or () for name in brought if name in seen]
        names = list(dict.fromkeys([*domains, *seen]))
        values = np.array([[row.get(name) for name in names] for row in rows], dtype=np.float64).reshape(
            len(rows), len(names)
        )
        learned = np.array([next(n for n, row in enumerate(rows) if name in row) for name in names], dtype=np.int64)
        return StepMatrix(names, [step.step for step in self.steps], values, learned, background=not self.domains)

    @cached_property
    def figures(self) -> OverSteps:
        """The figures over all steps, computed from these: files of older versions do not hold all of them."""
        steps, matrix = self.steps, self.matrix
        complete = bool(steps) and matrix.steps == list(range(len(steps)))
        figures: dict[str, Any] = {}
        for suffix in ("", "_foreground"):
            means: list[GroupMeans | None] = [getattr(step, f"miou{suffix}") for step in steps]
            alls = [group.all for group in means if group is not None and group.all is not None]
            last = means[-1] if complete else None
            figures[f"avg{suffix}"] = sum(alls) / len(alls) if complete and len(alls) == len(steps) else None
            figures[f"hiou{suffix}"] = None if last is None else harmonic(last.old, last.new)
        for name, measure in (("forgetting", forgetting), ("backward_transfer", backward_transfer)):
            figures[name] = _change(measure(matrix.values, matrix.learned), matrix) if complete else None
        return OverSteps(**figures)


def _change(changes: Vector, matrix: StepMatrix) -> Change:
    each = {name: None if np.isnan(value) else float(value) for name, value in zip(matrix.names, changes, strict=True)}
    foreground = changes[1:] if matrix.background else changes
    by = {"by_class" if matrix.background else "by_domain": each}
    return Change(mean=mean(changes), mean_foreground=mean(foreground), **by)


def write_results(results: Results, path: Path) -> None:
    """Writes the results as JSON, and as CSV beside it, each whole or not at all."""
    write_atomic(path, json.dumps(results.content(), indent=2, allow_nan=False) + "\n")
    write_csv(results, path.with_suffix(".csv"))


def write_csv(results: Results, path: Path) -> None:
    """Writes one line per step: mIoU and IoU of every class; then mIoU without background, accuracies, in percent."""
    names = results.classes
    foreground = [f"{group}_foreground" for group in GROUPS]
    rows: list[list[object]] = [
        ["step", *GROUPS, *names, *foreground, *SUMMARY, *(f"accuracy {name}" for name in names)]
    ]
    for step in results.steps:
        accuracy = step.accuracy or {}
        rows.append(
            [
                step.step,
                *(getattr(step.miou, group) for group in GROUPS),
                *(step.iou.get(name) for name in names),
                *(getattr(step.miou_foreground, group, None) for group in GROUPS),
                *(getattr(step, name) for name in SUMMARY),
                *(accuracy.get(name) for name in names),
            ]
        )
    write_atomic(path, csv_text(rows))


def check_csv(path: Path) -> None:
    """Refuses a file that `write_csv` could not write, before anything is measured.

    Raises:
        UsageError: It is a folder, or its folder is missing or cannot be written.
    """
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UsageError(f"{path} cannot be written.", "Give a file in a folder that is there.")
