"""The label maps of SBD, read from files that scipy.io.savemat (1.17) has written in SBD's structure."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from plopcli.data.matlab import read_segmentation
from plopcli.errors import DataError

FOLDER = Path(__file__).parent / "sbd"


def label_map() -> np.ndarray:
    labels = np.zeros((5, 7), np.uint8)
    labels[1:4, 2:6] = 15
    labels[4, 0] = 20
    labels[0, 6] = 255
    return labels


@pytest.mark.parametrize("name", ["compressed", "plain", "double"])
def test_label_maps(name):
    """Compressed as SBD's own, plain, and stored as floating point behind another variable."""
    found = read_segmentation(FOLDER / f"{name}.mat")
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, label_map())


def test_a_map_that_fits_into_four_bytes():
    np.testing.assert_array_equal(read_segmentation(FOLDER / "tiny.mat"), [[3, 0], [0, 7]])


@pytest.mark.parametrize(
    ("name", "part"), [("other", "no structure GTcls"), ("fraction", "other numbers than 0 to 255")]
)
def test_other_files_are_refused(name, part):
    with pytest.raises(DataError, match=part):
        read_segmentation(FOLDER / f"{name}.mat")


@pytest.mark.parametrize("source", ["plain", "compressed"])
def test_damage_is_always_one_clear_error(source, tmp_path):
    """StepSplits anywhere, or with any byte set to 255, the file is read or refused, and never anything else."""
    content = (FOLDER / f"{source}.mat").read_bytes()
    path = tmp_path / "a.mat"
    refused = 0
    for at in range(0, len(content), 13):
        for damaged in (content[:at], content[:at] + b"\xff" + content[at + 1 :]):
            path.write_bytes(damaged)
            try:
                read_segmentation(path)
            except DataError:
                refused += 1
    assert refused > len(content) / 13


def test_a_compressed_part_that_swells_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("plopcli.data.matlab._LARGEST", 1 << 16)
    packed = zlib.compress(bytes(1 << 20))
    header = (FOLDER / "plain.mat").read_bytes()[:128]
    path = tmp_path / "bomb.mat"
    path.write_bytes(header + struct.pack("<II", 15, len(packed)) + packed)
    with pytest.raises(DataError, match="too large"):
        read_segmentation(path)
