"""Protocols: which images a step trains on, and which labels it sees in them (Cermelli et al., CVPR 2020, section 3).

Images are rows of a presence table (images x label ids, true where a class occurs), so that the splits of any task
follow from one index of the data set.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from plopcli.scenarios.tasks import Task

PROTOCOLS = ("overlapped", "disjoint", "sequential")
IGNORED = 255
#: Of labels of other classes: nothing else was said.
PROTOCOL_DECIDES = "protocol"

Presence = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.int64]
Table = npt.NDArray[np.uint8]


def training_images(presence: Presence, task: Task, step: int, protocol: str) -> Indices:
    """Positions of the images that ``step`` trains on.

    Overlapped: at least one class of the step. Disjoint and sequential: besides, no class of a later step.
    """
    chosen = presence[:, list(task.new(step))].any(axis=1)
    if protocol != "overlapped":
        future = sorted(set(task.order) - set(task.seen(step)))
        chosen &= ~presence[:, future].any(axis=1)
    return np.flatnonzero(chosen)


def evaluation_images(presence: Presence, task: Task, step: int) -> Indices:
    """Positions of the images with at least one foreground class seen up to ``step``."""
    seen = [label for label in task.seen(step) if label != 0]
    return np.flatnonzero(presence[:, seen].any(axis=1))


def training_table(task: Task, step: int, protocol: str, others: str = PROTOCOL_DECIDES) -> Table:
    """Look-up table (256,) from label id to learned id, as ``step`` trains.

    By the protocol, old classes keep their label under the sequential one alone, and future ones are background always.
    ``others`` says otherwise: `background` and `shown` of old classes, `ignored` of old and future ones. Ids outside
    the task are background; 255 stays.
    """
    shown = protocol == "sequential" if others == PROTOCOL_DECIDES else others == "shown"
    table = _table(task, task.seen(step) if shown else task.new(step))
    if others == "ignored":
        table[sorted(set(task.order) - {0, *task.new(step)})] = IGNORED
    return table


def evaluation_table(task: Task, step: int) -> Table:
    """Look-up table (256,) that keeps every class seen up to ``step``."""
    return _table(task, task.seen(step))


def _table(task: Task, visible: tuple[int, ...]) -> Table:
    table = np.zeros(256, dtype=np.uint8)
    table[IGNORED] = IGNORED
    position = {label: learned for learned, label in enumerate(task.order)}
    for label in visible:
        table[label] = position[label]
    return table
