from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from plopcli.errors import UsageError
from plopcli.methods import METHODS
from plopcli.resolution.layers import Resolved, read_settings, resolve_settings, settings_to_toml
from plopcli.settings.keys import leaves


def resolve(flags=None, *, assignments=(), environment=None, config=None, preset="auto", names=None) -> Resolved:
    return resolve_settings(
        flags or {},
        config=config,
        assignments=assignments,
        environment=environment or {},
        preset=preset,
        flag_names=names,
    )


def complaints(*args, **kwargs) -> str:
    with pytest.raises(UsageError) as caught:
        resolve(*args, **kwargs)
    assert caught.value.exit_code == 2
    return caught.value.message


@pytest.fixture
def config(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "mine.toml"
        path.write_text(text, "utf-8")
        return path

    return write


def test_every_layer_wins_over_those_below(config):
    toy = {"data.dataset": "toy"}
    file = config("[train]\nbatch = 5\n")
    environment = {"PLOP_TRAIN_BATCH": "6"}
    expected = [
        (resolve(toy, preset="none"), 24, "default"),
        (resolve(toy), 8, "preset toy"),
        (resolve(toy, config=file), 5, "mine.toml"),
        (resolve(toy, config=file, environment=environment), 6, "environment PLOP_TRAIN_BATCH"),
        (
            resolve(toy | {"train.batch": 7}, config=file, environment=environment, names={"train.batch": "--batch"}),
            7,
            "--batch",
        ),
        (resolve(toy, config=file, environment=environment, assignments=["train.batch=7"]), 7, "--set"),
    ]
    for resolved, batch, origin in expected:
        assert resolved.settings.train.batch == batch
        assert resolved.origins["train.batch"] == origin


def test_every_setting_has_an_origin():
    resolved = resolve({"data.dataset": "toy"})
    assert list(resolved.origins) == list(leaves(METHODS["plop"].Settings))
    assert resolved.origins["data.dataset"] == "flag"
    assert resolved.origins["seed"] == "default"


def test_what_a_higher_layer_replaces_is_told_once_and_only_where_it_differs():
    resolved = resolve({"data.dataset": "toy", "train.batch": 4}, assignments=["train.first.epochs=12"])
    assert resolved.overridden == ("train.batch: preset toy says 8, flag says 4",)


def test_presets_of_one_family_do_not_count_as_overriding_each_other():
    resolved = resolve({"data.dataset": "voc", "scenario.task": "10-1"})
    assert resolved.origins["train.later.epochs"] == "preset voc/10-1"
    assert resolved.settings.train.later.epochs == 10
    assert resolved.overridden == ()


def test_flag_that_is_not_given_leaves_the_other_layers_alone():
    assert resolve({"data.dataset": "toy", "train.batch": None}).settings.train.batch == 8


def test_flag_and_set_must_agree():
    assert resolve({"train.batch": 3}, assignments=["train.batch=3"]).settings.train.batch == 3
    assert "train.batch is given twice: flag says 3, --set says 4" in complaints(
        {"train.batch": 3}, assignments=["train.batch=4"]
    )


def test_all_errors_come_at_once_with_key_value_origin_and_what_is_allowed(config):
    message = complaints(
        {"method.name": "plob", "data.dataset": "tooy", "train.first.lr": "-0.1"},
        assignments=["scenario.protocol=overlaped", "trian.batch=3", "nonsense"],
        environment={"PLOP_TRAIN_BATCH": "2.5"},
        config=config("[model]\noutput_stride = 12\n"),
        preset="tiy",
        names={"method.name": "--method", "train.first.lr": "--lr"},
    )
    lines = message.splitlines()
    assert lines[0] == "9 settings are wrong:"
    for part in (
        "method.name (--method): There is no method called 'plob'. Did you mean plop?",
        "data.dataset (flag): There is no data set called 'tooy'. Did you mean toy?",
        "train.first.lr = -0.1 (--lr): expected a number > 0.",
        'scenario.protocol = "overlaped" (--set): expected one of overlapped, disjoint, sequential. '
        "Did you mean overlapped?",
        "trian.batch (--set): there is no such setting. Did you mean train.batch?",
        "--set nonsense: expected KEY=VALUE",
        "train.batch = 2.5 (environment PLOP_TRAIN_BATCH): expected a whole number >= 1.",
        "model.output_stride = 12 (mine.toml): expected one of 8, 16.",
        "There is no preset called 'tiy'. Did you mean toy?",
    ):
        assert part in message
    assert len(lines) == 10


def test_single_error_is_a_single_line():
    assert complaints({"seed": -1}) == "Wrong setting: seed = -1 (flag): expected a whole number >= 0."


@pytest.mark.parametrize(
    ("wrong", "suggestion"),
    [
        ("lr", "train.first.lr or train.later.lr"),
        ("train.frist.lr", "train.first.lr"),
        ("method.pod_faktor", "method.pod_factor"),
        ("model.bakbone", "model.backbone"),
    ],
)
def test_unknown_key_names_the_near_ones(wrong, suggestion):
    message = complaints(assignments=[f"{wrong}=1"])
    assert f"{wrong} (--set): there is no such setting. Did you mean {suggestion}" in message


def test_table_in_place_of_a_setting_says_what_is_in_it(config):
    message = complaints(config=config("scenario = 3\n"))
    assert (
        "scenario (mine.toml): there is no such setting. It is a table of task, protocol, "
        "other_labels, order_seed, splits." in message
    )


def test_rules_between_settings_are_reported_too(config):
    message = complaints(config=config("[train.from_step.0]\nlr = 0.1\n[data]\ncrop = 2\n"))
    assert "train.from_step.0.lr (mine.toml)" in message
    assert "data.crop = 2 (mine.toml): expected a whole number >= 16." in message
    message = complaints(assignments=["method.pseudo=naive", "method.threshold_floor=0.01"])
    rule = "method.threshold_floor belongs to method.pseudo = entropy, and method.pseudo is naive."
    assert message == f"Wrong setting: {rule}"


def test_changes_from_a_step_on(config):
    file = config("[train.from_step.2]\nlr = 0.5\nepochs = 3\n")
    resolved = resolve(config=file, assignments=["train.from_step.2.lr=0.25", "train.from_step.4.epochs=1"])
    train = resolved.settings.train
    assert (train.recipe(1).epochs, train.recipe(2).lr, train.recipe(2).epochs) == (30, 0.25, 3)
    assert (train.recipe(4).lr, train.recipe(4).epochs) == (0.25, 1)
    assert resolved.overridden == ("train.from_step.2.lr: mine.toml says 0.5, --set says 0.25",)


def test_wrong_changes_from_a_step_on(config):
    message = complaints(config=config("[train.from_step.2]\nlr = -1\nepoch = 3\n"))
    assert "train.from_step.2.lr = -1 (mine.toml): expected a number > 0." in message
    assert "train.from_step.2.epoch (mine.toml): there is no such setting." in message


@pytest.mark.parametrize(
    ("assignment", "key", "value"),
    [
        ("train.later.lr=1e-4", "train.later.lr", 1e-4),
        ("train.later.lr=.5", "train.later.lr", 0.5),
        ("model.head_dilations=[1, 2, 3]", "model.head_dilations", (1, 2, 3)),
        ("model.head_dilations=1,2,3", "model.head_dilations", (1, 2, 3)),
        ("model.pooling=none", "model.pooling", None),
        ("train.later.freeze_norm=none", "train.later.freeze_norm", "none"),
        ("data.cache=yes", "data.cache", True),
        ("data.path=/a b/c", "data.path", Path("/a b/c")),
        ('data.path="/a=b"', "data.path", Path("/a=b")),
        ("run=2024-01-01", "run", Path("2024-01-01")),
        ("scenario.task=19-1", "scenario.task", "19-1"),
        ("scenario.task=5", "scenario.task", "5"),
        ("compute.gpus=auto", "compute.gpus", "auto"),
        ("compute.gpus=2", "compute.gpus", 2),
        ("method.adaptive_factor=false", "method.adaptive_factor", False),
    ],
)
def test_set_reads_toml_or_plain_text(assignment, key, value):
    found = resolve(assignments=[assignment]).settings
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value
    assert isinstance(found, type(value))


@pytest.mark.parametrize(
    "assignment",
    [
        "train.batch=true",
        "train.batch=2.5",
        "train.batch=none",
        "train.batch=3\nseed=4",
        "data.flip=2",
        "model.width=",
        "train.later.lr=inf",
    ],
)
def test_set_refuses_what_the_setting_does_not_take(assignment):
    assert assignment.split("=")[0] in complaints(assignments=[assignment])


def test_environment_reaches_every_setting_and_empty_variables_count_as_unset():
    resolved = resolve(environment={"PLOP_DATA_ROOT": "/d", "PLOP_METHOD_NAME": "ft", "PLOP_TRAIN_BATCH": ""})
    assert resolved.settings.data.root == Path("/d")
    assert resolved.settings.method.name == "ft"
    assert resolved.origins["method.name"] == "environment PLOP_METHOD_NAME"
    assert resolved.settings.train.batch == 24


def test_unknown_variable_is_a_warning_with_a_suggestion_and_not_an_error():
    resolved = resolve(environment={"PLOP_TRIAN_BATCH": "3", "PLOP_PARITY": "/x", "PATH": "/bin"})
    assert len(resolved.warnings) == 1
    assert "PLOP_TRIAN_BATCH is set but is no setting" in resolved.warnings[0]
    assert "Did you mean PLOP_TRAIN_BATCH" in resolved.warnings[0]


def test_names_of_variables_are_unique():
    for method in METHODS.values():
        found = [leaf.variable for leaf in leaves(method.Settings).values()]
        assert len(found) == len(set(found))


def test_method_decides_which_keys_there_are(config):
    message = complaints({"method.name": "ft"}, assignments=["method.pod_factor=1"])
    assert "method.pod_factor (--set): there is no such setting." in message
    resolved = resolve({"method.name": "FT"}, config=config('[method]\nname = "plop"\npod_factor = 1\n'))
    assert resolved.settings.method.name == "ft"
    assert resolved.warnings == ("mine.toml: its [method] is for plop, not ft; it is not used.",)


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("dataset", ["toy", "voc", "folder"])
def test_toml_comes_back_as_the_same_settings(tmp_path, method, dataset):
    resolved = resolve(
        {"method.name": method, "data.dataset": dataset, "run": 'runs/ü "x"'},
        assignments=["model.pooling=none", "train.from_step.3.lr=0.5", "train.later.lr=1e-7"],
    )
    file = tmp_path / "settings.toml"
    for text in (settings_to_toml(resolved.settings), settings_to_toml(resolved.settings, resolved.origins)):
        file.write_text(text, "utf-8")
        assert read_settings(file) == resolved.settings
        # Every setting is in the file, so the presets of another data set cannot shine through.
        again = resolve(config=file)
        assert again.settings == resolved.settings
        assert set(again.origins.values()) == {"settings.toml"}


def test_toml_without_changes_switches_off_those_of_lower_layers(tmp_path):
    file = tmp_path / "settings.toml"
    file.write_text(settings_to_toml(resolve().settings), "utf-8")
    assert "from_step = {}" in file.read_text("utf-8")
    assert read_settings(file).train.from_step == {}


def test_origins_stand_behind_the_values():
    resolved = resolve({"data.dataset": "toy"})
    lines = settings_to_toml(resolved.settings, resolved.origins).splitlines()
    assert "batch = 8  # preset toy" in lines
    assert "seed = 42" in lines
    assert tomllib.loads("\n".join(lines))["train"]["batch"] == 8


def test_settings_files_that_cannot_be_read(tmp_path, config):
    assert str(tmp_path / "none.toml") in complaints(config=tmp_path / "none.toml")
    assert str(tmp_path) in complaints(config=tmp_path)
    message = complaints(config=config("[train]\nbatch = \n"))
    assert "mine.toml is not a TOML file" in message
    assert "line 2" in message
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    assert "is not a TOML file" in complaints(config=binary)


@pytest.mark.parametrize(("path", "said"), [("d\udcff", r"'d\udcff' is no UTF-8"), ("a\0b", r"'a\x00b' holds a NUL")])
def test_paths_that_no_settings_file_can_hold_are_refused(path, said):
    assert said in complaints({"data.path": path})
    assert said in complaints(assignments=[f"run={path}"])
