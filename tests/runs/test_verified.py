"""Files are whole and as they were written, or refused."""

from __future__ import annotations

import itertools
import os
import random
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from small_disk import small_file_system

from plopcli.errors import DamagedFileError, DataError, MachineError
from plopcli.runs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from plopcli.runs.verified import NotPlainError, content_digest, read_verified, write_verified

CONTENT: dict[str, Any] = {
    "step": 3,
    "rate": 0.1,
    "infinite": float("inf"),
    "nothing": None,
    "flag": True,
    "name": "Käse \udcff",
    "raw": b"\x00\x01",
    "state": {0: {"momentum": torch.randn(3, 4)}, 1: (1, [2.5, "x"])},
    "half": torch.randn(5).to(torch.bfloat16),
    "one": torch.tensor(7),
    "none": torch.zeros(0, 3),
    "mask": torch.tensor([True, False]),
    "wide": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
}


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.stride() == other.stride() and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(_same(one[name], other[name]) for name in one)
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other) and one == other


def test_round_trip(tmp_path):
    write_verified(tmp_path / "a.pt", CONTENT)
    assert _same(read_verified(tmp_path / "a.pt"), CONTENT)
    assert os.listdir(tmp_path) == ["a.pt"]  # noqa: PTH208


def test_other_programs_read_it_as_well(tmp_path):
    write_verified(tmp_path / "a.pt", CONTENT)
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    assert content.pop("digest") == content_digest(content)


def test_a_view_is_written_without_what_lies_around_it(tmp_path):
    large = torch.zeros(100_000)
    write_verified(tmp_path / "a.pt", {"view": large[5:7], "wide": torch.ones(1).expand(3)})
    assert (tmp_path / "a.pt").stat().st_size < 10_000
    assert read_verified(tmp_path / "a.pt")["wide"].tolist() == [1, 1, 1]


def test_ordered_dicts_and_parameters_come_back_plain(tmp_path):
    write_verified(tmp_path / "a.pt", {"state": OrderedDict(w=torch.nn.Parameter(torch.ones(2)))})
    state = read_verified(tmp_path / "a.pt")["state"]
    assert type(state) is dict
    assert type(state["w"]) is torch.Tensor


def test_the_digest_tells_apart_whatever_differs():
    base = torch.arange(6.0)
    contents: list[Any] = [
        {"a": base},
        {"b": base},
        {"a": base.view(2, 3)},
        {"a": base.view(3, 2)},
        {"a": base.view(3, 2).t().contiguous().t()},
        {"a": base.double()},
        {"a": base.view(torch.int32)},
        {"a": base + 1},
        {"a": base, "b": 0},
        {"b": 0, "a": base},
        *(
            {"a": value}
            for value in (0, 0.0, -0.0, False, None, "0", b"0", [0], (0,), [[0]], [0, 0], "", [], {}, {0: 0})
        ),
        {"a": ["x", "y"]},
        {"a": ["xy", ""]},
    ]
    digests = [content_digest(content) for content in contents]
    assert len(set(digests)) == len(digests)
    assert content_digest({"a": base.clone()}) == digests[0]


def test_only_plain_values_are_written(tmp_path):
    with pytest.raises(NotPlainError, match="PosixPath"):
        write_verified(tmp_path / "a.pt", {"path": tmp_path})
    with pytest.raises(NotPlainError, match="sparse"):
        write_verified(tmp_path / "a.pt", {"sparse": torch.eye(3).to_sparse()})
    assert list(tmp_path.iterdir()) == []


def _checkpoint_file(folder: Path) -> Path:
    torch.manual_seed(0)
    checkpoint = Checkpoint(
        step=1,
        classes=["background", "cat", "dog"],
        class_counts=[2, 1],
        task_name="1-1",
        task_steps=[[0, 1], [2]],
        task_groups=[[0, 1], [2]],
        settings={"seed": 3, "model": {"backbone": "resnet18"}},
        model={"conv.weight": torch.randn(4, 3), "conv.bias": torch.randn(4)},
        method={"thresholds": torch.tensor([0.1, float("inf")])},
    )
    save_checkpoint(folder / "step-1.pt", checkpoint)
    return folder / "step-1.pt"


def _as_content(checkpoint: Checkpoint) -> dict[str, Any]:
    return dict(vars(checkpoint))


def test_every_truncation_is_noticed(tmp_path):
    path = _checkpoint_file(tmp_path)
    whole = path.read_bytes()
    for length in (0, 1, len(whole) // 2, len(whole) - 1, *range(2, len(whole), 97)):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedFileError, match=r"step-1\.pt"):
            load_checkpoint(path)


def test_no_flipped_bit_gives_another_model(tmp_path):
    path = _checkpoint_file(tmp_path)
    whole, content = path.read_bytes(), _as_content(load_checkpoint(path))
    rng, refused = random.Random(0), 0
    for _ in range(400):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            loaded = load_checkpoint(path)
        except DataError as error:
            refused += 1
            assert error.hint  # noqa: PT017
        else:  # zip leaves room between its members, where nothing is read
            assert _same(_as_content(loaded), content)
    assert refused > 100


def test_every_byte_of_a_small_file_matters_or_is_not_read(tmp_path):
    path = tmp_path / "a.pt"
    write_verified(path, {"weight": torch.arange(4.0), "name": "x"})
    whole, content = path.read_bytes(), read_verified(path)
    for at, change in itertools.product(range(0, len(whole), 3), (0xFF, 0x01)):
        damaged = bytearray(whole)
        damaged[at] ^= change
        path.write_bytes(damaged)
        try:
            assert _same(read_verified(path), content)
        except DamagedFileError as error:  # what a reader falls back on an older file for
            assert str(path) in error.message  # noqa: PT017


def test_a_tensor_that_a_small_file_claims_to_be_huge_is_not_unfolded(tmp_path):
    torch.save({"a": torch.zeros(1).expand(1 << 45), "digest": "0"}, tmp_path / "a.pt")
    with pytest.raises(DamagedFileError):
        read_verified(tmp_path / "a.pt")


def test_a_file_that_inflates_is_refused(tmp_path):
    write_verified(tmp_path / "a.pt", {"a": torch.zeros(300_000)})
    with zipfile.ZipFile(tmp_path / "a.pt") as stored, zipfile.ZipFile(tmp_path / "b.pt", "w") as deflated:
        for info in stored.infolist():
            deflated.writestr(info.filename, stored.read(info), zipfile.ZIP_DEFLATED)
    assert (tmp_path / "b.pt").stat().st_size < 10_000
    with pytest.raises(DataError, match="compressed"):
        read_verified(tmp_path / "b.pt")


def test_a_full_disk_leaves_the_file_that_was_there(tmp_path):
    with small_file_system(tmp_path) as disk:
        path = disk / "step-1.pt"
        write_verified(path, {"a": torch.zeros(1000)})
        before = path.read_bytes()
        with pytest.raises(MachineError) as caught:
            write_verified(path, {"a": torch.zeros(500_000)})
        message = str(caught.value)
        assert "The disk is full" in message
        assert re.search(r"needs 2\.0 MB, and 5\d\d\.\d kB are free", message)
        assert "before is intact" in message
        assert "--resume" in message
        assert path.read_bytes() == before
        assert list(disk.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path):
    with small_file_system(tmp_path) as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(MachineError, match="cannot be written: Read-only file system"):
            write_verified(disk / "a.pt", {"a": 1})


def test_killed_in_the_middle_it_leaves_the_old_file_and_the_next_write_tidies_up(tmp_path):
    path = tmp_path / "a.pt"
    write_verified(path, {"round": -1})
    program = (
        "import sys, torch; from pathlib import Path; from plopcli.runs.verified import write_verified\n"
        "for round in range(1000000):\n"
        "    write_verified(Path(sys.argv[1]), {'round': round, 'a': torch.full((2_000_000,), float(round))})\n"
    )
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", program, str(path)]) as process:
            # killed while the temporary file is there, which is nearly all of the time
            deadline = time.monotonic() + 60
            while not list(tmp_path.glob("*.part")) and time.monotonic() < deadline:
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
        content = read_verified(path)
        assert content["round"] == -1 or bool((content["a"] == content["round"]).all())
    write_verified(path, {"round": -1})
    assert list(tmp_path.iterdir()) == [path]


def test_a_stop_in_the_middle_leaves_no_temporary_file(tmp_path, monkeypatch):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    write_verified(tmp_path / "a.pt", {"a": 1})
    monkeypatch.setattr(torch, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        write_verified(tmp_path / "a.pt", {"a": 2})
    assert list(tmp_path.iterdir()) == [tmp_path / "a.pt"]
    assert read_verified(tmp_path / "a.pt") == {"a": 1}


def test_files_and_their_folder_are_flushed_before_they_count(tmp_path, monkeypatch):
    done: list[str] = []
    flush, rename = os.fsync, Path.replace

    def fsync(handle: int) -> None:
        done.append("folder" if os.path.samestat(os.fstat(handle), tmp_path.stat()) else "file")
        flush(handle)

    def replace(self: Path, target: Path) -> Path:
        done.append("rename")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    write_verified(tmp_path / "a.pt", {"a": 1})
    assert done == ["file", "rename", "folder"]
