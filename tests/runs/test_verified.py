"""Files are whole and as they were written, or refused."""

from __future__ import annotations

import dataclasses
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
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from small_disk import small_file_system

from plopcli.errors import DamagedFileError, DataError, MachineError
from plopcli.files.atomic import remove_temporary
from plopcli.runs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from plopcli.runs.verified import read_verified, write_verified

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
    assert _same(torch.load(tmp_path / "a.pt", weights_only=True), CONTENT)


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


def test_only_plain_values_are_written(tmp_path):
    with pytest.raises(AssertionError, match="PosixPath"):
        write_verified(tmp_path / "a.pt", {"path": tmp_path})
    with pytest.raises(AssertionError, match="Tensor is no plain value"):
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


def test_no_flipped_bit_of_a_checkpoint_goes_unnoticed(tmp_path):
    path = _checkpoint_file(tmp_path)
    whole, rng = path.read_bytes(), random.Random(0)
    for _ in range(400):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(DamagedFileError, match=r"step-1\.pt\.sha256"):
            load_checkpoint(path)


def test_without_a_digest_beside_it_no_flipped_bit_gives_another_content(tmp_path):
    """Snapshots, and checkpoints that were copied elsewhere: the archive's own check sums have to do."""
    path = tmp_path / "a.pt"
    write_verified(path, {"weight": torch.arange(4.0), "other": torch.ones(4), "name": "x"})
    whole, content = path.read_bytes(), read_verified(path)
    refused = 0
    # Every bit where something is said; zip leaves room between its members, where nothing is read.
    places = [at for at in range(len(whole)) if whole[at] or at % 5 == 0]
    for number, at in enumerate(places):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << number % 8
        path.write_bytes(damaged)
        try:
            assert _same(read_verified(path), content)
        except DamagedFileError as error:  # what a reader falls back on an older file for
            refused += 1
            assert str(path) in error.message  # noqa: PT017
    assert refused > len(places) / 3


class Crash(BaseException):
    """The process is gone: nothing that would tidy up is run."""


def _crash_before(patch: pytest.MonkeyPatch, number: int) -> list[str]:
    """Ends the process before its n-th operation on files; gives the operations that were done."""
    done: list[str] = []

    def wrap(owner: Any, name: str) -> None:
        genuine = getattr(owner, name)

        def counted(*arguments: Any, **more: Any) -> Any:
            if len(done) >= number:
                raise Crash
            done.append(name)
            return genuine(*arguments, **more)

        patch.setattr(owner, name, counted)

    for owner, name in ((os, "open"), (os, "fsync"), (Path, "replace"), (Path, "unlink")):
        wrap(owner, name)
    return done


def test_a_crash_at_any_operation_leaves_the_old_or_the_new_checkpoint_usable(tmp_path, monkeypatch):
    old = load_checkpoint(_checkpoint_file(tmp_path))
    path = tmp_path / "step-1.pt"
    new = dataclasses.replace(old, settings={"seed": 4})
    seeds = []
    for number in itertools.count():
        save_checkpoint(path, old)
        with monkeypatch.context() as patch:
            done = _crash_before(patch, number)
            with suppress(Crash):
                save_checkpoint(path, new)
        seeds.append(load_checkpoint(path).settings["seed"])
        if len(done) < number:
            break
    assert seeds == sorted(seeds), "old ones, then new ones"
    assert (seeds[0], seeds[-1]) == (3, 4)
    assert len(seeds) > 8


def test_a_digest_is_never_on_the_disk_beside_another_file(tmp_path, monkeypatch):
    """Whatever of the operations since the last flush a power cut takes back: the order makes it so."""
    path = _checkpoint_file(tmp_path)
    checkpoint, done = load_checkpoint(path), []
    flush, rename, remove = os.fsync, Path.replace, Path.unlink

    def fsync(handle: int) -> None:
        done.append("flush folder" if os.path.samestat(os.fstat(handle), tmp_path.stat()) else "flush file")
        flush(handle)

    def replace(self: Path, target: Path) -> Path:
        done.append(f"name {target.name}")
        return rename(self, target)

    def unlink(self: Path, **more: Any) -> None:
        if self.suffix != ".part":
            done.append(f"remove {self.name}")
        remove(self, **more)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    monkeypatch.setattr(Path, "unlink", unlink)
    save_checkpoint(path, checkpoint)
    assert done == [
        *("remove step-1.pt.sha256", "flush folder"),
        *("flush file", "name step-1.pt", "flush folder"),
        *("flush file", "name step-1.pt.sha256", "flush folder"),
    ]


def test_the_digest_is_one_that_other_programs_compare(tmp_path):
    path = _checkpoint_file(tmp_path)
    words = ["sha256sum", "-c", "step-1.pt.sha256"]
    assert subprocess.run(words, cwd=tmp_path, check=False, capture_output=True).returncode == 0
    path.write_bytes(path.read_bytes()[:-1])
    assert subprocess.run(words, cwd=tmp_path, check=False, capture_output=True).returncode == 1
    (tmp_path / "step-1.pt.sha256").unlink()
    with pytest.raises(DamagedFileError):
        load_checkpoint(path)


def test_content_that_holds_itself_is_refused_or_read_in_no_time(tmp_path):
    endless: list[Any] = []
    endless.append(endless)
    many: list[Any] = [torch.ones(1)]
    for _ in range(60):
        many = [many, many]
    torch.save({"a": endless, "b": many}, tmp_path / "a.pt")
    assert set(read_verified(tmp_path / "a.pt")) == {"a", "b"}
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(100_000)
    try:
        torch.save({"a": deep}, tmp_path / "b.pt")
    finally:
        sys.setrecursionlimit(limit)
    with pytest.raises(DamagedFileError):
        read_verified(tmp_path / "b.pt")


def test_a_tensor_that_a_small_file_claims_to_be_huge_is_not_unfolded(tmp_path):
    torch.save({"a": torch.zeros(1).expand(1 << 45)}, tmp_path / "a.pt")
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


def test_killed_in_the_middle_it_leaves_the_old_file_and_the_next_start_tidies_up(tmp_path):
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
    assert len(list(tmp_path.iterdir())) > 1, "they might be of another process"
    remove_temporary(tmp_path)
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
