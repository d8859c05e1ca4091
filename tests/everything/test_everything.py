"""A method of an outside package that asks for everything at once, through every command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from running import TINY
from tensors import assert_same_tensors

from plopcli.cli.app import main
from plopcli.data.batches import Batch
from plopcli.data.datasets import load_dataset
from plopcli.devices.launch import launch
from plopcli.devices.precision import Precision
from plopcli.devices.process import Process, this_process
from plopcli.engine.optim import build_optimizer, build_schedule, prepare_training
from plopcli.engine.setup import initialise
from plopcli.engine.trainer import Trainer, read_iterations
from plopcli.methods import METHODS, get_method
from plopcli.methods.base import StepContext
from plopcli.models.classifiers import CLASSIFIERS
from plopcli.models.segmenter import build_segmenter
from plopcli.runs.checkpoint import Checkpoint, load_checkpoint
from plopcli.settings.sections import ComputeSettings, ModelSettings, StepRecipe

SOURCE = Path(__file__).with_name("everything.py")
ENTRIES = """[plopcli.methods]
everything = everything:Everything
[plopcli.classifiers]
scaled = everything:Scaled
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, as an installer leaves it."""
    folder = tmp_path_factory.mktemp("site")
    about = folder / "everything-2.1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: everything\nVersion: 2.1\n")
    (about / "entry_points.txt").write_text(ENTRIES)
    (folder / "everything.py").write_text(SOURCE.read_text())
    return folder


@pytest.fixture
def installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", f"{site}{os.pathsep}{os.environ.get('PYTHONPATH', '')}".rstrip(os.pathsep))
    for registry in (METHODS, CLASSIFIERS):
        vars(registry).pop("_entries", None)
        monkeypatch.setattr(registry, "_loaded", dict(registry._loaded))
    yield
    for registry in (METHODS, CLASSIFIERS):
        vars(registry).pop("_entries", None)


@pytest.fixture(scope="module")
def words(toy_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    """The command line of a run of seconds: three steps, saliency maps beside the images."""
    maps = tmp_path_factory.mktemp("maps")
    data = load_dataset("toy", toy_root, None)
    for sample in data.splits["train"]:
        path = maps / f"{sample.name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((np.asarray(Image.open(sample.mask)) > 0).astype(np.uint8)).save(path)
    settings = TINY | {
        "data.workers": 0,
        "train.first.epochs": 2,
        "train.later.epochs": 2,
        "output.snapshot_iterations": 2,
        "output.print_every": 1,
        "method.saliency": maps,
    }

    def line(run: Path, *more: str) -> list[str]:
        command = ["run-scenario", "--dataset", "toy", "--data-root", str(toy_root), "--task", "18-1"]
        command += ["--method", "everything", "--preset", "none", "--run", str(run), *more]
        return command + [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]

    return line


def state(run: Path, step: int) -> Checkpoint:
    return load_checkpoint(run / "checkpoints" / f"step-{step}.pt")


def assert_same_state(one: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    assert one["exemplars"] == other["exemplars"]
    assert_same_tensors(one["tensors"], other["tensors"])


@pytest.mark.usefixtures("installed")
def test_it_runs_is_measured_shown_used_and_exported(
    words: Callable[..., list[str]], toy_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main([*words(run), "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert [len(step["iou"]) for step in results["steps"]] == [19, 20, 21]
    assert len(results["steps"][2]["preparation"]["exemplars"]) == 4
    saved = state(run, 2)
    assert saved.class_counts == [19, 1, 1]
    assert saved.network["classifier"]["extra"] == ["unknown"]
    assert not [name for name in saved.model if "known" in name and "unknown" not in name], "branches are merged"
    assert saved.method["tensors"]["prototypes"].shape[0] == 21
    assert_same_tensors(
        {"rows": saved.method["tensors"]["prototypes"][:20]}, {"rows": state(run, 1).method["tensors"]["prototypes"]}
    )
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {row["step"] for row in rows if row.get("phase") == "biases"} == {1, 2}
    moved = [state(run, step).method["tensors"]["project.weight"] for step in range(3)]
    assert not torch.equal(moved[0], moved[1])

    assert main(["evaluate", str(run), "--data-root", str(toy_root), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert [step["iou"] for step in again["steps"]] == [step["iou"] for step in results["steps"]]
    assert main(["visualize", str(run), "--data-root", str(toy_root), "--count", "1"]) == 0
    picture = next((toy_root / "toy").rglob("*.jpg"))
    assert main(["predict", str(run), str(picture), "--output", str(tmp_path / "predicted")]) == 0
    assert list((tmp_path / "predicted").rglob("*.png"))
    assert main(["report", str(run), "--html", str(tmp_path / "report.html")]) == 0
    # It compares the file with the model, and refuses differences above 1e-4.
    for suffix in ("onnx", "safetensors"):
        assert main(["export", str(run), str(tmp_path / f"model.{suffix}")]) == 0


@pytest.mark.usefixtures("installed")
def test_killed_in_any_step_it_ends_as_undisturbed(words: Callable[..., list[str]], tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(words(whole)) == 0
    for rows in (5, 11, 20):  # in the middle of each step
        program = subprocess.Popen([sys.executable, "-m", "plopcli", *words(killed, "--resume")])
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline and program.poll() is None:
            metrics = killed / "metrics.jsonl"
            if metrics.exists() and metrics.read_text().count("\n") >= rows:
                break
            time.sleep(0.02)
        program.kill()
        program.wait()
    assert main(words(killed, "--resume")) == 0
    for step in range(3):
        one, other = state(whole, step), state(killed, step)
        assert_same_tensors(one.model, other.model)
        assert_same_state(one.method, other.method)


def _train_in(compute: ComputeSettings) -> dict[str, Any]:
    with this_process(compute) as process:
        return _train(process)


def _train(process: Process) -> dict[str, Any]:
    """Losses, weights and buffers after some iterations of step 1 in float64."""
    torch.manual_seed(0)
    kind = get_method("everything")
    method = kind(kind.Settings(), StepContext(1, (4, 2)))
    small = ModelSettings(backbone="resnet18", width=8, head_channels=8, output_stride=8, pretrained=False)
    old = build_segmenter(small, (4,), kind.classifier(method.settings)).double().eval().requires_grad_(False)
    model = build_segmenter(small, (4,), kind.classifier(method.settings)).double()
    model.load_state_dict(old.state_dict())
    model.add_classifier(2)
    model = method.expand(model.requires_grad_(True))
    initialise(method, model, old, process)
    method.double()
    recipe = StepRecipe(lr=0.01, epochs=1, freeze_norm="all")
    prepare_training(model, method, recipe)
    optimizer = build_optimizer(model, method, recipe)
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(6, 4, 3, 32, 32, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 6, (6, 4, 32, 32), generator=generator)
    labels[(labels > 0) & (labels < 4)] = 0
    share = slice(process.rank * 4 // process.world, (process.rank + 1) * 4 // process.world)
    batches = [Batch(x[share], y[share]) for x, y in zip(images, labels, strict=True)]
    schedule = build_schedule(optimizer, recipe, 6)
    trainer = Trainer(model, old, method, optimizer, schedule, Precision("float32", process.device), process, total=6)
    rows = read_iterations([trainer.iterate([batch]) for batch in batches], process)
    tensors = {**model.state_dict(), **{f"own.{name}": value for name, value in method.state_dict().items()}}
    return {"losses": [row["loss"] for row in rows], "tensors": {name: t.clone() for name, t in tensors.items()}}


@pytest.mark.usefixtures("installed")
def test_two_processes_do_what_one_does() -> None:
    one = _train_in(ComputeSettings(gpus=0))
    two = launch(_train_in, 2, ComputeSettings(gpus=0, processes=2, timeout=120))
    assert one["losses"] == pytest.approx(two["losses"], rel=1e-8)
    assert any(name.startswith("own.project") for name in one["tensors"])
    for name, tensor in one["tensors"].items():
        torch.testing.assert_close(two["tensors"][name], tensor, rtol=1e-8, atol=1e-10)
