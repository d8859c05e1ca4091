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


@pytest.mark.parametrize("protocol", ["overlapped", "disjoint", "sequential"])
@pytest.mark.parametrize("task", ["19-1", "15-5", "15-1", "10-1", "10-5-5", "15-1g"])
def test_every_image_is_chosen_by_the_words_of_the_protocol(
    task: str, protocol: str, request: pytest.FixtureRequest
) -> None:
    with np.load(request.config.rootpath / PRESENCE) as file:
        presence = np.unpackbits(file["train_aug"], axis=1)[:, :21].astype(bool)
    images = [set(np.flatnonzero(row).tolist()) - {0} for row in presence]
    partition = resolve_task(task, class_facts()["voc"], "voc")
    for step in range(len(partition.steps)):
        new, seen = set(partition.new(step)), set(partition.seen(step))
        expected = [row for row, held in enumerate(images) if held & new and (protocol == "overlapped" or held <= seen)]
        assert training_images(presence, partition, step, protocol).tolist() == expected, "in the order of the list"
