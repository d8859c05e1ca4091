"""Models from elsewhere that would fill the memory, never end, read other files or set something about this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from trained_files import write_checkpoint

import plopcli
from plopcli.errors import DamagedFileError, DataError
from plopcli.exporting.export import ExportOptions, export
from plopcli.models.classifiers import PLAIN
from plopcli.models.segmenter import build_for, build_segmenter
from plopcli.runs.restore import load
from plopcli.settings.sections import ModelSettings

#: Beyond an honest file of the same size; and seconds, start included, on a loaded machine.
MEMORY, TIME = 256 << 20, 60


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "step-1.pt")


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "a.png"
    Image.new("RGB", (70, 60)).save(path)
    return path


def peak(*words: str) -> tuple[int, int, str, float]:
    """Exit code, bytes at most, what was said, and seconds of a command."""
    start = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-m", "plopcli", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        said = process.stderr.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, used.ru_maxrss * 1024, said, time.monotonic() - start


def edited(checkpoint: Path, target: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    content = torch.load(checkpoint, weights_only=True)
    change(content)
    torch.save(content, target)
    return target


def test_a_network_that_its_file_does_not_hold_is_not_built(checkpoint: Path, picture: Path, tmp_path: Path) -> None:
    honest = peak("predict", str(checkpoint), str(picture), "--output", str(tmp_path / "out"))
    assert honest[0] == 0, honest[2]
    wide = edited(checkpoint, tmp_path / "wide.pt", lambda held: held["settings"]["model"].update(width=4096))
    code, memory, said, seconds = peak("predict", str(wide), str(picture), "--output", str(tmp_path / "out"))
    assert (code, said.count("Error: ")) == (3, 1)
    assert "describes a far larger network than the one whose weights it holds" in said
    assert memory < honest[1] + MEMORY
    assert seconds < TIME


@pytest.mark.parametrize(
    "change",
    [
        {"width": 2**40},
        {"width": 10**30},
        {"head_channels": 10**7},
        {"head_channels": 2**62},
        {"head_dilations": (1, 1, 10**9)},
    ],
)
def test_sizes_of_any_kind(change: dict[str, Any]) -> None:
    settings = ModelSettings(backbone="resnet18", width=8, head_channels=16)
    tensors = build_segmenter(settings, (3,)).state_dict()
    before = torch.get_rng_state()
    with pytest.raises(DataError, match="far larger network"):
        build_for(tensors, settings.model_copy(update=change), (3,), PLAIN)
    with pytest.raises(DataError, match="far larger network"):
        build_for(tensors, settings, (1,) * 100_000, PLAIN)
    assert torch.equal(before, torch.get_rng_state())
    build_for(tensors, settings, (3,), PLAIN).load_state_dict(tensors)


def test_settings_inside_a_checkpoint_set_nothing_about_this_machine(checkpoint: Path, tmp_path: Path) -> None:
    def change(held: dict[str, Any]) -> None:
        held["settings"]["data"] |= {"workers": 3000, "timeout": 1e9, "cache": True}
        held["settings"]["compute"] |= {"gpus": 64, "processes": 1000, "timeout": 1e9, "compile": "inductor"}

    _, settings = load(edited(checkpoint, tmp_path / "a.pt", change))
    assert (settings.data.workers, settings.data.timeout, settings.data.cache) == ("auto", 300.0, False)
    compute = settings.compute
    assert (compute.gpus, compute.processes, compute.timeout, compute.compile) == ("auto", None, 600.0, "off")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda held: held["settings"]["data"].update(crop=10**6), "crops of 1000000 pixels"),
        (
            lambda held: held["settings"]["train"].update(from_step={str(n): {} for n in range(1, 20_000)}),
            "at most 255 steps",
        ),
        (lambda held: held["settings"].update({f"key{n}": n for n in range(100_000)}), "cannot be read"),
    ],
)
def test_other_settings_without_bounds(checkpoint: Path, tmp_path: Path, change: Any, message: str) -> None:
    start = time.process_time()
    with pytest.raises(DataError, match=message) as caught:
        load(edited(checkpoint, tmp_path / "a.pt", change))
    assert len(str(caught.value)) < 5000
    assert time.process_time() - start < 10


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("network", {"width": 4096}, "other tensors than its metadata say"),
        ("shorter_side", 60_000, "lacks a sound shorter_side"),
        ("class_counts", [1] * 10_000, "classes and classifiers|lacks a sound"),
    ],
)
def test_exported_weights(checkpoint: Path, tmp_path: Path, name: str, value: Any, message: str) -> None:
    path = export(checkpoint, tmp_path / "m.safetensors", ExportOptions(check=None)).path
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, it is no dict
    held = json.loads(metadata[name])
    metadata[name] = json.dumps({**held, **value} if isinstance(value, dict) else value)
    save_file(tensors, tmp_path / "b.safetensors", metadata)
    with pytest.raises(DataError, match=message):
        plopcli.load(tmp_path / "b.safetensors", device="cpu")


@pytest.mark.parametrize("claimed", [2**63 - 1, 10**11, 10**8])
def test_a_header_of_safetensors_that_claims_any_size(tmp_path: Path, claimed: int) -> None:
    (tmp_path / "a.safetensors").write_bytes(claimed.to_bytes(8, "little") + b'{"a":' * 1000)
    with pytest.raises(DamagedFileError):
        plopcli.load(tmp_path / "a.safetensors", device="cpu")


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    return export(checkpoint, tmp_path_factory.mktemp("onnx") / "m.onnx", ExportOptions(check=None)).path


def altered(exported: Path, target: Path, change: Callable[[Any, Any], object]) -> Path:
    import onnx

    model = onnx.load(exported)
    change(onnx, model)
    target.write_bytes(model.SerializeToString())
    return target


def external(onnx: Any, model: Any) -> None:
    tensor = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    onnx.external_data_helper.set_external_data(tensor, "../../../etc/passwd")
    tensor.ClearField("raw_data")


def endless(onnx: Any, model: Any) -> None:
    helper, kinds = onnx.helper, onnx.TensorProto
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"])],
        "body",
        [helper.make_tensor_value_info("at", kinds.INT64, []), helper.make_tensor_value_info("go", kinds.BOOL, [])],
        [helper.make_tensor_value_info("on", kinds.BOOL, [])],
    )
    model.graph.initializer.append(helper.make_tensor("yes", kinds.BOOL, [], [True]))
    model.graph.node.insert(0, helper.make_node("Loop", ["", "yes"], [], body=body))


def doubling(onnx: Any, model: Any) -> None:
    last = model.graph.node[-1].output[0]
    for number in range(30):
        model.graph.node.append(onnx.helper.make_node("Concat", [last, last], [f"double{number}"], axis=0))
        last = f"double{number}"


def enlarging(onnx: Any, model: Any) -> None:
    last, helper = model.graph.node[-1].output[0], onnx.helper
    model.graph.initializer.append(helper.make_tensor("large", onnx.TensorProto.INT64, [4], [1, 17, 60_000, 60_000]))
    model.graph.node.append(helper.make_node("Resize", [last, "", "", "large"], ["huge"]))


def from_nothing(onnx: Any, model: Any) -> None:
    model.graph.initializer.append(onnx.helper.make_tensor("many", onnx.TensorProto.INT64, [1], [2**40]))
    model.graph.node.append(onnx.helper.make_node("ConstantOfShape", ["many"], ["huge"]))


def far(onnx: Any, model: Any) -> None:
    model.graph.initializer.append(onnx.helper.make_tensor("many", onnx.TensorProto.INT64, [1], [2**40]))


_ONNX = {f.__name__: f for f in (external, endless, doubling, enlarging, from_nothing, far)}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("external", "its tensors are in other files"),
        ("endless", "it uses the operator Loop"),
        ("doubling", "it joins maps with themselves"),
        ("enlarging", "it makes a map of"),
        ("from_nothing", "it uses the operator ConstantOfShape"),
        ("far", "sizes beyond 65536 pixels"),
    ],
)
def test_what_no_network_does_is_refused(exported: Path, tmp_path: Path, name: str, message: str) -> None:
    path = altered(exported, tmp_path / "a.onnx", _ONNX[name])
    start = time.process_time()
    with pytest.raises(DamagedFileError, match=rf"was refused: .*{message}"):
        plopcli.load(path)
    assert time.process_time() - start < 10


def test_scores_of_another_shape_are_no_answer(exported: Path, tmp_path: Path) -> None:
    def turn(onnx: Any, model: Any) -> None:
        model.graph.node[-1].output[0] = "before"
        model.graph.node.append(onnx.helper.make_node("Transpose", ["before"], ["logits"], perm=[0, 2, 3, 1]))
        del model.graph.output[0].type.tensor_type.shape.dim[:]
        model.graph.output[0].type.tensor_type.ClearField("shape")

    model = plopcli.load(altered(exported, tmp_path / "a.onnx", turn))
    with pytest.raises(DamagedFileError, match="other than a score for each class and pixel"):
        model.predict(np.zeros((9, 7, 3), dtype=np.uint8))
