"""Published sizes of VOC's splits, from the class presence of the genuine masks."""

from __future__ import annotations

import numpy as np
import pytest

from plopcli.data.datasets import class_facts
from plopcli.scenarios.protocols import training_images
from plopcli.scenarios.tasks import resolve_task

PRESENCE = "tests/parity_data/voc_classes_present.npz"


@pytest.mark.parametrize(
    ("task", "protocol", "sizes"),
    [
        ("19-1", "overlapped", [10410, 548]),
        ("19-1", "disjoint", [10034, 548]),
        ("15-5", "overlapped", [9568, 2145]),
        ("15-5", "disjoint", [8437, 2145]),
        ("15-1", "overlapped", [9568, 487, 299, 491, 500, 548]),
        ("15-1", "disjoint", [8437, 378, 299, 420, 500, 548]),
    ],
)
def test_sizes_of_the_papers(task: str, protocol: str, sizes: list[int], request: pytest.FixtureRequest) -> None:
    with np.load(request.config.rootpath / PRESENCE) as file:
        presence = np.unpackbits(file["train_aug"], axis=1)[:, :21].astype(bool)
    partition = resolve_task(task, class_facts()["voc"], "voc")
    found = [len(training_images(presence, partition, step, protocol)) for step in range(len(partition.steps))]
    assert found == sizes
