"""Files of `plop export`, and what becomes of wrong ones. ONNX has a file of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from trained_files import write_checkpoint

from plopcli.cli.app import main
from plopcli.data.transforms import MEAN, STD
from plopcli.errors import DamagedFileError, DataError, MachineError, PlopError, UsageError
from plopcli.exporting import formats, onnx_file
from plopcli.exporting.check import ExportCheck, noise
from plopcli.exporting.export import ExportOptions, export
from plopcli.exporting.formats import choose_format, open_exported
from plopcli.exporting.network import InferenceNetwork

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("run") / "checkpoints" / "step-1.pt", model__pooling=4)


@pytest.mark.parametrize("name", ["torchscript", "safetensors"])
@pytest.mark.parametrize("takes", ["pixels", "normalised"])
def test_a_file_computes_what_the_model_computes(checkpoint, tmp_path, name, takes):
    target = tmp_path / "deep" / f"model{formats.FORMATS[name].suffixes[0]}"
    done = export(checkpoint, target, ExportOptions(takes=takes))
    assert (done.path, done.format, done.size) == (target, name, target.stat().st_size)
    assert done.checked is not None
    assert done.checked.pictures == 3
    assert done.checked.difference < 1e-5
    assert done.checked.agreement == 1
    assert done.checked.own_pooling is None
    assert done.checked.model_ms > 0
    assert done.checked.file_ms > 0

    forward, facts = open_exported(target, name, CPU)
    assert facts == done.facts
    assert facts.classes[0] == "background"
    assert len(facts.classes) == len(facts.palette) == 17
    assert (facts.dataset, facts.task, facts.step, facts.method, facts.backbone) == (
        "toy",
        "15-1",
        1,
        "plop",
        "resnet18",
    )
    assert (facts.shorter_side, facts.pooling, facts.output_stride, facts.input) == (64, 4, 8, takes)
    assert (tuple(facts.mean), tuple(facts.std)) == (MEAN, STD)
    assert forward(torch.zeros(3, 40, 50, 3, dtype=torch.uint8)).shape == (3, 17, 40, 50)
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_global_pooling_is_said_and_compared_with_the_trained_one(checkpoint, tmp_path, capsys):
    words = ["export", str(checkpoint), str(tmp_path / "model.safetensors"), "--pooling", "global"]
    assert main(words) == 0
    shown = capsys.readouterr()
    assert shown.out == f"{tmp_path / 'model.safetensors'}\n"
    assert "global pooling: arg-max equal to the model's own pooling on" in shown.err
    done = export(checkpoint, tmp_path / "again.safetensors", ExportOptions(pooling="global"))
    assert done.facts.pooling is None
    assert done.checked is not None
    assert done.checked.agreement == 1
    assert done.checked.own_pooling is not None
    assert done.checked.own_pooling < 1


def test_it_is_checked_on_the_pictures_that_are_named(checkpoint, tmp_path):
    rng = np.random.default_rng(0)
    for number, size in enumerate(((70, 100), (128, 128))):
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(tmp_path / f"{number}.png")
    done = export(checkpoint, tmp_path / "m.ts", ExportOptions(check=sorted(tmp_path.glob("*.png"))))
    assert done.checked is not None
    assert (done.checked.pictures, done.checked.smallest, done.checked.largest) == (2, (64, 64), (64, 91))
    with pytest.raises(DataError, match=r"none\.png does not exist"):
        export(checkpoint, tmp_path / "n.ts", ExportOptions(check=[tmp_path / "none.png"]))
    assert not (tmp_path / "n.ts").exists()


def test_no_check_runs_nothing(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("plopcli.exporting.export.compare", None)
    assert main(["export", str(checkpoint), str(tmp_path / "m.safetensors"), "--no-check"]) == 0
    assert "not checked" in capsys.readouterr().err
    assert main(["export", str(checkpoint), str(tmp_path / "n.ts"), "--no-check", "--check", "x.png"]) == 2


def test_a_file_that_computes_something_else_is_not_kept(checkpoint, tmp_path, monkeypatch):
    right = formats.FORMATS["safetensors"]

    def wrong(network: InferenceNetwork, facts):
        network.head.red_conv.weight.data *= 1.001
        return right.write(network, facts)

    monkeypatch.setitem(formats.FORMATS, "safetensors", formats.Format("", right.suffixes, wrong, right.open))
    target = tmp_path / "m.safetensors"
    target.write_bytes(b"before")
    with pytest.raises(PlopError, match="does not compute what the model computes"):
        export(checkpoint, target, ExportOptions(overwrite=True))
    assert target.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(("difference", "agreement"), [(2e-4, 1.0), (0.0, 0.9998), (float("nan"), 1.0)])
def test_limits_of_the_check(difference, agreement):
    sizes = (64, 64), (64, 96)
    ExportCheck(1, *sizes, 9e-5, 0.99991, 1, 1, 1).verify()
    with pytest.raises(PlopError, match="does not compute"):
        ExportCheck(1, *sizes, difference, agreement, 1, 1, 1).verify()


def test_nothing_is_overwritten_unless_asked(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = checkpoint.parents[1]
    plan = ExportOptions(format="safetensors", check=None)
    done = export(run, None, plan)
    assert done.path == Path(f"{run.name}-step-1.safetensors")
    with pytest.raises(UsageError, match="exists"):
        export(run, None, plan)
    done.path.write_bytes(b"")
    assert export(run, None, ExportOptions(format="safetensors", check=None, overwrite=True)).size == done.size
    assert export(checkpoint, None, plan).path == Path("step-1.safetensors")
    with pytest.raises(UsageError, match="is a folder"):
        export(run, tmp_path, plan)


def test_format_by_name_or_suffix():
    assert choose_format(None, Path("a.ONNX")) == "onnx"
    assert choose_format(None, Path("a.torchscript")) == "torchscript"
    assert choose_format("torchscript", Path("a.pt")) == "torchscript"
    assert choose_format("onnx", None) == "onnx"
    for name, path, message in (
        (None, Path("a.pt"), "not told by the name a.pt"),
        (None, None, "The format is not told"),
        ("onyx", None, "no export format called 'onyx'"),
        ("onnx", Path("a.ts"), "contradict"),
    ):
        with pytest.raises(UsageError, match=message):
            choose_format(name, path)


def test_without_the_packages_of_the_extra(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert main(["export", str(checkpoint), str(tmp_path / "m.onnx")]) == 4
    said = capsys.readouterr().err
    assert "onnxscript, which is not installed" in said
    assert "pip install 'plopcli[export]'" in said
    with pytest.raises(MachineError):
        onnx_file.required("onnxscript")


def test_steps_of_a_run_folder(checkpoint, tmp_path):
    run = checkpoint.parents[1]
    with pytest.raises(UsageError, match="has no step 3"):
        export(run, tmp_path / "m.ts", ExportOptions(step=3))
    with pytest.raises(UsageError, match="is a checkpoint"):
        export(checkpoint, tmp_path / "m.ts", ExportOptions(step=1))


def test_foreign_and_damaged_files_are_named(checkpoint, tmp_path):
    good = export(checkpoint, tmp_path / "m.safetensors", ExportOptions(check=None)).path
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(good.read_bytes()[:-100])
    with pytest.raises(DamagedFileError, match=r"cut\.safetensors"):
        open_exported(cut, "safetensors", CPU)
    edited = tmp_path / "edited.safetensors"
    edited.write_bytes(good.read_bytes().replace(b"resnet18", b"resnet34"))
    with pytest.raises(DataError, match="other tensors than its metadata say"):
        open_exported(edited, "safetensors", CPU)
    script = tmp_path / "m.ts"
    script.write_bytes(b"no archive")
    with pytest.raises(DamagedFileError, match=r"m\.ts is no TorchScript"):
        open_exported(script, "torchscript", CPU)
    with pytest.raises(DataError, match="There is no file"):
        open_exported(tmp_path / "none.ts", "torchscript", CPU)


def test_noise_has_three_sizes():
    assert [picture.shape for picture in noise(60)] == [(60, 60, 3), (60, 80, 3), (90, 60, 3)]
