"""How a task cuts a data set into steps: by the classes that an image holds, or by the domain that it is from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from plopcli.data.index import ClassIndex
from plopcli.data.samples import SegmentationData
from plopcli.scenarios import protocols
from plopcli.scenarios.protocols import IGNORED, PROTOCOL_DECIDES, Indices, Table
from plopcli.scenarios.tasks import Task

#: What a domain-incremental run follows in place of a protocol.
DOMAIN_PROTOCOL = "domain"
_TRAIN_SHARE = 0.8


class StepSplits(Protocol):
    """What a scenario asks about its steps. Images are given by their position in a list of the data set."""

    @property
    def class_names(self) -> list[str]:
        """Names of all classes, in the order of the ids that the network uses."""

    @property
    def base_classes(self) -> int | None:
        """Number of classes that count as old in the results; None where no class is older than another."""

    def class_counts(self, step: int) -> tuple[int, ...]:
        """Classes of each classifier that the network has in ``step``."""

    def learned(self, step: int) -> list[str]:
        """Names of what ``step`` brings."""

    def training_rows(self, step: int) -> Indices:
        """The images of the train list that ``step`` trains on."""

    def seen_rows(self, step: int, split: str) -> Indices:
        """The images of a list that the model after ``step`` is measured on."""

    def training_table(self, step: int) -> Table:
        """From label ids to the ids that the network trains on."""

    def evaluation_table(self, step: int) -> Table:
        """From label ids to the ids that the network is measured on."""


@dataclass(frozen=True)
class ClassSplits:
    """Steps bring classes; a protocol decides about images that hold classes of several steps."""

    data: SegmentationData
    index: ClassIndex
    task: Task
    protocol: str
    others: str = PROTOCOL_DECIDES

    @property
    def class_names(self) -> list[str]:
        """Background first, then in the order in which they are learned."""
        return [self.data.classes[label] for label in self.task.order]

    @property
    def base_classes(self) -> int:
        """Those of the task's first step, background in it."""
        return len(self.task.groups[0])

    def class_counts(self, step: int) -> tuple[int, ...]:
        """One classifier per step; the first counts background."""
        return self.task.counts(step)

    def learned(self, step: int) -> list[str]:
        """Names of its foreground classes."""
        return [self.data.classes[label] for label in self.task.new(step)]

    def training_rows(self, step: int) -> Indices:
        """By the protocol."""
        return protocols.training_images(self._presence("train"), self.task, step, self.protocol)

    def seen_rows(self, step: int, split: str) -> Indices:
        """Those with a class learned so far."""
        return protocols.evaluation_images(self._presence(split), self.task, step)

    def training_table(self, step: int) -> Table:
        """By the protocol, or what was said in its place about classes of other steps."""
        return protocols.training_table(self.task, step, self.protocol, self.others)

    def evaluation_table(self, step: int) -> Table:
        """Every class learned so far."""
        return protocols.evaluation_table(self.task, step)

    def _presence(self, split: str) -> npt.NDArray[np.bool_]:
        return self.index.presence(split, len(self.data.classes))


@dataclass(frozen=True)
class DomainSplits:
    """Steps bring domains: all of them have the same classes and share one classifier."""

    data: SegmentationData
    task: Task

    @property
    def class_names(self) -> list[str]:
        """As the data set has them."""
        return list(self.data.classes)

    @property
    def base_classes(self) -> None:
        """Classes are neither old nor new."""
        return

    def class_counts(self, step: int) -> tuple[int, ...]:
        """One classifier, whatever the step."""
        return (len(self.data.classes),)

    def learned(self, step: int) -> list[str]:
        """Names of its domains."""
        return [self.data.domains[domain] for domain in self.task.steps[step]]

    def training_rows(self, step: int) -> Indices:
        """All of the step's domains."""
        return self._rows("train", self.learned(step))

    def seen_rows(self, step: int, split: str) -> Indices:
        """All of the domains learned so far."""
        return self._rows(split, [name for earlier in range(step + 1) for name in self.learned(earlier)])

    def training_table(self, step: int) -> Table:
        """Every class, as it is."""
        return self.evaluation_table(step)

    def evaluation_table(self, step: int) -> Table:
        """Every class, as it is."""
        table = np.full(256, IGNORED, dtype=np.uint8)
        table[: len(self.data.classes)] = np.arange(len(self.data.classes))
        return table

    def _rows(self, split: str, domains: list[str]) -> Indices:
        wanted = set(domains)
        return np.flatnonzero([sample.domain in wanted for sample in self.data.splits[split]])


def split_by_domain(data: SegmentationData, index: ClassIndex, task: Task) -> tuple[SegmentationData, ClassIndex]:
    """Deals the pool of a data set with domains into train and test: of each step four fifths and one.

    The images of a step are shuffled by a generator that starts anew for each, as the original program does. What is
    learned all at once is dealt as it would be step by step, so that both are measured on the same images.
    """
    pool = data.splits["all"]
    domain = np.array([data.domains.index(sample.domain) for sample in pool], dtype=np.int64)
    parts: dict[str, list[int]] = {"train": [], "test": []}
    for group in task.groups:
        rows = np.flatnonzero(np.isin(domain, group))
        np.random.RandomState(1).shuffle(rows)
        share = int(_TRAIN_SHARE * len(rows))
        parts["train"] += rows[:share].tolist()
        parts["test"] += rows[share:].tolist()
    splits = {split: tuple(pool[row] for row in rows) for split, rows in parts.items()}
    counts = {split: index.counts["all"][rows] for split, rows in parts.items()}
    marks = {split: index.marks["all"][rows] for split, rows in parts.items()}
    return replace(data, splits=splits), replace(index, counts=counts, marks=marks)
