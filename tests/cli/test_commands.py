"""What single commands print, and what they hand on."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from plopcli.cli.app import main
from plopcli.engine.scenario_run import ScenarioChoices, StepChoices
from plopcli.methods import METHODS
from plopcli.resolution.layers import read_settings, resolve_settings
from plopcli.runs.results import Results

RESULTS = {
    "dataset": "toy",
    "task": "2-1",
    "protocol": "overlapped",
    "method": "ft",
    "seed": 1,
    "classes": ["background", "ring", "star"],
    "steps": [
        {
            "step": 0,
            "checkpoint": "c0",
            "iou": {"background": 90.0, "ring": 40.0},
            "miou": {"all": 65.0, "old": 65.0, "new": None},
        },
        {
            "step": 1,
            "checkpoint": "c1",
            "iou": {"background": 80.0, "ring": 0.0, "star": None},
            "miou": {"all": 40.0, "old": 40.0, "new": None},
        },
    ],
    "avg": 52.5,
}


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch):
    for name in [name for name in os.environ if name.startswith("PLOP_")]:
        monkeypatch.delenv(name)


SMALL = ["download", "toy", "--train", "40", "--val", "20", "--test", "20", "--size", "32"]


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    assert main([*SMALL, "--data-root", str(root)]) == 0
    return root


def answer(capsys, *words: str) -> Any:
    assert main(list(words)) == 0
    return json.loads(capsys.readouterr().out)


def test_print_config_can_be_fed_back(tmp_path, capsys):
    options = ["--dataset", "toy", "--method", "plop", "--lr-later", "0.02", "--weights", "none", "--disjoint"]
    options += ["--set", "train.from_step.3.lr=0.5", "--set", "model.pooling=none", "--task", "5-3"]
    assert main(["run-scenario", *options, "--print-config"]) == 0
    printed = capsys.readouterr()
    file = tmp_path / "mine.toml"
    file.write_text(printed.out, "utf-8")
    settings = read_settings(file)
    assert settings.scenario.protocol == "disjoint"
    assert settings.train.later.lr == 0.02
    assert "preset toy/plop" in printed.err
    assert "train.later.lr: preset toy says" in printed.err

    assert main(["run-scenario", "--config", str(file), "--print-config", "--preset", "none"]) == 0
    file.write_text(capsys.readouterr().out, "utf-8")
    assert read_settings(file) == settings


def test_print_config_names_origins(monkeypatch, capsys):
    monkeypatch.setenv("PLOP_DATA_ROOT", "/elsewhere")
    answered = answer(
        capsys, "train-step", "--step", "1", "--dataset", "toy", "--lr", "0.5", "--print-config", "--json"
    )
    assert answered["settings"]["data"]["root"] == "/elsewhere"
    assert answered["origins"]["data.root"] == "environment PLOP_DATA_ROOT"
    assert answered["origins"]["train.first.lr"] == "--lr"
    assert answered["origins"]["train.batch"] == "preset toy"


@pytest.mark.parametrize(
    ("option", "key", "value"),
    [
        (["--task", "10-1"], "scenario.task", "10-1"),
        (["--dataset", "toy"], "data.dataset", "toy"),
        (["--method", "ft"], "method.name", "ft"),
        (["--protocol", "sequential"], "scenario.protocol", "sequential"),
        (["--seed", "7"], "seed", 7),
        (["--data-root", "/d"], "data.root", "/d"),
        (["--val-fraction", "0.2"], "data.val_fraction", 0.2),
        (["--epochs", "3"], "train.first.epochs", 3),
        (["--epochs-later", "4"], "train.later.epochs", 4),
        (["--lr", "0.3"], "train.first.lr", 0.3),
        (["--lr-later", "0.4"], "train.later.lr", 0.4),
        (["--batch", "16"], "train.batch", 16),
        (["--backbone", "resnet50"], "model.backbone", "resnet50"),
        (["--weights", "w.pth"], "model.weights", "w.pth"),
        (["--no-pretrained"], "model.pretrained", False),
        (["--gpus", "2"], "compute.gpus", 2),
        (["--precision", "fp16"], "compute.precision", "fp16"),
        (["--processes", "2"], "compute.processes", 2),
        (["--deterministic"], "compute.deterministic", True),
        (["--compile"], "compute.compile", "inductor"),
        (["--profile", "5"], "output.profile", 5),
        (["--run", "here"], "run", "here"),
    ],
)
@pytest.mark.parametrize("command", [["run-scenario"], ["train-step", "--step", "0"]])
def test_options_are_short_for_settings(command, option, key, value, capsys):
    answered = answer(capsys, *command, *option, "--print-config", "--json")
    found = answered["settings"]
    for part in key.split("."):
        found = found[part]
    assert found == value
    assert answered["origins"][key] == option[0]


def test_weights_ask_for_pretraining_even_where_the_preset_has_none(capsys):
    answered = answer(capsys, "run-scenario", "--dataset", "toy", "--weights", "w.pth", "--print-config", "--json")
    assert answered["settings"]["model"]["pretrained"] is True
    assert answered["origins"]["model.pretrained"] == "--weights"


def test_dry_run_shows_every_step_and_leaves_nothing(toy, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["run-scenario", "--dataset", "toy", "--data-root", str(toy), "--task", "15-1", "--batch", "4", "--dry-run"]
    plan = answer(capsys, *words, "--json")
    assert [step["step"] for step in plan["steps"]] == [0, 1, 2, 3, 4, 5]
    assert len(plan["steps"][0]["classes"]) == 15
    assert plan["batch"].startswith("4 = 1 ")
    assert main(words) == 0
    assert "and 9 more" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


class Recorder:
    """Stands in for a function of the engine and keeps what it was called with."""

    def __init__(self, result: Any) -> None:
        self.result = result
        self.positional: tuple[Any, ...] = ()
        self.named: dict[str, Any] = {}

    def __call__(self, *positional: Any, **named: Any) -> Any:
        self.positional, self.named = positional, named
        return self.result


def test_run_scenario_hands_on_settings_and_prints_json_alone_on_standard_output(monkeypatch, capsys):
    engine = Recorder(Results.model_validate(RESULTS))
    monkeypatch.setattr("plopcli.engine.scenario_run.run_scenario", engine)
    words = ["run-scenario", "--dataset", "toy", "--method", "ft", "--init-from", "runs/a", "--resume"]
    assert answer(capsys, *words, "--json") == RESULTS
    resolved = engine.named.pop("resolved")
    assert resolved.settings == resolve_settings({"data.dataset": "toy", "method.name": "ft"}, environment={}).settings
    assert engine.named.pop("console").stderr
    assert engine.named.pop("process").world == 1
    assert engine.named == {"choices": ScenarioChoices(resume=True, init_from=Path("runs/a"))}
    assert main(words) == 0
    table = capsys.readouterr().out
    assert "52.5" in table
    assert "star" in table


def test_train_step_hands_on_the_step(monkeypatch, capsys):
    engine = Recorder(Results.model_validate(RESULTS))
    monkeypatch.setattr("plopcli.engine.scenario_run.run_single_step", engine)
    answer(capsys, "train-step", "--step", "2", "--previous", "c.pt", "--overwrite", "--dataset", "toy", "--json")
    assert engine.named["choices"] == StepChoices(2, Path("c.pt"), overwrite=True)


def test_evaluate_changes_only_what_was_asked_for(monkeypatch, capsys):
    engine = Recorder(Results.model_validate(RESULTS))
    monkeypatch.setattr("plopcli.evaluation.evaluate.evaluate_path", engine)
    monkeypatch.setattr("plopcli.evaluation.evaluate.settings_of", lambda *_: resolve_settings({}).settings)
    answer(capsys, "evaluate", "runs/a", "--split", "val", "--gpus", "0", "--batch", "3", "--json")
    changes = engine.named["changes"]
    assert engine.named["path"] == Path("runs/a")
    assert (changes.split, changes.gpus, changes.batch) == ("val", 0, 3)
    assert (changes.data_root, changes.evaluation, changes.precision) == (None, None, None)


def test_download_toy_draws_once(toy, capsys):
    assert answer(capsys, *SMALL, "--data-root", str(toy), "--json") == {"name": "toy", "path": str(toy / "toy")}
    assert len(list((toy / "toy").rglob("*.jpg"))) == 80


def test_prepare_counts_images_of_classes_and_steps(toy, monkeypatch, capsys):
    monkeypatch.setenv("PLOP_DATA_ROOT", str(toy))
    answered = answer(capsys, "prepare", "toy", "--task", "15-1", "--json")
    assert answered["images"] == {"train": 40, "val": 20, "test": 20}
    assert len(answered["classes"]) == 21
    assert [step["step"] for step in answered["steps"]] == [0, 1, 2, 3, 4, 5]
    assert main(["prepare", "toy", "--task", "15-1"]) == 0
    table = capsys.readouterr().out
    assert "40 train, 20 val, 20 test" in table
    assert "umbrella" in table
    assert main(["prepare", "toy", "--val-fraction", "1.5", "--protocol", "overlaped"]) == 2
    message = capsys.readouterr().err
    assert "--val-fraction 1.5: expected a number >= 0 and < 1." in message
    assert "--protocol overlaped: expected one of overlapped, disjoint, sequential. Did you mean" in message


def test_methods(capsys):
    assert [entry["name"] for entry in answer(capsys, "methods", "--json")] == list(METHODS)
    shown = answer(capsys, "methods", "PLOP", "--json")
    assert shown["name"] == "plop"
    (factor,) = [setting for setting in shown["settings"] if setting["key"] == "method.pod_factor"]
    assert factor["default"] == 0.01
    assert factor["allowed"] == "a number >= 0"
    assert main(["methods"]) == 0
    table = capsys.readouterr().out
    assert all(f"\n  {name} " in table for name in METHODS)
    assert main(["methods", "plop"]) == 0
    assert "method.pod_factor" in capsys.readouterr().out


@pytest.mark.parametrize("name", METHODS)
def test_methods_tells_the_loss_in_settings_that_exist(capsys, name):
    assert main(["methods", name]) == 0
    shown = capsys.readouterr().out
    loss = METHODS[name].later_steps
    assert bool(loss) != METHODS[name].merges_steps
    assert f"  step 0:      {METHODS[name].first_step}\n" in shown
    assert [line for line in shown.splitlines() if line.startswith("  later steps: ")] == [
        f"  later steps: {loss}"
    ] * bool(loss)
    factors = set(re.findall(r"\w+_factor|\bimportance\b|\bfusion\b", loss))
    assert factors <= METHODS[name].Settings.model_fields.keys()
    # PLOP's adaptive factor is told in words: it is none to choose.
    weights = {key for key in METHODS[name].Settings.model_fields if key.endswith("_factor")}
    assert {key for key in weights if not key.startswith("adaptive")} == {key for key in factors if key in weights}


def test_methods_shows_presets_with_their_source(capsys):
    presets = {(p["name"], p["task"]): p for p in answer(capsys, "methods", "MiB", "--json")["presets"]}
    assert presets["voc/10-1", "10-1"]["values"] == {"train.later.epochs": 10}
    paper = presets["voc-mib/15-1/mib", "15-1"]
    assert paper["values"] == {"method.kd_factor": 100.0}
    assert paper["applies"] == "--preset voc-mib"
    assert "MiB, CVPR 2020" in paper["source"]
    assert not any(name.endswith("/plop") for name, _ in presets)
    assert main(["methods", "plop"]) == 0
    table = capsys.readouterr().out
    told = ("on cityscapes-domain", "method.pod_logits_factor = 1e-05", "--preset plop-exact", "--preset plop-naive")
    for part in (*told, "CVPR 2021"):
        assert part in table
    assert answer(capsys, "methods", "LwF_MC", "--json")["name"] == "lwf-mc"


def test_tasks(capsys):
    named = {entry["name"]: entry["steps"] for entry in answer(capsys, "tasks", "--json")}
    assert named["15-1"] == [list(range(16)), [16], [17], [18], [19], [20]]
    assert main(["tasks", "--dataset", "toy"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["15-1", "15-5s", "6", "16", "+", "5", "x", "1", "15-1b", "to", "15-1w"] in rows
    assert ["19-1", "2", "20", "+", "1", "19-1b"] in rows
    assert main(["tasks", "--dataset", "folder"]) == 0
    assert "X-Y" in capsys.readouterr().err


def test_datasets(capsys):
    listed = {entry["name"]: entry for entry in answer(capsys, "datasets", "--json")}
    assert listed["toy"]["classes"] == 21
    assert "plop download toy" in listed["toy"]["get"]
    assert main(["datasets"]) == 0
    assert "your own" in capsys.readouterr().out


def test_prepare_lists_problems_and_goes_on_without_them(folder_data, capsys):
    root = folder_data({f"p{number}": [0, 1, 2] for number in range(10)})
    (root / "images" / "p3.jpg").write_bytes(b"")
    command = ["prepare", "folder", "--data-path", str(root)]
    assert main(command) == 3
    printed = capsys.readouterr()
    assert "image empty" in printed.out
    assert "plop-problems.json" in printed.err
    assert "--skip-bad" in printed.err
    answered = answer(capsys, *command, "--skip-bad", "--json")
    assert answered["skipped"] == ["p3"]
    assert main(command) == 0
    assert "1 unusable pairs are skipped" in capsys.readouterr().err


def test_prepare_takes_orders_and_official_splits(folder_data, capsys, tmp_path):
    import numpy as np

    root = folder_data({f"p{number}": [0, 1, 2, 3] for number in range(10)})
    command = ["prepare", "folder", "--data-path", str(root), "--task", "2-1"]
    assert answer(capsys, *command, "--order-seed", "5", "--json")["task"] == "2-1-order5"
    for step, rows in enumerate(([0, 1, 2], [7])):
        np.save(tmp_path / f"train-{step}.npy", np.array(rows))
    steps = answer(capsys, *command, "--splits", str(tmp_path), "--ids", "--json")["steps"]
    assert [step["train"] for step in steps] == [["p0", "p1", "p2"], ["p8"]]
    assert main([*command, "--order-seed", "-1"]) == 2
    assert "order-seed" in capsys.readouterr().err


def test_order_and_splits_are_settings_of_a_run(toy, monkeypatch, capsys):
    monkeypatch.setenv("PLOP_DATA_ROOT", str(toy))
    printed = answer(capsys, "run-scenario", "--dataset", "toy", "--order-seed", "3", "--print-config", "--json")
    assert printed["settings"]["scenario"]["order_seed"] == 3
    plan = answer(
        capsys,
        "run-scenario",
        "--dataset",
        "toy",
        "--no-pretrained",
        "--order-seed",
        "3",
        "--batch",
        "2",
        "--dry-run",
        "--json",
    )
    assert plan["task"] == "15-1-order3"
    assert plan["run"] == "runs/toy-15-1-order3-overlapped-plop-s42"


def test_every_data_set_has_its_tasks(capsys):
    names = {task["name"] for task in answer(capsys, "tasks", "--dataset", "cityscapes-domain", "--json")}
    assert names == {"11-5", "11-1", "1-1"}
    assert main(["tasks", "--dataset", "cityscapes-domain"]) == 0
    assert "domains of each" in capsys.readouterr().out
    assert main(["tasks", "--dataset", "folder"]) == 0
