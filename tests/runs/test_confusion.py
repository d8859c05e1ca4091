"""The file of a confusion matrix."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from plopcli.errors import DamagedFileError, DataError
from plopcli.runs.confusion import Confusion, read_confusion, write_confusion
from plopcli.runs.folder import RunFolder
from plopcli.runs.results import Change, Results, write_results
from plopcli.runs.rewind import Position, rewind


def matrix(classes: int, seed: int = 0) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    return np.random.default_rng(seed).integers(0, 1 << 40, (classes, classes))


def test_a_matrix_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "confusion" / "step-3.npz"
    written = Confusion(["background", "dîning table", "owl"], matrix(3))
    write_confusion(path, written)
    read = read_confusion(path)
    assert read.classes == written.classes
    assert np.array_equal(read.counts, written.counts)
    assert read.counts.dtype == np.int64
    assert read.domains == {}
    assert [file.name for file in path.parent.iterdir()] == ["step-3.npz"]


def test_domains_keep_their_names_and_order(tmp_path: Path) -> None:
    write_confusion(tmp_path / "one.npz", Confusion(["a", "b"], matrix(2), {"z": matrix(2, 1), "a": matrix(2, 2)}))
    read = read_confusion(tmp_path / "one.npz")
    assert list(read.domains) == ["z", "a"]
    assert np.array_equal(read.domains["a"], matrix(2, 2))


def test_numpy_alone_can_read_it(tmp_path: Path) -> None:
    write_confusion(tmp_path / "one.npz", Confusion(["a", "b"], matrix(2)))
    with np.load(tmp_path / "one.npz") as arrays:
        assert sorted(arrays) == ["classes", "counts"]


def test_a_missing_one_names_what_measures_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no confusion matrix") as raised:
        read_confusion(tmp_path / "step-0.npz")
    assert "plop evaluate" in str(raised.value.hint)


@pytest.mark.parametrize(
    "arrays",
    [
        {"counts": matrix(3), "classes": np.array(["a", "b"])},
        {"counts": matrix(2).astype(np.float64), "classes": np.array(["a", "b"])},
        {"counts": matrix(2)},
        {"classes": np.array(["a", "b"])},
        {"counts": matrix(2), "classes": np.array(["a", "b"]), "domains": np.array(["x"]), "domain_counts": matrix(2)},
        {"counts": np.array([object()]), "classes": np.array(["a"])},
        {"counts": np.zeros((3000, 3000), np.int64), "classes": np.array(["a"] * 3000)},
    ],
)
def test_what_does_not_fit_is_refused(
    arrays: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]], tmp_path: Path
) -> None:
    np.savez_compressed(tmp_path / "one.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(DamagedFileError):
        read_confusion(tmp_path / "one.npz")


def test_a_file_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    write_confusion(tmp_path / "one.npz", Confusion(["a", "b"], matrix(2)))
    content = (tmp_path / "one.npz").read_bytes()
    for length in (0, 10, len(content) // 2, len(content) - 30):
        (tmp_path / "one.npz").write_bytes(content[:length])
        with pytest.raises(DamagedFileError):
            read_confusion(tmp_path / "one.npz")


def test_going_on_and_beginning_anew_leave_no_stale_matrix(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step in range(4):
        write_confusion(folder.confusion(step), Confusion(["a", "b"], matrix(2, step)))
    (tmp_path / "confusion" / "mine.npz").write_text("kept")
    (tmp_path / "confusion" / "step-4.npz.part").write_text("left by a stop")
    entries = [{"step": step, "iou": {"a": 1.0}, "miou": {"all": 1.0, "old": 1.0, "new": None}} for step in range(4)]
    header = {"dataset": "toy", "task": "15-1", "protocol": "overlapped", "method": "ft", "seed": 1, "classes": ["a"]}
    write_results(Results.model_validate({**header, "steps": entries, "avg": 1.0}), folder.results)
    rewind(folder, Position(3, measured=2))
    assert sorted(path.name for path in tmp_path.glob("confusion/step-*.npz")) == ["step-0.npz", "step-1.npz"]
    stored = folder.read_results()
    assert stored is not None
    assert [step.step for step in stored.steps] == [0, 1]
    assert stored.forgetting == Change(mean=0.0, mean_foreground=None, by_class={"a": 0.0})
    folder.settings.write_text("")
    folder.clear()
    assert [path.name for path in tmp_path.glob("confusion/*")] == ["mine.npz"]


def test_no_flipped_bit_gives_another_matrix(tmp_path: Path) -> None:
    path, written = tmp_path / "one.npz", Confusion(["a", "b"], matrix(2), {"z": matrix(2, 1), "a": matrix(2, 2)})
    write_confusion(path, written)
    content = path.read_bytes()
    for position in range(0, 8 * len(content), 17):
        flipped = bytearray(content)
        flipped[position // 8] ^= 1 << position % 8
        path.write_bytes(flipped)
        try:
            read = read_confusion(path)
        except DamagedFileError:
            continue
        assert read.classes == written.classes
        assert np.array_equal(read.counts, written.counts)
        assert list(read.domains) == list(written.domains)
        assert all(np.array_equal(read.domains[name], written.domains[name]) for name in written.domains)
