"""The folder of a run may come from a stranger, and from a run that was killed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from plopcli.errors import UsageError
from plopcli.files.atomic import write_atomic
from plopcli.runs.folder import RunFolder

NAMES = ("log.txt", "metrics.jsonl", "checkpoints", "confusion", "tensorboard", "curves", "overlays", "profile")


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """What a link leads to: a file in a folder."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "step-0.pt").write_text("mine")
    (folder / "a.png").write_text("mine")
    return folder


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("work", [RunFolder.create, RunFolder.clear])
def test_a_folder_with_links_is_not_written(
    tmp_path: Path, outside: Path, name: str, work: Callable[[RunFolder], None]
) -> None:
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    run.settings.touch()
    (run.path / name).symlink_to(outside / "a.png" if "." in name else outside)
    with pytest.raises(UsageError, match=rf"run/{name} is a link"):
        work(run)
    assert sorted(path.name for path in outside.iterdir()) == ["a.png", "step-0.pt"]
    assert (outside / "a.png").read_text() == "mine"


def test_the_folder_itself_may_be_a_link_and_whole_files_replace_theirs(tmp_path: Path, outside: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "real")
    run = RunFolder(tmp_path / "run")
    run.create()
    run.results.symlink_to(outside / "a.png")
    write_atomic(run.results, "{}")
    assert (tmp_path / "real" / "results.json").read_text() == "{}"
    assert (outside / "a.png").read_text() == "mine"


def test_what_a_killed_run_has_left_half_written_goes_at_the_next_start(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for folder in (".", "checkpoints", "confusion", "tensorboard"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / ".plop-0123.part").touch()
    run.create()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_what_a_checkpoint_counts_on_can_be_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder(tmp_path)
    run.flush()
    run.append_metrics([{"step": 0}])
    run.tensorboard.mkdir()
    (run.tensorboard / "events.out.tfevents.1").touch()
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: flushed.append(os.fstat(handle).st_ino))
    run.flush()
    files = (run.metrics, run.tensorboard / "events.out.tfevents.1", run.path, run.tensorboard)
    assert flushed == [path.stat().st_ino for path in files], "the names, too"


def test_no_flipped_bit_of_the_metrics_gives_another_figure(tmp_path: Path) -> None:
    rows = [{"step": 0, "iteration": at, "lr": 0.01, "loss": 1.5 / 7, "terms": {"ce": 1.5 / 7}} for at in range(3)]
    run = RunFolder(tmp_path)
    run.append_metrics(rows)
    content = run.metrics.read_bytes()
    assert run.read_metrics() == rows
    left = set()
    for position in range(0, 8 * len(content), 7):
        flipped = bytearray(content)
        flipped[position // 8] ^= 1 << position % 8
        run.metrics.write_bytes(flipped)
        read = [{name: row[name] for name in rows[0]} for row in run.read_metrics()]
        assert all(row in rows for row in read)
        left.add(len(read))
    assert left == {1, 2, 3}, "one line is lost, two where the bit is of the end between them, none where it is a name"
