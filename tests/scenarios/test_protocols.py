"""Which images and labels a step sees."""

from __future__ import annotations

import numpy as np
import pytest

from plopcli.scenarios.protocols import evaluation_images, evaluation_table, training_images, training_table
from plopcli.scenarios.tasks import Task

TASK = Task("t", ((0, 3, 1), (2,), (4,)))
# Images x labels 0..5; label 5 is in no step.
PRESENCE = np.array(
    [
        [1, 1, 0, 0, 0, 0],
        [1, 0, 1, 1, 0, 0],
        [1, 0, 1, 0, 1, 0],
        [1, 0, 0, 0, 1, 1],
        [1, 0, 0, 0, 0, 1],
        [0, 0, 1, 0, 0, 1],
    ],
    dtype=bool,
)


@pytest.mark.parametrize(
    ("protocol", "expected"),
    [
        ("overlapped", [[0, 1], [1, 2, 5], [2, 3]]),
        ("disjoint", [[0], [1, 5], [2, 3]]),
        ("sequential", [[0], [1, 5], [2, 3]]),
    ],
)
def test_images_by_protocol(protocol: str, expected: list[list[int]]) -> None:
    assert [training_images(PRESENCE, TASK, step, protocol).tolist() for step in range(3)] == expected


def test_classes_in_no_step_exclude_nothing() -> None:
    assert 5 in training_images(PRESENCE, TASK, 1, "disjoint")


def test_evaluation_takes_every_image_with_a_class_seen_so_far() -> None:
    assert [evaluation_images(PRESENCE, TASK, step).tolist() for step in range(3)] == [
        [0, 1],
        [0, 1, 2, 5],
        [0, 1, 2, 3, 5],
    ]


def test_tables_renumber_in_learned_order() -> None:
    labels = np.array([0, 1, 2, 3, 4, 5, 255], dtype=np.uint8)
    assert training_table(TASK, 0, "overlapped")[labels].tolist() == [0, 2, 0, 1, 0, 0, 255]
    assert training_table(TASK, 1, "overlapped")[labels].tolist() == [0, 0, 3, 0, 0, 0, 255]
    assert training_table(TASK, 1, "disjoint")[labels].tolist() == [0, 0, 3, 0, 0, 0, 255]
    assert training_table(TASK, 1, "sequential")[labels].tolist() == [0, 2, 3, 1, 0, 0, 255]
    assert evaluation_table(TASK, 1)[labels].tolist() == [0, 2, 3, 1, 0, 0, 255]
    assert evaluation_table(TASK, 2)[labels].tolist() == [0, 2, 3, 1, 4, 0, 255]


@pytest.mark.parametrize(
    ("others", "step_0", "step_1"),
    [
        ("background", [0, 2, 0, 1, 0, 0, 255], [0, 0, 3, 0, 0, 0, 255]),
        ("shown", [0, 2, 0, 1, 0, 0, 255], [0, 2, 3, 1, 0, 0, 255]),
        ("ignored", [0, 2, 255, 1, 255, 0, 255], [0, 255, 3, 255, 255, 0, 255]),
    ],
)
@pytest.mark.parametrize("protocol", ["overlapped", "disjoint", "sequential"])
def test_labels_of_other_classes_can_be_chosen(
    protocol: str, others: str, step_0: list[int], step_1: list[int]
) -> None:
    labels = np.array([0, 1, 2, 3, 4, 5, 255], dtype=np.uint8)
    assert training_table(TASK, 0, protocol, others)[labels].tolist() == step_0
    assert training_table(TASK, 1, protocol, others)[labels].tolist() == step_1
    assert (training_table(TASK, 1, protocol, "protocol") == training_table(TASK, 1, protocol)).all()
