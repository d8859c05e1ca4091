"""The code of the how-to pages works as it stands."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from reading import ROOT, blocks
from test_pages import load

from plopcli.cli.app import main
from plopcli.data.batches import Batch
from plopcli.methods import METHODS
from plopcli.methods.base import StepContext
from plopcli.models import segmenter
from plopcli.models.abn import NORMS, BatchNormActivation
from plopcli.models.segmenter import BACKBONES, Backbone, Outputs, build_segmenter
from plopcli.settings.sections import ModelSettings


@pytest.fixture
def anchor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    module = load("plopcli.methods.anchor", blocks(ROOT / "docs" / "own-method.md", "python")[0], tmp_path)
    monkeypatch.setitem(METHODS, "anchor", module.Anchor)
    yield module
    del sys.modules["plopcli.methods.anchor"]


def test_the_method_computes_what_its_page_says(anchor: ModuleType) -> None:
    torch.manual_seed(0)
    settings = anchor.AnchorSettings(hold=3.0)
    method = anchor.Anchor(settings, StepContext(1, (3, 1)))
    assert method.uses_old_model
    assert not method.uses_features
    new, old = torch.randn(2, 4, 5, 5), torch.randn(2, 3, 5, 5)
    labels = torch.randint(0, 2, (2, 5, 5)) * 3
    batch = Batch(torch.zeros(2, 3, 5, 5), labels)
    terms = method.losses(batch, Outputs(new, new), Outputs(old, old))
    assert set(terms) == {"classification", "logit_distillation"}
    p = old.softmax(1)
    kd = -(p * new[:, :3].log_softmax(1)).sum(1) / 3
    expected = 3 * ((1 - p[:, 0]) * (labels == 0) * kd).mean()
    torch.testing.assert_close(terms["logit_distillation"], expected)
    first = anchor.Anchor(settings, StepContext(0, (3,)))
    assert not first.uses_old_model
    assert set(first.losses(Batch(batch.images, labels % 3), Outputs(new, new), None)) == {"classification"}
    assert not anchor.Anchor(anchor.AnchorSettings(hold=0.0), StepContext(1, (3, 1))).uses_old_model


@pytest.mark.usefixtures("anchor")
def test_the_commands_know_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "anchor"]) == 0
    assert "method.hold" in capsys.readouterr().out
    words = ["run-scenario", "--dataset", "toy", "--method", "anchor", "--set", "method.hld=1", "--print-config"]
    assert main(words) == 2
    assert "method.hold" in capsys.readouterr().err


@pytest.fixture
def plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    own, builder = blocks(ROOT / "docs" / "own-backbone.md", "python")
    module = load("plopcli.models.plain", own, tmp_path)
    namespace = {**vars(segmenter), "PlainNet": module.PlainNet}
    exec(compile(builder.partition("_BUILT_IN")[0], "own-backbone.md", "exec", dont_inherit=True), namespace)
    monkeypatch.setitem(BACKBONES, "plain", Backbone(namespace["_plain"], "bn"))
    yield module
    del sys.modules["plopcli.models.plain"]


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize(("stride", "norm"), [(8, "auto"), (16, "auto"), (16, "abn")])
def test_the_backbone_fits_into_the_network(stride: int, norm: str) -> None:
    settings = ModelSettings(backbone="plain", width=8, head_channels=16, output_stride=stride, norm=norm)
    model = build_segmenter(settings, (3, 1))
    kinds = {type(module) for module in model.body.modules() if isinstance(module, BatchNormActivation)}
    assert kinds == {NORMS["bn" if norm == "auto" else norm]}
    outputs = model(torch.randn(2, 3, 64, 64), features=True)
    assert outputs.logits.shape == (2, 4, 64, 64)
    assert [map_.shape[1] for map_ in outputs.features] == [8, 16, 32, 64, 16]
    assert outputs.features[3].shape[2:] == (64 // stride, 64 // stride)
    assert model(torch.randn(2, 3, 64, 64)).features == ()
    outputs.logits.square().mean().backward()
    assert {parameter.grad is None for parameter in model.body.parameters()} == {False}
