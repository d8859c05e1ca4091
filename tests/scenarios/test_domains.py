"""Domain-incremental scenarios: steps bring cities, all of them have the same classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from plopcli.data.datasets import load_dataset
from plopcli.data.index import class_index
from plopcli.data.samples import StepSplit
from plopcli.errors import DataError, UsageError
from plopcli.scenarios.scenario import Scenario, find_task
from plopcli.scenarios.tasks import named_tasks

TASK = 'steps = [["aachen", "Bremen"], ["frankfurt"], ["zurich"]]'


@pytest.fixture
def task_file(tmp_path: Path) -> str:
    path = tmp_path / "cities.toml"
    path.write_text(TASK)
    return str(path)


def scenario_of(root: Path, name: str, **more: object) -> Scenario:
    data = load_dataset("cityscapes-domain", root)
    task = find_task(data, name)
    return Scenario.build(data, class_index(data), task, str(more.pop("protocol", "overlapped")), **more)  # type: ignore[arg-type]


def names(split: StepSplit) -> list[str]:
    return [sample.name for sample in split.samples]


def test_each_step_is_dealt_as_the_original_does(city_root: Path, task_file: str) -> None:
    scenario = scenario_of(city_root, task_file)
    pool = [s.name for s in load_dataset("cityscapes-domain", city_root).splits["all"]]
    for step, cities in enumerate((("aachen", "bremen"), ("frankfurt",), ("zurich",))):
        rows = [row for row, name in enumerate(pool) if name.startswith(cities)]
        np.random.RandomState(1).shuffle(rows)
        share = int(0.8 * len(rows))
        assert set(names(scenario.training(step))) == {pool[row] for row in rows[:share]}
        now = {name for name in names(scenario.evaluation(step, "test")) if name.startswith(cities)}
        assert now == {pool[row] for row in rows[share:]}
    assert [len(scenario.training(step)) for step in range(3)] == [12, 6, 6]
    assert [len(scenario.evaluation(step, "test")) for step in range(3)] == [4, 6, 8]


def test_all_steps_have_the_same_classes(city_root: Path, task_file: str) -> None:
    scenario = scenario_of(city_root, task_file)
    assert scenario.protocol == "domain"
    assert scenario.shares_classes
    assert scenario.base_classes is None
    assert [scenario.class_counts(step) for step in range(3)] == [(19,)] * 3
    assert scenario.class_names[0] == "road"
    assert scenario.learned(0) == ["aachen", "bremen"]
    for step in range(3):
        # road, bicycle, unlabeled, void
        assert scenario.training(step).table[[7, 33, 0, 255]].tolist() == [0, 18, 255, 255]
        np.testing.assert_array_equal(scenario.training(step).table, scenario.evaluation(step, "test").table)


def test_what_is_learned_at_once_is_measured_on_the_same_images(city_root: Path, task_file: str) -> None:
    data = load_dataset("cityscapes-domain", city_root)
    index, task = class_index(data), find_task(data, task_file)
    continual = Scenario.build(data, index, task, "overlapped")
    joint = Scenario.build(data, index, task.joined(), "overlapped")
    assert names(joint.evaluation(0, "test")) == names(continual.evaluation(2, "test"))
    assert len(joint.training(0)) == 24


def test_validation_images_are_kept_apart_from_training(city_root: Path, task_file: str) -> None:
    scenario = scenario_of(city_root, task_file, val_fraction=0.25)
    held = set(names(scenario.evaluation(2, "val")))
    assert held
    for step in range(3):
        assert held.isdisjoint(names(scenario.training(step)))
    assert held.isdisjoint(names(scenario.evaluation(2, "test")))


def test_images_fall_apart_by_domain(city_root: Path, task_file: str) -> None:
    parts = scenario_of(city_root, task_file).evaluation(2, "test").by_domain()
    assert set(parts) == {"aachen", "bremen", "frankfurt", "zurich"}
    assert all(name.startswith(domain) for domain, part in parts.items() for name in names(part))
    assert sum(map(len, parts.values())) == 8


@pytest.mark.parametrize(("name", "sizes"), [("11-5", [11, 5, 5]), ("11-1", [11] + [1] * 10), ("1-1", [1] * 21)])
def test_the_papers_tasks_count_cities(city_root: Path, name: str, sizes: list[int]) -> None:
    data = load_dataset("cityscapes-domain", city_root)
    task = find_task(data, name)
    assert [len(step) for step in task.steps] == sizes
    assert task.order == tuple(range(21))
    assert find_task(data, "3-9").steps[1] == tuple(range(3, 12)), "X-Y has no background to count"
    assert len(find_task(data, "joint").steps) == 1
    assert set(named_tasks("cityscapes-domain")) == {"11-5", "11-1", "1-1"}


def test_a_step_without_images_and_other_protocols_are_refused(city_root: Path, task_file: str) -> None:
    scenario = scenario_of(city_root, "11-5")
    with pytest.raises(DataError, match=r"Step 3 has no training image .*: none of the \d+ is of erfurt"):
        scenario_of(city_root, "1-1").training(3)
    assert len(scenario.training(0)) == 12
    with pytest.raises(UsageError, match="protocol disjoint cannot choose"):
        scenario_of(city_root, task_file, protocol="disjoint")
    with pytest.raises(UsageError, match="split files"):
        scenario_of(city_root, task_file, splits=Path("somewhere"))


def test_a_city_twice_and_an_unknown_one_are_refused(city_root: Path, tmp_path: Path) -> None:
    path = tmp_path / "cities.toml"
    path.write_text('steps = [["aachen"], ["aachen"]]')
    with pytest.raises(UsageError, match="domain 'aachen' is in step 0 and in step 1"):
        scenario_of(city_root, str(path))
    path.write_text('steps = [["aachn"]]')
    with pytest.raises(UsageError, match=r"no domain called 'aachn'.*\n.*Did you mean aachen"):
        scenario_of(city_root, str(path))
