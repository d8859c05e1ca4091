"""The weights of a finished run, for other programs."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from running import run_scenario
from safetensors.torch import load_file

from plopcli.errors import DamagedFileError, DataError
from plopcli.models.segmenter import build_segmenter
from plopcli.runs.checkpoint import Checkpoint, load_checkpoint
from plopcli.runs.folder import RunFolder
from plopcli.runs.rewinding import Position, rewind
from plopcli.runs.weights import read_weights, write_weights
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


def test_it_holds_what_is_needed_to_use_the_model(tmp_path):
    weights = read_weights(_written(tmp_path))
    assert weights.classes == ["background", "Käse", "dog"]
    assert (weights.class_counts, weights.task, weights.step) == ([2, 1], "1-1", 1)
    assert weights.mean == [0.485, 0.456, 0.406]
    assert weights.std == [0.229, 0.224, 0.225]
    assert weights.model == {"backbone": "resnet18"}
    assert weights.tensors["w"].shape == (4, 3, 1, 1)
    assert list(tmp_path.iterdir()) == [tmp_path / "step-1.safetensors"]


def test_damage_is_noticed(tmp_path):
    path = _written(tmp_path)
    whole, rng = path.read_bytes(), random.Random(1)
    damages = [whole[:length] for length in (0, 1, 8, len(whole) // 2, len(whole) - 1)]
    for _ in range(200):
        flipped = bytearray(whole)
        flipped[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        damages.append(bytes(flipped))
    for damaged in damages:
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"step-1\.safetensors"):
            read_weights(path)


def test_another_file_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(DataError, match="no weights that plop wrote"):
        read_weights(tmp_path / "a.safetensors")
    torch.save({"a": torch.zeros(1)}, tmp_path / "b.safetensors")
    with pytest.raises(DamagedFileError, match="no safetensors file"):
        read_weights(tmp_path / "b.safetensors")


def test_a_finished_run_leaves_those_of_its_last_step(tiny, quiet):
    settings = tiny()
    run_scenario(settings, console=quiet)
    folder = RunFolder(settings.settings.run_folder)
    assert [path.name for path in folder.path.glob("checkpoints/*.safetensors")] == ["step-2.safetensors"]
    weights, checkpoint = read_weights(folder.weights(2)), load_checkpoint(folder.checkpoint(2))
    assert weights.classes == checkpoint.classes
    model = build_segmenter(ModelSettings.model_validate(weights.model), weights.class_counts)
    model.load_state_dict(load_file(folder.weights(2)))
    assert all(torch.equal(tensor, checkpoint.model[name]) for name, tensor in model.state_dict().items())

    folder.weights(2).unlink()
    run_scenario(settings, console=quiet, resume=True)
    assert folder.weights(2).is_file()
    rewind(folder, Position(2))
    assert not folder.weights(2).exists()
    write_weights(folder.weights(2), checkpoint)
    folder.clear()
    assert list((folder.path / "checkpoints").iterdir()) == []
