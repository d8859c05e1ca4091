"""A scenario: a data set, a task and a protocol; from it follow the images and labels of every step."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from plopcli.data.datasets import Sample, SegmentationData, load_dataset
from plopcli.data.index import ClassIndex, Progress, class_index
from plopcli.errors import DataError, UsageError
from plopcli.scenarios import protocols
from plopcli.scenarios.tasks import Task, resolve_task
from plopcli.settings.sections import RunSettings


@dataclass(frozen=True)
class StepSplit:
    """Images of one step and the table (256,) that turns the ids of their masks into learned ids."""

    samples: tuple[Sample, ...]
    table: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.samples)


@dataclass(frozen=True)
class Scenario:
    """What every step of a run learns from, and is measured on.

    Args:
        data: The data set.
        index: Its class index.
        task: The partition of classes; joined into one step for methods that learn all at once.
        protocol: Which images and labels a training step sees.
        val_fraction: Share of the training list kept apart for validation.
    """

    data: SegmentationData
    index: ClassIndex
    task: Task
    protocol: str
    val_fraction: float = 0.0

    @classmethod
    def from_settings(
        cls,
        settings: RunSettings,
        *,
        task: Task | None = None,
        merge_steps: bool = False,
        progress: Progress | None = None,
    ) -> Scenario:
        """Loads the data set and the class index that ``settings`` name, and finds the task unless it is given."""
        data = load_dataset(
            settings.data.dataset, settings.data.root, settings.data.path, background=settings.data.background
        )
        if task is None:
            task = resolve_task(settings.scenario.task, data.classes, settings.data.dataset)
            task = task.joined() if merge_steps else task
        elif max(task.order) >= len(data.classes):
            raise DataError(
                f"The data set at {data.root} has {len(data.classes)} classes; the checkpoint's task needs label "
                f"{max(task.order)}.",
                "Point --data-root or --data-path to the data set of the run.",
            )
        index = class_index(data, progress)
        return cls(data, index, task, settings.scenario.protocol, settings.data.val_fraction)

    @property
    def steps(self) -> int:
        """Number of learning steps."""
        return len(self.task.steps)

    @property
    def class_names(self) -> list[str]:
        """Names in learned order, background first."""
        return [self.data.classes[label] for label in self.task.order]

    @property
    def base_classes(self) -> int:
        """Number of classes that count as old in the results: those of the task's first step, background in it."""
        return len(self.task.groups[0])

    def training(self, step: int) -> StepSplit:
        """What ``step`` trains on.

        Raises:
            DataError: No image holds a class of the step.
        """
        rows = np.flatnonzero(~self._held_out)
        presence = self._presence("train")[rows]
        chosen = rows[protocols.training_images(presence, self.task, step, self.protocol)]
        if len(chosen) == 0:
            names = ", ".join(self.data.classes[label] for label in self.task.new(step))
            raise DataError(
                f"Step {step} has no training image: none of the {len(rows)} holds {names} "
                f"(protocol {self.protocol}, data set {self.data.name}).",
                "Take these classes out of the task, or use protocol overlapped.",
            )
        table = protocols.training_table(self.task, step, self.protocol)
        return self._split("train", chosen, table)

    def evaluation(self, step: int, split: str) -> StepSplit:
        """What the model after ``step`` is measured on; split `val` is the held-out share or the data set's own list.

        Raises:
            UsageError: There is no such split, or it holds no class seen so far.
        """
        table = protocols.evaluation_table(self.task, step)
        if split == "val" and self.val_fraction > 0:
            rows = np.flatnonzero(self._held_out)
            source = "train"
        elif split in self.data.splits:
            rows = np.arange(len(self.data.splits[split]))
            source = split
        else:
            raise UsageError(
                f"Data set {self.data.name} has no split '{split}'.",
                "Keep a share of the training list apart with --val-fraction 0.2."
                if split == "val"
                else f"It has {', '.join(sorted(self.data.splits))}.",
            )
        chosen = rows[protocols.evaluation_images(self._presence(source)[rows], self.task, step)]
        if len(chosen) == 0:
            raise DataError(
                f"No {split} image holds a class learned up to step {step}.",
                f"Check the {split} list of {self.data.root}.",
            )
        return self._split(source, chosen, table)

    def has_split(self, split: str) -> bool:
        """Whether `evaluation` can serve ``split``."""
        return split in self.data.splits or (split == "val" and self.val_fraction > 0)

    def _presence(self, split: str) -> npt.NDArray[np.bool_]:
        return self.index.presence(split, len(self.data.classes))

    @cached_property
    def _held_out(self) -> npt.NDArray[np.bool_]:
        """Which training images are validation images: fixed by the list alone, so that all runs share them."""
        total = len(self.data.splits["train"])
        held = np.zeros(total, dtype=np.bool_)
        held[np.random.default_rng(0).permutation(total)[: round(total * self.val_fraction)]] = True
        return held

    def _split(self, split: str, rows: npt.NDArray[np.int64], table: npt.NDArray[np.uint8]) -> StepSplit:
        samples = self.data.splits[split]
        # Ids in the files -> label ids -> learned ids, in one look-up.
        return StepSplit(tuple(samples[row] for row in rows), table[self.data.label_table])
