"""Checkpoints come back as they went, and nothing else passes for one."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tensors import assert_same_tensors

from plopcli.errors import DamagedFileError, DataError
from plopcli.runs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint


def _checkpoint() -> Checkpoint:
    return Checkpoint(
        step=1,
        classes=["background", "cat", "dog"],
        class_counts=[2, 1],
        task_name="1-1",
        task_steps=[[0, 1], [2]],
        task_groups=[[0, 1], [2]],
        settings={"seed": 3},
        model={"weight": torch.arange(6.0).view(2, 3)},
        method={"thresholds": torch.tensor([0.1, float("inf")])},
    )


def test_round_trip(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.pt", _checkpoint())
    loaded = load_checkpoint(tmp_path / "a.pt")
    assert loaded.task.steps == ((0, 1), (2,))
    assert loaded.settings == {"seed": 3}
    assert torch.equal(loaded.model["weight"], _checkpoint().model["weight"])
    assert torch.equal(loaded.method["thresholds"], _checkpoint().method["thresholds"])
    assert list(tmp_path.iterdir()) == [tmp_path / "a.pt"]


class _Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("/tmp/plop-was-here"),))  # type: ignore[return-value]


def _random_bytes(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 20)


def _half(path: Path) -> None:
    save_checkpoint(path, _checkpoint())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _empty(path: Path) -> None:
    path.touch()


def _pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(_Payload()))


def _pickle_inside(path: Path) -> None:
    torch.save({"format": "plop-checkpoint", "version": 1, "x": _Payload()}, path)


def _without_digest(path: Path) -> None:
    torch.save({"format": "plop-checkpoint", "version": 2, **vars(_checkpoint())}, path)


def _other_types(path: Path) -> None:
    save_checkpoint(path, replace(_checkpoint(), classes=3))  # type: ignore[arg-type]


def _other_counts(path: Path) -> None:
    save_checkpoint(path, replace(_checkpoint(), class_counts=[2, 2]))


def _weights(path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(3)}, path)


def _newer(path: Path) -> None:
    torch.save({"format": "plop-checkpoint", "version": 99}, path)


def _lacking(path: Path) -> None:
    torch.save({"format": "plop-checkpoint", "version": 1, "step": 0}, path)


@pytest.mark.parametrize(
    "make",
    [
        _random_bytes,
        _half,
        _empty,
        _pickle,
        _pickle_inside,
        _weights,
        _newer,
        _lacking,
        _without_digest,
        _other_types,
        _other_counts,
    ],
    ids=lambda f: f.__name__,
)
def test_anything_else_is_one_clear_error(tmp_path: Path, make: object) -> None:
    path = tmp_path / "a.pt"
    make(path)  # type: ignore[operator]
    with pytest.raises(DataError) as error:
        load_checkpoint(path)
    assert str(path) in str(error.value)
    assert not Path("/tmp/plop-was-here").exists()


def test_version_1_without_a_digest_is_read_and_told_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.pt", "b.pt"):
        torch.save({"format": "plop-checkpoint", "version": 1, **vars(_checkpoint())}, tmp_path / name)
    loaded = [load_checkpoint(tmp_path / name) for name in ("a.pt", "b.pt")]
    for one in loaded:
        assert_same_tensors(one.model, _checkpoint().model)
    assert [record.getMessage().count(str(tmp_path)) for record in caplog.records] == [1]


def test_a_damaged_one_says_what_to_do(tmp_path: Path) -> None:
    path, downloaded = tmp_path / "checkpoints" / "step-3.pt", tmp_path / "theirs.pt"
    path.parent.mkdir()
    save_checkpoint(path, _checkpoint())
    content = bytearray(path.read_bytes())
    at = content.index(torch.arange(6.0).numpy().tobytes())
    content[at] ^= 1
    for file in (path, downloaded):
        file.write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"does not fit the digest.*\n.*remove step-3\.pt.*--resume"):
        load_checkpoint(path)
    with pytest.raises(DamagedFileError, match=r"does not fit the digest.*\nTake a copy") as error:
        load_checkpoint(downloaded)
    assert "remove" not in str(error.value), "it is not of a run that could make it again"


def test_a_missing_one_says_where_to_look(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"checkpoints/step-N\.pt"):
        load_checkpoint(tmp_path / "none.pt")
