"""A scenario: a data set, a task and a protocol; from it follow the images and labels of every step."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from plopcli.data.datasets import load_dataset
from plopcli.data.index import TWO_VALUES, ClassIndex, Progress, class_index, is_two_valued
from plopcli.data.samples import Candidate, Exemplar, SegmentationData, StepSplit, dealt_apart, some
from plopcli.errors import DataError, UsageError
from plopcli.scenarios import protocols
from plopcli.scenarios.protocols import PROTOCOL_DECIDES, PROTOCOLS
from plopcli.scenarios.published_splits import OfficialSplits, read_splits
from plopcli.scenarios.splits import DOMAIN_PROTOCOL, ClassSplits, DomainSplits, StepSplits, split_by_domain
from plopcli.scenarios.tasks import Task, resolve_task
from plopcli.settings.sections import RunSettings


def find_task(data: SegmentationData, name: str, order_seed: int | None = None) -> Task:
    """The task called ``name`` for what a step of ``data`` brings: classes, or domains.

    Raises:
        UsageError: No such task, or it does not fit.
    """
    return resolve_task(
        name, data.domains or data.classes, data.name, background=not data.domains, order_seed=order_seed
    )


@dataclass(frozen=True)
class Scenario:
    """What every step of a run learns from, and is measured on.

    Args:
        data: The data set, unusable samples aside; with domains, dealt into train and test.
        index: Its class index.
        task: The partition of classes or domains; joined into one step for methods that learn all at once.
        protocol: Which images and labels a training step sees.
        val_fraction: Share of the training list kept apart for validation.
        official: Training images of every step, in place of those that the protocol chooses.
        other_labels: What becomes of training labels of classes that the step does not bring.
        dealt_by: What chooses the images of that share: their `name` or their `position` in the list.
    """

    data: SegmentationData
    index: ClassIndex
    task: Task
    protocol: str
    val_fraction: float = 0.0
    official: OfficialSplits | None = None
    other_labels: str = PROTOCOL_DECIDES
    dealt_by: str = "name"

    @classmethod
    def from_settings(
        cls,
        settings: RunSettings,
        *,
        task: Task | None = None,
        merge_steps: bool = False,
        progress: Progress | None = None,
    ) -> Scenario:
        """Loads the data set and the class index that ``settings`` name, and finds the task unless it is given.

        With a task that is given, which means that nothing is trained, split files are not looked for.
        """
        chosen = settings.data
        data = load_dataset(
            chosen.dataset, chosen.root, chosen.path, background=chosen.background, dealt_by=chosen.dealt_by
        )
        units = data.domains or data.classes
        splits = None
        if task is None:
            splits = settings.scenario.splits
            task = find_task(data, settings.scenario.task, settings.scenario.order_seed)
            task = task.joined() if merge_steps else task
        elif max(task.order) >= len(units):
            raise DataError(
                f"The data set at {data.root} has {len(units)} {'domains' if data.domains else 'classes'}; the "
                f"checkpoint's task needs label {max(task.order)}.",
                "Point --data-root or --data-path to the data set of the run.",
            )
        index = class_index(data, progress)
        scenario = cls.build(
            data, index, task, settings.scenario.protocol, chosen.val_fraction, splits, chosen.dealt_by
        )
        return scenario.with_other_labels(settings.scenario.other_labels)

    @classmethod
    def build(
        cls,
        data: SegmentationData,
        index: ClassIndex,
        task: Task,
        protocol: str,
        val_fraction: float = 0.0,
        splits: Path | None = None,
        dealt_by: str = "name",
    ) -> Scenario:
        """The scenario of a data set as it was found.

        Args:
            data: The data set, whole.
            index: Its class index.
            task: The partition of classes or domains.
            protocol: The default one where the data set has domains: there, no image can be of two steps.
            val_fraction: Share of the training list kept apart for validation.
            splits: Folder with official split files.
            dealt_by: What chooses the images of that share.

        Raises:
            UsageError: A protocol or split files for a data set with domains.
            DataError: The split files do not fit.
        """
        data = index.usable(data)
        if not data.domains:
            official = None if splits is None else read_splits(splits, len(task.groups), data.splits["train"])
            return cls(data, index, task, protocol, val_fraction, official, dealt_by=dealt_by)
        if protocol not in (PROTOCOLS[0], DOMAIN_PROTOCOL) or splits is not None:
            what = f"protocol {protocol}" if splits is None else f"split files ({splits})"
            raise UsageError(
                f"A step of {data.name} brings domains, so that {what} cannot choose its images.", "Leave them away."
            )
        data, index = split_by_domain(data, index, task)
        return cls(data, index, task, DOMAIN_PROTOCOL, val_fraction, dealt_by=dealt_by)

    def with_other_labels(self, other_labels: str) -> Scenario:
        """The same scenario, with other training labels of classes that a step does not bring.

        Raises:
            UsageError: Steps bring domains, and every class is in each.
        """
        if self.data.domains and other_labels != PROTOCOL_DECIDES:
            raise UsageError(
                f"A step of {self.data.name} brings domains, so that no class is of another step.",
                "Leave scenario.other_labels away.",
            )
        return replace(self, other_labels=other_labels)

    @cached_property
    def _splits(self) -> StepSplits:
        if self.data.domains:
            return DomainSplits(self.data, self.task)
        return ClassSplits(self.data, self.index, self.task, self.protocol, self.other_labels)

    @property
    def steps(self) -> int:
        """Number of learning steps."""
        return len(self.task.steps)

    @property
    def class_names(self) -> list[str]:
        """Names in learned order, background first where there is one."""
        return self._splits.class_names

    @property
    def base_classes(self) -> int | None:
        """Number of classes that count as old in the results: those of the task's first step, background in it.

        None where steps bring domains, and classes are neither old nor new.
        """
        return self._splits.base_classes

    @property
    def shares_classes(self) -> bool:
        """Whether all steps have the same classes and share one classifier, since they bring domains."""
        return bool(self.data.domains)

    @property
    def fingerprint(self) -> str:
        """Digest of what is learned from: class names, lists, images and masks, official choices of images."""
        return self._with_choices(self.index.content)

    def is_known_as(self, fingerprint: str) -> bool:
        """Whether ``fingerprint`` is of these data; earlier versions made another one of the same."""
        return fingerprint in (self.fingerprint, self._with_choices(self.index.former_content))

    def _with_choices(self, content: str) -> str:
        if self.official is None:
            return content
        return hashlib.sha256(f"{content} {self.official.digest}".encode()).hexdigest()

    @cached_property
    def images(self) -> dict[str, dict[str, int]]:
        """Split -> name -> mark of every image, the share for validation in a split of its own."""
        found = {
            split: {sample.name: mark for sample, mark in zip(samples, self.index.marks[split].tolist(), strict=True)}
            for split, samples in self.data.splits.items()
        }
        if self.val_fraction > 0:
            held = {sample.name for sample, kept in zip(self.data.splits["train"], self._held_out, strict=True) if kept}
            found["val"] = {name: mark for name, mark in found["train"].items() if name in held}
            found["train"] = {name: mark for name, mark in found["train"].items() if name not in held}
        return found

    @property
    def notes(self) -> list[str]:
        """What a user should know about the images, for the log."""
        notes = [*self.data.notes, *self.index.twice(self.data)]
        if self.index.skipped:
            notes.append(f"without {len(self.index.skipped)} unusable images: {some(self.index.skipped)}")
        if self.other_labels != PROTOCOL_DECIDES:
            notes.append(f"training labels of classes of other steps: {self.other_labels}")
        if self.official is not None:
            notes.append(f"training images of every step as listed in {self.official.folder}")
        if not self.data.domains:
            present: npt.NDArray[np.bool_] = np.any(self.index.presence("train", len(self.data.classes)), axis=0)
            if absent := [self.data.classes[label] for label in self.task.order if label and not present[label]]:
                notes.append(f"no training image holds {some(absent)}: nothing can be learned of that")
        return notes

    def class_counts(self, step: int) -> tuple[int, ...]:
        """Classes of each classifier that the network has in ``step``; the first counts background."""
        return self._splits.class_counts(step)

    def learned(self, step: int) -> list[str]:
        """Names of what ``step`` brings: foreground classes, or domains."""
        return self._splits.learned(step)

    def training(self, step: int) -> StepSplit:
        """What ``step`` trains on.

        Raises:
            DataError: No image is left for the step.
        """
        rows = self._splits.training_rows(step) if self.official is None else self._official_rows(step)
        chosen = rows[~self._held_out[rows]]
        if len(chosen) == 0:
            raise self._nothing_to_train(step)
        return self._split("train", chosen, self._splits.training_table(step))

    def exemplars(self, kept: Sequence[Exemplar]) -> tuple[StepSplit, ...]:
        """Images kept from earlier steps, one group for each step that they come from, with the labels of that step.

        Raises:
            DataError: The data set no longer has one of them.
        """
        rows = {sample.name: row for row, sample in enumerate(self.data.splits["train"])}
        if missing := [exemplar.name for exemplar in kept if exemplar.name not in rows]:
            raise DataError(
                f"Data set {self.data.name} lacks exemplars of earlier steps: {some(missing)}.",
                "They must stay where they were; put them back.",
            )
        return tuple(
            self._split(
                "train",
                np.array([rows[exemplar.name] for exemplar in kept if exemplar.step == step], dtype=np.int64),
                self._splits.training_table(step),
            )
            for step in sorted({exemplar.step for exemplar in kept})
        )

    def candidates(self, step: int) -> tuple[Candidate, ...]:
        """The training images of ``step``, each with the classes of the step that it holds; none where steps bring
        domains.
        """
        if self.shares_classes:
            return ()
        presence = self.index.presence("train", len(self.data.classes))
        rows = {sample.name: row for row, sample in enumerate(self.data.splits["train"])}
        learned = {label: position for position, label in enumerate(self.task.order)}
        new = self.task.new(step)
        return tuple(
            Candidate(sample.name, tuple(learned[label] for label in new if presence[rows[sample.name], label]))
            for sample in self.training(step).samples
        )

    def evaluation(self, step: int, split: str) -> StepSplit:
        """What the model after ``step`` is measured on.

        Split `val` is the held-out share or the data set's own list, `train` what is not held out.

        Raises:
            UsageError: There is no such split, or it holds no class seen so far.
        """
        if split == "val" and self.val_fraction > 0:
            source, allowed = "train", self._held_out
        elif split in self.data.splits:
            source, allowed = split, ~self._held_out if split == "train" else self._all_of(split)
        else:
            raise UsageError(
                f"Data set {self.data.name} has no split '{split}'.",
                "Keep a share of the training list apart with --val-fraction 0.2."
                if split == "val"
                else f"It has {', '.join(sorted(self.data.splits))}.",
            )
        rows = self._splits.seen_rows(step, source)
        chosen = rows[allowed[rows]]
        if len(chosen) == 0:
            raise DataError(
                f"No {split} image {'is of a domain' if self.data.domains else 'holds a class'} learned up to step "
                f"{step}.",
                f"Check the {split} images of {self.data.root}.",
            )
        return self._split(source, chosen, self._splits.evaluation_table(step))

    def has_split(self, split: str) -> bool:
        """Whether `evaluation` can serve ``split``."""
        return split in self.data.splits or (split == "val" and self.val_fraction > 0)

    @cached_property
    def _held_out(self) -> npt.NDArray[np.bool_]:
        """Which training images are validation images: fixed by the list alone, so that all runs share them."""
        train = self.data.splits["train"]
        total = len(train)
        held = np.zeros(total, dtype=np.bool_)
        if self.dealt_by == "name":
            held[:] = dealt_apart([sample.name for sample in train], self.val_fraction, "val")
            return held
        held[np.random.default_rng(0).permutation(total)[: round(total * self.val_fraction)]] = True
        return held

    def _all_of(self, split: str) -> npt.NDArray[np.bool_]:
        return np.ones(len(self.data.splits[split]), dtype=np.bool_)

    def _official_rows(self, step: int) -> npt.NDArray[np.int64]:
        assert self.official is not None
        if len(self.task.steps) == len(self.official.rows):
            return self.official.rows[step]
        return np.unique(np.concatenate(self.official.rows))  # all steps joined into one

    def _nothing_to_train(self, step: int) -> DataError:
        free = int((~self._held_out).sum())
        if free == 0:
            return DataError(f"Data set {self.data.name} has no training image.", " ".join(self.data.notes) or None)
        names = ", ".join(self.learned(step))
        start = f"Step {step} has no training image (data set {self.data.name}): "
        if self.data.domains:
            return DataError(f"{start}none of the {free} is of {names}.", "Take these domains out of the task.")
        presence = self.index.presence("train", len(self.data.classes))[~self._held_out]
        if is_two_valued(np.concatenate(list(self.index.counts.values()))):
            return DataError(f"{start}none of the {free} holds {names}.", TWO_VALUES)
        holding = len(protocols.training_images(presence, self.task, step, "overlapped"))
        if holding == 0 or self.official is not None:
            return DataError(f"{start}none of the {free} holds {names}.", "Take these classes out of the task.")
        return DataError(
            f"{start}{holding} of {free} hold {names}, but a class of a later step as well (protocol {self.protocol}).",
            "Use protocol overlapped, or learn these classes later.",
        )

    def _split(self, split: str, rows: npt.NDArray[np.int64], table: npt.NDArray[np.uint8]) -> StepSplit:
        samples = self.data.splits[split]
        # Ids in the files -> label ids -> learned ids, in one look-up.
        return StepSplit(tuple(samples[row] for row in rows), table[self.data.label_table])
