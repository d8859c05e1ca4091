from __future__ import annotations

import logging
import math
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy
import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn

from plopcli.errors import DataError
from plopcli.models.segmenter import Segmenter, build_segmenter
from plopcli.models.weights import default_weights_path, load_backbone_weights
from plopcli.settings.sections import ModelSettings

SMALL = ModelSettings(backbone="resnet18", width=16, head_channels=8)


def build(seed: int = 0, settings: ModelSettings = SMALL) -> Segmenter:
    torch.manual_seed(seed)
    return build_segmenter(settings, (3,))


def drawn(network: nn.Module) -> nn.Module:
    """Puts the network's norms on statistics and weights that are not the initial ones."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("prefix", ["module.", ""])
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("counters", [True, False])
def test_iabn_files(tmp_path, prefix, nested, counters, caplog):
    source = drawn(build(1).body).state_dict()
    state = {prefix + n: t for n, t in source.items() if counters or not n.endswith("num_batches_tracked")}
    state |= {f"{prefix}classifier.fc.weight": torch.zeros(1000, 128), f"{prefix}classifier.fc.bias": torch.zeros(1000)}
    path = tmp_path / "resnet18_iabn_sync.pth.tar"
    torch.save({"state_dict": state} if nested else state, path)
    model = build()
    rest = {n: t.clone() for n, t in model.state_dict().items() if not n.startswith("body.")}
    with caplog.at_level(logging.WARNING):
        load_backbone_weights(model, path)
    assert same(model.body.state_dict(), source)
    assert same({n: t for n, t in model.state_dict().items() if not n.startswith("body.")}, rest)
    assert caplog.messages == []


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_torchvision_resnets_compute_the_same(tmp_path, name):
    torch.manual_seed(1)
    theirs = drawn(getattr(torchvision.models, name)()).eval()
    torch.save(theirs.state_dict(), tmp_path / "file.pth")
    settings = ModelSettings(backbone=name, head_channels=8, norm="bn", activation="relu")
    model = build(settings=settings).eval()
    load_backbone_weights(model, tmp_path / "file.pth")
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        _, taps = model.body(x, taps=True)
        maps = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
        # layer4 is dilated in ours, strided in theirs
        for stage, tap in zip((theirs.layer1, theirs.layer2, theirs.layer3), taps, strict=False):
            maps = stage(maps)
            torch.testing.assert_close(tap.relu(), maps, rtol=1e-4, atol=1e-4)
    theirs_weights = theirs.layer4[1].conv2.weight
    assert torch.equal(model.body.mod5.block2.convs.conv2.weight, theirs_weights)


def test_torchvision_mobilenet(tmp_path):
    torch.manual_seed(1)
    theirs = drawn(torchvision.models.mobilenet_v2())
    torch.save(theirs.state_dict(), tmp_path / "mobilenet_v2.pth")
    model = build(settings=ModelSettings(backbone="mobilenet_v2", head_channels=8))
    load_backbone_weights(model, tmp_path / "mobilenet_v2.pth")
    wanted = theirs.state_dict()
    body = model.body.state_dict()
    assert same(body, {name: wanted[name] for name in body})
    assert any(name.startswith("features.17.") for name in body)


def test_other_norm_or_activation_than_trained_is_said(tmp_path, caplog):
    torch.manual_seed(1)
    theirs = torchvision.models.resnet18().state_dict()
    torch.save(theirs, tmp_path / "positive.pth")
    theirs["layer1.0.bn1.weight"][3] = -0.5
    torch.save(theirs, tmp_path / "signed.pth")
    leaky = SMALL.model_copy(update={"width": 64})
    relu = leaky.model_copy(update={"activation": "relu"})
    load_backbone_weights(build(settings=relu), tmp_path / "positive.pth")
    load_backbone_weights(build(settings=relu.model_copy(update={"norm": "bn"})), tmp_path / "signed.pth")
    assert caplog.messages == []
    load_backbone_weights(build(settings=leaky), tmp_path / "positive.pth")
    assert "--set model.activation=relu" in caplog.messages[0]
    assert "model.norm" not in caplog.messages[0]
    load_backbone_weights(build(settings=relu), tmp_path / "signed.pth")
    assert "--set model.norm=bn" in caplog.messages[1]


WRAPPED = {
    "data parallel": lambda state: {f"module.{n}": t for n, t in state.items()},
    "compiled": lambda state: {f"_orig_mod.{n}": t for n, t in state.items()},
    "compiled and parallel": lambda state: {f"_orig_mod.module.{n}": t for n, t in state.items()},
    "compiled inside": lambda state: {n.replace("layer1.", "layer1._orig_mod."): t for n, t in state.items()},
    "checkpointed": lambda state: {n.replace("r2.0.", "r2.0._checkpoint_wrapped_module."): t for n, t in state.items()},
    "averaged": lambda state: {f"module.{n}": t for n, t in state.items()} | {"n_averaged": torch.tensor(7)},
    "lightning": lambda state: {
        "epoch": 3,
        "hyper_parameters": {"lr": 0.1},
        "state_dict": {f"model.{n}": t for n, t in state.items()} | {"loss.weight": torch.ones(3)},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(2)}}}],
    },
    "mmseg": lambda state: {
        "meta": {"epoch": 3},
        "state_dict": {f"backbone.{n}": t for n, t in state.items()} | {"decode_head.conv_seg.weight": torch.ones(2)},
    },
    "torchvision's script": lambda state: {"model": state, "optimizer": {"state": {}}, "epoch": 3},
    "timm's script": lambda state: {
        "arch": "resnet18",
        "state_dict": {n: torch.zeros_like(t) for n, t in state.items()},
        "state_dict_ema": state,
    },
    "yolo-like": lambda state: {"ema": {"module": state}, "updates": 3},
    "pycls": lambda state: {"epoch": 3, "model_state": state},
    "moco": lambda state: {
        "state_dict": {f"module.encoder_q.{n}": t for n, t in state.items()}
        | {f"module.encoder_k.{n}": torch.zeros_like(t) for n, t in state.items()}
    },
    "segmentation models": lambda state: {f"encoder.{n}": t for n, t in state.items()} | {"decoder.a": torch.ones(1)},
    "a net of a net": lambda state: {"net": {f"net.model.backbone.{n}": t for n, t in state.items()}},
    "half": lambda state: {n: t.half() if t.is_floating_point() else t for n, t in state.items()},
    "parameters": lambda state: {n: nn.Parameter(t, requires_grad=False) for n, t in state.items()},
}


@pytest.mark.parametrize("kind", [*WRAPPED, "safetensors"])
def test_wrapped_and_contained_weights_are_found(tmp_path, kind):
    torch.manual_seed(1)
    state = {n: t for n, t in drawn(torchvision.models.resnet18()).state_dict().items() if not n.startswith("fc.")}
    model = build(settings=SMALL.model_copy(update={"width": 64}))
    torch.save(state, tmp_path / "plain.pth")
    load_backbone_weights(model, tmp_path / "plain.pth")
    wanted = {name: tensor.clone() for name, tensor in model.body.state_dict().items()}
    other = build(settings=SMALL.model_copy(update={"width": 64}))
    path = tmp_path / ("file.safetensors" if kind == "safetensors" else "file.pth")
    if kind == "safetensors":
        safetensors.torch.save_file({f"model.{n}": t for n, t in state.items()}, path)
    else:
        torch.save(WRAPPED[kind](state), path)
    load_backbone_weights(other, path)
    found = other.body.state_dict()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-6 if kind != "half" else 1e-3)


def hugging_face(name: str) -> str:
    """A name of torchvision's as `transformers.ResNetForImageClassification` has it."""
    parts = name.split(".")
    norm = {"conv": "convolution", "bn": "normalization"}
    if not parts[0].startswith("layer"):
        return f"resnet.embedder.embedder.{norm[parts[0][:-1]]}.{parts[1]}"
    place = f"resnet.encoder.stages.{int(parts[0][-1]) - 1}.layers.{parts[1]}"
    if parts[2] == "downsample":
        return f"{place}.shortcut.{('convolution', 'normalization')[int(parts[3])]}.{parts[4]}"
    return f"{place}.layer.{int(parts[2][-1]) - 1}.{norm[parts[2][:-1]]}.{parts[3]}"


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_resnets_of_hugging_face(tmp_path, backbone):
    torch.manual_seed(1)
    state = drawn(getattr(torchvision.models, backbone)()).state_dict()
    state = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    theirs = {hugging_face(name): tensor for name, tensor in state.items()}
    assert "resnet.encoder.stages.1.layers.0.shortcut.normalization.running_mean" in theirs
    torch.save(state, tmp_path / "plain.pth")
    torch.save(theirs | {"classifier.1.weight": torch.zeros(2, 2)}, tmp_path / "pytorch_model.bin")
    settings = ModelSettings(backbone=backbone, head_channels=8)
    one, other = build(0, settings), build(1, settings)
    load_backbone_weights(one, tmp_path / "plain.pth")
    load_backbone_weights(other, tmp_path / "pytorch_model.bin")
    assert same(one.body.state_dict(), other.body.state_dict())


class Code:
    pass


def write(path: Path, kind: str) -> None:
    good = build(1).body.state_dict()
    if kind == "text":
        path.write_text("hello, these are no weights")
    elif kind == "web page":
        path.write_text("<!DOCTYPE html><html>404</html>")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "half":
        torch.save(good, path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "code":
        torch.save({"state_dict": good, "optimizer": Code()}, path)
    elif kind == "pickled code":
        path.write_bytes(pickle.dumps(Code()))
    elif kind == "script":
        with zipfile.ZipFile(path, "w") as archive:
            for record in ("weights/data.pkl", "weights/code/__torch__/net.py", "weights/constants.pkl"):
                archive.writestr(record, b"")
    elif kind == "exported":
        with zipfile.ZipFile(path, "w") as archive:
            for record in ("weights/archive_format", "weights/data/weights/model_weights_config.json"):
                archive.writestr(record, b"")
    elif kind == "safetensors":
        path.write_bytes(b"\x08\0\0\0\0\0\0\0not json")
    else:
        contents = {
            "tensor": torch.zeros(3),
            "list": [1, 2],
            "numbers": {"epoch": 3, "lr": 0.1},
            "checkpoint": {"model_state": good, "epoch": 3},
            "whole network": {"state_dict": build(1).state_dict()},
            "two": {f"{part}.{n}": t for part in ("left", "right") for n, t in good.items()},
            "not finite": good | {"mod4.block1.convs.conv1.weight": torch.full((64, 32, 3, 3), math.nan)},
            "foreign": {"encoder.weight": torch.zeros(2), "encoder.bias": torch.zeros(2)},
            "empty dict": {},
            "missing": {n: t for n, t in good.items() if "mod4" not in n},
            "extra": good | {"mod4.block3.convs.conv1.weight": torch.zeros(2)},
            "misshapen": good | {"mod4.block1.convs.conv1.weight": torch.zeros(7, 7)},
            "wider": build(settings=SMALL.model_copy(update={"width": 32})).body.state_dict(),
            "mobilenet": torchvision.models.mobilenet_v2().state_dict(),
        }
        torch.save(contents[kind], path)


BAD = {
    "text": "no file that torch.save wrote",
    "web page": "no file that torch.save wrote",
    "empty": "no file that torch.save wrote",
    "half": "damaged",
    "code": r"needs the code of \S*Code",
    "pickled code": "refused|no file",
    "tensor": "holds a Tensor",
    "list": "holds a list",
    "numbers": "epoch, lr",
    "checkpoint": "checkpoint of a training run",
    "whole network": "checkpoint of a training run",
    "two": r"several backbones, below left\., right\.",
    "not finite": r"values that are not finite \(NaN or infinite\) in 1 tensor: mod4\.block1\.convs\.conv1\.weight",
    "script": "exported program",
    "exported": "exported program",
    "safetensors": "no safetensors file",
    "foreign": r"encoder\.weight[\s\S]*resnet18",
    "empty dict": "empty dict",
    "missing": r"resnet18: \d+ tensors missing: mod4\.block1\.convs\.conv1\.weight.* and \d+ more",
    "extra": r"1 tensor too many: mod4\.block3\.convs\.conv1\.weight",
    "misshapen": r"mod4\.block1\.convs\.conv1\.weight \(7, 7\) instead of \(64, 32, 3, 3\)",
    "wider": r"wrong shape[\s\S]*model\.width",
    "mobilenet": r"a torchvision MobileNetV2\) does not hold the weights of this resnet18",
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_say_what_they_are_and_change_nothing(tmp_path, kind):
    path = tmp_path / {"safetensors": "weights.safetensors", "exported": "weights.pt2"}.get(kind, "weights.pth")
    write(path, kind)
    model = build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(DataError, match=BAD[kind]) as caught:
        load_backbone_weights(model, path)
    assert str(path) in caught.value.message
    assert len(str(caught.value)) < 700
    assert same(model.state_dict(), before)


def test_deeper_network_does_not_pass_for_a_shallower_one(tmp_path):
    torch.save(build(settings=SMALL.model_copy(update={"backbone": "resnet34"})).body.state_dict(), tmp_path / "f.pth")
    with pytest.raises(DataError, match="too many"):
        load_backbone_weights(build(), tmp_path / "f.pth")


def test_files_of_the_time_of_the_papers(tmp_path):
    """In the container of torch before 1.6, with what a training script left beside the weights."""
    source = drawn(build(1).body).state_dict()
    state = {f"module.{name}": tensor for name, tensor in source.items() if not name.endswith("num_batches_tracked")}
    state |= {"module.classifier.fc.weight": torch.zeros(1000, 128), "module.classifier.fc.bias": torch.zeros(1000)}
    path = tmp_path / "resnet18_iabn_sync.pth.tar"
    content = {"epoch": 100, "arch": "resnet18", "best_prec1": numpy.float64(79.3), "state_dict": OrderedDict(state)}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    model = build()
    load_backbone_weights(model, path)
    floats = {name: tensor for name, tensor in source.items() if tensor.is_floating_point()}
    assert same({name: model.body.state_dict()[name] for name in floats}, floats)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(DataError, match="There is no file"):
        load_backbone_weights(build(), tmp_path / "none.pth")
    with pytest.raises(DataError, match="cannot be read"):
        load_backbone_weights(build(), tmp_path)


@pytest.mark.parametrize(
    ("backbone", "file"),
    [
        ("resnet18", "resnet18.pth"),
        ("resnet50", "resnet50_iabn_sync.pth.tar"),
        ("resnet101", "resnet101_iabn_sync.pth.tar"),
        ("mobilenet_v2", "mobilenet_v2.pth"),
    ],
)
def test_default_places(backbone, file):
    assert default_weights_path(backbone, Path("data")) == Path("data/weights") / file
