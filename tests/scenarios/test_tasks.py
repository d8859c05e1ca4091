"""Tasks: named ones, X-Y, files, and every way to write a wrong one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plopcli.data.datasets import class_facts
from plopcli.errors import DataError, UsageError
from plopcli.scenarios.tasks import named_tasks, resolve_task

VOC = class_facts()["voc"]


def test_every_task_of_the_papers_is_there_with_its_other_name() -> None:
    assert {"offline", "19-1", "19-1b", "15-5", "15-1", "10-1", "10-5-5", "15-1w"} <= named_tasks("voc").keys()
    assert {"100-50", "50-50", "50", "100-10", "100-5", "100-10c", "50-50c"} <= named_tasks("ade").keys()
    ade = class_facts()["ade"]
    assert resolve_task("50-50", ade, "ade").steps == resolve_task("50", ade, "ade").steps
    assert [len(step) for step in resolve_task("100-10", ade, "ade").steps] == [101, 10, 10, 10, 10, 10]
    cityscapes = ["background", *(entry["name"] for entry in class_facts()["cityscapes"])]
    assert [len(step) for step in resolve_task("14-1", cityscapes, "cityscapes").steps] == [15, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("dataset", ["voc", "ade"])
def test_every_named_task_is_a_partition_that_starts_with_background(dataset: str) -> None:
    classes = class_facts()[dataset]
    for name in named_tasks(dataset):
        task = resolve_task(name, classes, dataset)
        assert task.steps[0][0] == 0
        assert sorted(task.order) == list(range(len(classes)))


def test_the_papers_name_and_the_references_name_are_one_task() -> None:
    assert resolve_task("15-1", VOC, "voc").steps == resolve_task("15-5s", VOC, "voc").steps
    assert resolve_task("15-1B", VOC, "voc").steps == resolve_task("15-5s_b", VOC, "voc").steps


def test_regular_tasks_put_the_rest_into_the_last_step() -> None:
    task = resolve_task("5-6", VOC, "voc")
    assert [len(step) for step in task.steps] == [6, 6, 6, 3]
    assert task.order == tuple(range(21))
    assert task.counts(1) == (6, 6)
    assert task.new(0) == (1, 2, 3, 4, 5)


def test_joint_is_one_step() -> None:
    assert len(resolve_task("joint", VOC, "voc").steps) == 1


def test_joined_keeps_the_groups_of_the_results() -> None:
    joined = resolve_task("19-1", VOC, "voc").joined()
    assert len(joined.steps) == 1
    assert [len(group) for group in joined.groups] == [20, 1]


def test_a_file_names_classes_in_any_case(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('steps = [["Person", "cat"], [13]]')
    task = resolve_task(str(path), VOC, "voc")
    assert task.steps == ((0, 15, 8), (13,))
    assert task.name == "mine"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('steps = [["person", "horze"]]', "Did you mean horse"),
        ('steps = [["person"], ["person"]]', "step 0 and in step 1"),
        ('steps = [["person", "cat", "Person"]]', "'person' is twice in step 0"),
        ('steps = [["person"], ["background"]]', "background is in step 1"),
        ('steps = ["person"]', "a list of lists of names"),
        ("steps = []", "a list of lists of names"),
        ('steps = [["person"], []]', "step 1 is empty"),
        ("steps = [[99]]", "0 to 20"),
        ("steps = [[true]]", "neither a class name"),
        ('steps = [["background"]]', "no class but background"),
        ('stpes = [["person"]]', "needs `steps`"),
        ('steps = [["person"]]\nextra = 1', "unknown key 'extra'"),
        ("steps = [", "not a TOML file"),
    ],
)
def test_wrong_files_say_what_is_wrong(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(content)
    with pytest.raises(UsageError) as error:
        resolve_task(str(path), VOC, "voc")
    assert message in str(error.value)


def test_background_may_be_listed_in_step_0(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('steps = [["cat", "background"], ["dog"]]')
    assert resolve_task(str(path), VOC, "voc").steps == ((0, 8), (12,))


@pytest.mark.parametrize("name", ["15-1", "15-5", "7-3"])
def test_a_seed_shuffles_the_order_and_keeps_the_sizes(name: str) -> None:
    plain, shuffled = resolve_task(name, VOC, "voc"), resolve_task(name, VOC, "voc", order_seed=3)
    assert [len(step) for step in shuffled.steps] == [len(step) for step in plain.steps]
    assert shuffled.steps[0][0] == 0
    assert shuffled.order != plain.order
    assert sorted(shuffled.order) == list(range(21))
    assert shuffled.name == f"{name}-order3"
    assert shuffled == resolve_task(name, VOC, "voc", order_seed=3)
    assert shuffled.order != resolve_task(name, VOC, "voc", order_seed=4).order


def test_an_order_seed_means_the_same_for_ever() -> None:
    assert resolve_task("15-5", VOC, "voc", order_seed=0).steps[1] == (12, 4, 1, 16, 13)


def test_an_order_seed_shuffles_what_a_file_learns_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('steps = [["person", "cat"], ["horse"], ["dog"]]')
    task = resolve_task(str(path), VOC, "voc", order_seed=1)
    assert [len(step) for step in task.steps] == [3, 1, 1]
    assert sorted(task.order) == [0, 8, 12, 13, 15]
    assert task.name == "mine-order1"


def test_a_missing_file_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        resolve_task(str(tmp_path / "none.toml"), VOC, "voc")


@pytest.mark.parametrize("name", ["25-1", "0-1", "15-0", "15_1", "fifteen"])
def test_unknown_names_are_refused_with_help(name: str) -> None:
    with pytest.raises(UsageError) as error:
        resolve_task(name, VOC, "voc")
    assert error.value.hint


def test_a_task_of_a_larger_data_set_is_refused() -> None:
    with pytest.raises(UsageError, match="names label"):
        resolve_task("15-1", VOC[:10], "voc")


def test_the_facts_are_those_of_the_package() -> None:
    assert json.dumps(sorted(named_tasks("toy"))) == json.dumps(sorted(named_tasks("voc")))
