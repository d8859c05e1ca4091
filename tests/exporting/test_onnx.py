"""ONNX files in ONNX Runtime. One export serves all tests: it takes seconds."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from trained_files import write_checkpoint

import plopcli
from plopcli.cli.app import main
from plopcli.errors import DataError, UsageError
from plopcli.exporting.check import noise
from plopcli.exporting.export import ExportOptions, export
from plopcli.exporting.network import InferenceNetwork
from plopcli.runs.restore import build_model, load

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
#: Read before a fixture takes such variables away.
PHOTOS = os.environ.get("PLOP_PHOTOS")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    # A window of 4 at output stride 8: the maps of all pictures here are larger.
    return write_checkpoint(tmp_path_factory.mktemp("run") / "step-1.pt", model__pooling=4)


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("exported") / "model.onnx"
    assert main(["export", str(checkpoint), str(target)]) == 0
    return target


def session_of(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def test_logits_of_any_size_and_batch(checkpoint, exported):
    network = InferenceNetwork(build_model(*load(checkpoint)), 4)
    session = session_of(exported)
    (entry,), (out,) = session.get_inputs(), session.get_outputs()
    assert (entry.name, entry.type, entry.shape) == ("pixels", "tensor(uint8)", ["batch", "height", "width", 3])
    assert (out.name, out.type, out.shape) == ("logits", "tensor(float)", ["batch", 17, "height", "width"])
    equal = pixels = 0
    for picture in noise(72):
        for batch in (1, 3):
            fed = np.stack([picture] * batch)
            with torch.inference_mode():
                ours = network(torch.from_numpy(fed)).numpy()
            (theirs,) = session.run(None, {"pixels": fed})
            assert np.abs(ours - theirs).max() < 1e-4 * np.abs(ours).max()
            equal += int((ours.argmax(1) == theirs.argmax(1)).sum())
            pixels += ours[:, 0].size
    assert equal / pixels >= 0.9999


def test_its_metadata_say_all_that_is_needed(exported):
    metadata = session_of(exported).get_modelmeta().custom_metadata_map
    facts = {name: json.loads(value) for name, value in metadata.items() if name not in ("format", "format_version")}
    assert metadata["format"] == "plop-model"
    assert facts["classes"][0] == "background"
    assert len(facts["palette"]) == 17
    assert facts["mean"] == [0.485, 0.456, 0.406]
    assert facts["shorter_side"] == 64
    assert facts["task"] == "15-1"
    assert facts["pooling"] == 4


def test_it_holds_nothing_of_this_machine_and_no_norm(exported):
    import onnx

    content = exported.read_bytes()
    assert str(Path(plopcli.__file__).parent).encode() not in content
    assert b"site-packages" not in content
    operations = {node.op_type for node in onnx.load(exported).graph.node}
    assert "BatchNormalization" not in operations
    assert {"Conv", "Resize", "CumSum"} <= operations


def test_plop_predicts_with_it(checkpoint, exported):
    picture = noise(130)[1]
    ours, theirs = (plopcli.load(path, device="cpu").predict(picture) for path in (checkpoint, exported))
    assert ours.classes == theirs.classes
    assert np.array_equal(ours.palette, theirs.palette)
    # The file upsamples to the size of its input, and plop from there; the model goes the whole way at once.
    assert (ours.labels == theirs.labels).mean() > 0.97
    with pytest.raises(UsageError, match="knows its step"):
        plopcli.load(exported, step=1)


def test_foreign_files_are_named(tmp_path, exported):
    import onnx

    foreign = onnx.load(exported)
    del foreign.metadata_props[:]
    onnx.save(foreign, tmp_path / "foreign.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"12345678")
    for name, message in (("foreign", "no model that `plop export` wrote"), ("broken", "is no ONNX file")):
        with pytest.raises(DataError, match=message):
            plopcli.load(tmp_path / f"{name}.onnx")
    with pytest.raises(DataError, match="There is no file"):
        plopcli.load(tmp_path / "none.onnx")


@pytest.mark.slow
@pytest.mark.skipif(PHOTOS is None, reason="PLOP_PHOTOS names no folder with photographs")
@pytest.mark.parametrize("backbone", ["mobilenet_v2", "resnet18"])
def test_genuine_photographs(tmp_path, backbone):
    photos = sorted(Path(str(PHOTOS)).glob("*.jpg"))[:20]
    assert photos
    width = 64 if backbone == "mobilenet_v2" else 16
    checkpoint = write_checkpoint(
        tmp_path / "step-1.pt", model__backbone=backbone, model__width=width, model__output_stride=16, data__crop=512
    )
    done = export(checkpoint, tmp_path / "model.onnx", ExportOptions(check=photos))
    assert done.checked is not None
    assert done.checked.difference < 1e-4
    assert done.checked.agreement >= 0.9999


def test_the_page_on_using_models_runs(exported, tmp_path, monkeypatch, capsys):
    """docs/python-api.md: every snippet, and every command but the installation and the export to ONNX, done above."""
    page = (Path(__file__).parents[2] / "docs" / "python-api.md").read_text("utf-8")
    monkeypatch.chdir(tmp_path)
    for step in (0, 1):
        write_checkpoint(Path(f"runs/demo-plop/checkpoints/step-{step}.pt"), step)
    Path("my-photos").mkdir()
    for name, pixels in zip(("photo.jpg", "my-photos/a.jpg", "my-photos/b.jpg"), noise(60), strict=True):
        Image.fromarray(pixels).save(name)
    shutil.copy(exported, "demo.onnx")
    commands = [line for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) for line in block.splitlines()]
    assert len(commands) == 7
    for command in commands:
        words = shlex.split(command, comments=True)
        if words[0] == "plop" and "demo.onnx" not in words:
            assert main(words[1:]) == 0, command
    assert Path("seen/b.overlay.png").exists()
    assert Path("demo.ts").exists()
    capsys.readouterr()
    space: dict[str, object] = {}
    for snippet in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(snippet, "docs/python-api.md", "exec"), space)
    printed = capsys.readouterr().out
    assert "<SegmentationModel resnet18, toy 15-1 after step 1" in printed
    assert "no-such-file.jpg does not exist." in printed
    assert Path("photo-overlay.png").exists()
    side = space["shorter"]  # the snippet brings the square photo to the size that the model was measured at
    assert space["labels"].shape == (side, side)  # type: ignore[attr-defined]
