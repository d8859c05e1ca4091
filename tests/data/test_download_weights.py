"""Weights that arrive: under the name that training looks for, and only if they fit."""

from __future__ import annotations

import io

import pytest
import torch
from local_host import without_length
from shell import save

from plopcli.data.download import sources
from plopcli.errors import DataError, UsageError
from plopcli.models.weights import default_weights_path


def weights_file(backbone: str, scheme: str) -> bytes:
    """Random weights as a file that a source could offer."""
    from torchvision import models

    from plopcli.models.segmenter import build_segmenter
    from plopcli.settings.sections import ModelSettings

    if scheme == "torchvision":
        content: object = getattr(models, backbone)(weights=None).state_dict()
    else:
        body = build_segmenter(ModelSettings(backbone=backbone), (2,)).body.state_dict()
        content = {"state_dict": {f"module.{name}": tensor for name, tensor in body.items()}}
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


@pytest.mark.parametrize("backbone", ["mobilenet_v2", "resnet18"])
def test_weights_of_torchvision(shell, mirror, offer, backbone):
    file = sources.WEIGHTS["torchvision"][backbone]
    offer(file, weights_file(backbone, "torchvision"))
    target = shell.get("weights", backbone=backbone)
    assert target == default_weights_path(backbone, shell.root)
    assert target.read_bytes() == mirror.files[file.name]
    hint = "--set model.norm=bn --set model.activation=relu"
    assert (hint in shell.said) == (backbone == "resnet18")
    shell.get("weights", backbone=backbone)
    assert len(mirror.requests) == 1


def test_weights_of_the_papers(shell, mirror, offer, tmp_path):
    file = sources.WEIGHTS["iabn"]["resnet50"]
    content = weights_file("resnet50", "iabn")
    offer(file, content)
    target = shell.get("weights", backbone="resnet50")
    assert target == default_weights_path("resnet50", shell.root)
    assert "--set" not in shell.said
    shell.get("weights", backbone="resnet50")
    assert len(mirror.requests) == 1

    wrong = save(tmp_path / "w.pth", content)
    message = shell.fails(DataError, "weights", wrong, backbone="resnet101", source="iabn")
    assert "does not hold the weights of this resnet101" in message


def test_own_weights_are_copied(shell, tmp_path):
    own = save(tmp_path / "w.pth", weights_file("mobilenet_v2", "torchvision"))
    assert "--accept-checksum" in shell.fails(DataError, "weights", own, backbone="mobilenet_v2")
    assert not default_weights_path("mobilenet_v2", shell.root).exists()
    target = shell.get("weights", own, backbone="mobilenet_v2", accept_checksum=True)
    assert target.read_bytes() == own.read_bytes()
    assert sorted(path.name for path in target.parent.iterdir()) == ["mobilenet_v2.pth"]


def test_half_a_weights_file_is_none(shell, mirror, offer):
    """No checksum is known for the papers' files: loading them is the test."""
    offer(sources.WEIGHTS["iabn"]["resnet101"], weights_file("resnet18", "iabn")[:100_000])
    mirror.answers = [without_length]
    assert "is a damaged archive" in shell.fails(DataError, "weights")
    assert not default_weights_path("resnet101", shell.root).exists()


def test_weights_that_do_not_exist(shell, monkeypatch):
    assert "Did you mean resnet" in shell.fails(UsageError, "weights", backbone="resnet100")
    assert "Did you mean iabn" in shell.fails(UsageError, "weights", source="iab")
    assert "--source torchvision" in shell.fails(UsageError, "weights", backbone="resnet34", source="iabn")
    assert "--source torchvision" in shell.fails(DataError, "weights", backbone="resnet50")
