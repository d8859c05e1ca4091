"""Files that are made to do harm, and names that lead out of a folder."""

from __future__ import annotations

import ast
import io
import json
import struct
import subprocess
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import plopcli
from plopcli.data.matlab import read_segmentation
from plopcli.data.reading import UnusableFileError, read_image, read_mask
from plopcli.data.samples import Sample
from plopcli.errors import DataError, PlopError
from plopcli.resolution.layers import resolve_settings
from plopcli.runs.folder import RunFolder
from plopcli.scenarios.published_splits import read_splits
from plopcli.scenarios.tasks import resolve_task

SOURCE = Path(plopcli.__file__).parent
DEEP = 200_000
#: Modules of the standard library and of NumPy that run code from what they read.
UNSAFE = {"pickle", "marshal", "shelve", "dill", "joblib", "yaml"}


def _png(width: int, height: int) -> bytes:
    """A picture that says it has so many pixels, in some hundred bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1 << 16)))
        + chunk(b"IEND", b"")
    )


def test_a_picture_that_would_fill_the_memory_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(_png(60_000, 60_000))
    for read in (read_image, read_mask):
        with pytest.raises(UnusableFileError, match="exceeds limit"):
            read(tmp_path / "a.png")


def test_a_picture_of_another_kind_than_pictures_is_not_opened(tmp_path, monkeypatch):
    """Pillow would start Ghostscript for this one."""
    Image.new("RGB", (4, 4)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")

    def started(*_: object, **__: object) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "check_call", started)
    monkeypatch.setattr(subprocess, "Popen", started)
    with pytest.raises(UnusableFileError, match="cannot be decoded"):
        read_image(tmp_path / "a.png")


def test_a_phones_picture_with_a_second_one_inside_is_still_read(tmp_path):
    views = [Image.new("RGB", (6, 4), colour) for colour in ("red", "blue")]
    views[0].save(tmp_path / "a.mpo", save_all=True, append_images=views[1:])
    (tmp_path / "a.mpo").rename(tmp_path / "a.jpg")
    assert read_image(tmp_path / "a.jpg").size == (6, 4)


def test_a_split_file_that_claims_to_be_huge_is_refused(tmp_path):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<i8", "fortran_order": False, "shape": (1 << 60,)})
    (tmp_path / "train-0.npy").write_bytes(stream.getvalue())
    with pytest.raises(DataError, match="cannot be read"):
        read_splits(tmp_path, 1, (Sample("a", Path(), Path()),))


def test_a_label_map_that_inflates_is_refused(tmp_path):
    bomb = zlib.compress(bytes(1 << 27), 9)
    (tmp_path / "a.mat").write_bytes(bytes(124) + b"\x00\x01IM" + struct.pack("<II", 15, len(bomb)) + bomb)
    with pytest.raises(DataError, match="too large"):
        read_segmentation(tmp_path / "a.mat")


def test_structures_that_are_nested_without_end(tmp_path):
    """Each parser has its limit, and none of them is the program's end."""
    (tmp_path / "a.toml").write_text("steps = " + "[" * 100_000)
    with pytest.raises(PlopError, match="is not a TOML file"):
        resolve_task(str(tmp_path / "a.toml"), ["background", "cat"], "folder")
    with pytest.raises(PlopError, match="is not a TOML file"):
        resolve_settings({}, config=tmp_path / "a.toml", environment={})
    folder = RunFolder(tmp_path)
    for file in (folder.results, folder.metrics, folder.environment):
        file.write_text("[" * DEEP)
    with pytest.raises(DataError, match="not JSON"):
        folder.read_results()
    assert folder.read_metrics() == []
    assert folder.read_environment() == []


def test_numbers_that_are_too_long_to_be_numbers(tmp_path):
    (tmp_path / "a.toml").write_text(f"seed = {'9' * 10_000}\n")
    with pytest.raises(PlopError, match="is not a TOML file"):
        resolve_settings({}, config=tmp_path / "a.toml", environment={})
    folder = RunFolder(tmp_path)
    folder.metrics.write_text(json.dumps({"step": 0, "iteration": 0, "terms": {}}) + f"\n{'9' * 10_000}\n")
    assert len(folder.read_metrics()) == 1


@pytest.mark.parametrize("task", ["../../x", "/tmp/x", "a/../../x", ".."])
def test_no_name_of_a_task_leads_out_of_the_folder_of_runs(task):
    settings = resolve_settings({}, assignments=["data.dataset=toy", f"scenario.task={task}"], environment={}).settings
    folder = settings.run_folder
    assert len(folder.parts) == 2
    assert folder.parts[0] == "runs"
    assert folder.parts[1] not in ("", ".", "..")


def test_a_data_set_has_a_name_of_the_registry_so_that_it_leads_nowhere_else():
    with pytest.raises(PlopError, match="no data set called"):
        resolve_settings({}, assignments=["data.dataset=../../x"], environment={})


@cache
def _calls() -> list[tuple[str, ast.Call]]:
    return [
        (str(path.relative_to(SOURCE)), node)
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call)
    ]


def _name(call: ast.Call) -> str:
    return ast.unparse(call.func)


def test_no_shell_is_started_anywhere():
    for path, call in _calls():
        words = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert words.get("shell", "False") == "False", path
        assert _name(call) not in ("os.system", "os.popen", "subprocess.getoutput", "eval", "exec"), path


def test_nothing_is_loaded_in_a_way_that_runs_code():
    for path, call in _calls():
        words = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        if _name(call) == "torch.load":
            assert words.get("weights_only") == "True", path
        if _name(call) in ("np.load", "numpy.load"):
            assert words.get("allow_pickle") == "False", path
        assert _name(call).split(".")[0] not in UNSAFE or _name(call) == "pickle.UnpicklingError", path
        # `plop export` opens the TorchScript file that it has just written; tests/using shows that no other is opened.
        opens = ("torch.hub.load", "torch.package.PackageImporter")
        opens += () if str(path) == "exporting/torchscript_file.py" else ("torch.jit.load",)
        assert _name(call) not in opens, path
