"""The weights of a finished run, for other programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from running import run_scenario
from safetensors import safe_open
from safetensors.torch import load_file
from tensors import assert_same_tensors

import plopcli
from plopcli.files.digest import check_digest
from plopcli.models.segmenter import build_segmenter
from plopcli.runs.checkpoint import Checkpoint, load_checkpoint
from plopcli.runs.folder import RunFolder
from plopcli.runs.rewind import Position, rewind
from plopcli.runs.weights import write_weights
from plopcli.settings.sections import ModelSettings


def _written(folder: Path) -> Path:
    checkpoint = Checkpoint(
        step=1,
        classes=["background", "Käse", "dog"],
        class_counts=[2, 1],
        task_name="1-1",
        task_steps=[[0, 1], [2]],
        task_groups=[[0, 1], [2]],
        settings={"model": {"backbone": "resnet18"}},
        model={"w": torch.randn(4, 3, 1, 1).to(memory_format=torch.channels_last), "b": torch.tensor(3)},
    )
    write_weights(folder / "step-1.safetensors", checkpoint)
    return folder / "step-1.safetensors"


def _facts(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    plain = ("format", "task", "version_of_plop")
    return {name: value if name in plain else json.loads(value) for name, value in metadata.items()}


def test_it_holds_what_is_needed_to_use_the_model(tmp_path):
    path = _written(tmp_path)
    assert _facts(path) == {
        "format": "plop-weights",
        "version_of_plop": plopcli.__version__,
        "classes": ["background", "Käse", "dog"],
        "class_counts": [2, 1],
        "task": "1-1",
        "step": 1,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "model": {"backbone": "resnet18"},
    }
    assert load_file(path)["w"].shape == (4, 3, 1, 1)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["step-1.safetensors", "step-1.safetensors.sha256"]
    check_digest(path)


def test_a_finished_run_leaves_those_of_its_last_step(tiny, quiet):
    settings = tiny()
    run_scenario(settings, console=quiet)
    folder = RunFolder(settings.settings.run_folder)
    assert [path.name for path in folder.path.glob("checkpoints/*.safetensors")] == ["step-2.safetensors"]
    facts, checkpoint = _facts(folder.weights(2)), load_checkpoint(folder.checkpoint(2))
    assert facts["classes"] == checkpoint.classes
    model = build_segmenter(ModelSettings.model_validate(facts["model"]), facts["class_counts"])
    model.load_state_dict(load_file(folder.weights(2)))
    assert_same_tensors(model.state_dict(), checkpoint.model)

    folder.weights(2).unlink()
    run_scenario(settings, console=quiet, resume=True)
    assert folder.weights(2).is_file()
    rewind(folder, Position(2))
    assert not folder.weights(2).exists()
    write_weights(folder.weights(2), checkpoint)
    folder.clear()
    assert list((folder.path / "checkpoints").iterdir()) == []
