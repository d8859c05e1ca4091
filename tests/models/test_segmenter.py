from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from plopcli.errors import UsageError
from plopcli.models.abn import ABN
from plopcli.models.segmenter import BACKBONES, build_segmenter
from plopcli.settings.sections import ModelSettings

SMALL = ModelSettings(backbone="resnet18", width=8, head_channels=16)
MOBILE = ModelSettings(backbone="mobilenet_v2", head_channels=16)


def build(settings: ModelSettings = SMALL, classes: tuple[int, ...] = (4, 2)):
    torch.manual_seed(0)
    return build_segmenter(settings, classes)


@pytest.mark.parametrize("settings", [SMALL, MOBILE], ids=["resnet", "mobilenet"])
@pytest.mark.parametrize("training", [True, False])
def test_outputs(settings, training):
    model = build(settings).train(training)
    x = torch.randn(2, 3, 75, 110)
    out = model(x, features=True)
    assert out.logits.shape == (2, 6, 75, 110)
    assert out.small.shape == (2, 6, 5, 7)
    assert len(out.features) == 5
    assert out.features[4].shape == (2, 16, 5, 7)
    assert out.encoder is not None
    torch.testing.assert_close(out.encoder, model.body.train(training)(x)[0])
    apart = torch.cat([classifier(out.features[4]) for classifier in model.cls], dim=1)
    torch.testing.assert_close(out.small, apart)
    torch.testing.assert_close(
        out.logits, F.interpolate(apart, size=(75, 110), mode="bilinear", align_corners=False), atol=1e-5, rtol=1e-5
    )


def test_features_cost_nothing_unless_asked_for():
    model = build().eval()
    x = torch.randn(1, 3, 64, 64)
    bare, full = model(x), model(x, features=True)
    assert bare.features == ()
    assert bare.encoder is None
    assert torch.equal(bare.logits, full.logits)


def graph(model, features: bool) -> tuple[torch.Tensor, int]:
    """Gradient of the stem and bytes that the backward pass keeps."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    model.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = model(torch.linspace(-1, 1, 2 * 3 * 64 * 64).view(2, 3, 64, 64), features=features)
        loss = out.logits.square().mean()
    loss.backward()
    return model.body.mod1.conv1.weight.grad.clone(), sum(kept.values())


def test_taps_change_no_gradient():
    model = build().train()
    without, bytes_without = graph(model, features=False)
    with_taps, bytes_with = graph(model, features=True)
    torch.testing.assert_close(without, with_taps)
    assert bytes_without < bytes_with


@pytest.mark.parametrize("settings", [SMALL, MOBILE], ids=["resnet", "mobilenet"])
def test_gradients_flow_from_every_tap(settings):
    model = build(settings).train()
    out = model(torch.randn(2, 3, 64, 64), features=True)
    for i, feature in enumerate(out.features):
        loss = feature.square().mean()
        (grad,) = torch.autograd.grad(loss, feature, retain_graph=True)
        torch.testing.assert_close(grad, 2 * feature / feature.numel())
        first = next(model.body.parameters())
        (deep,) = torch.autograd.grad(loss, first, retain_graph=True)
        assert deep.isfinite().all(), i
        assert deep.abs().sum() > 0, i
    sum(f.square().mean() for f in (*out.features, out.logits, out.encoder)).backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert missing == []


@pytest.mark.parametrize("settings", [SMALL, MOBILE], ids=["resnet", "mobilenet"])
@pytest.mark.parametrize("training", [True, False])
def test_channels_last_computes_the_same(settings, training):
    x = torch.randn(4, 3, 96, 64)
    model = build(settings).train(training)
    plain = model(x, features=True)
    model = build(settings).train(training).to(memory_format=torch.channels_last)
    last = model(x.to(memory_format=torch.channels_last), features=True)
    torch.testing.assert_close(plain.logits, last.logits, atol=1e-3, rtol=1e-3)
    for a, b in zip(plain.features, last.features, strict=True):
        assert b.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


def test_logits_are_float32_under_autocast():
    model = build().eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(x, features=True)
    assert out.features[0].dtype == torch.bfloat16
    assert out.logits.dtype == out.small.dtype == torch.float32
    assert torch.equal(out.logits, F.interpolate(out.small, size=(64, 64), mode="bilinear", align_corners=False))


def test_new_classifiers_are_appended():
    model = build(classes=(4,)).double()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    before = model.eval()(x).small
    assert model.class_counts == (4,)
    model.add_classifier(3)
    assert model.class_counts == (4, 3)
    assert model.cls[1].weight.dtype == torch.float64
    after = model(x).small
    assert after.shape[1] == 7
    torch.testing.assert_close(after[:, :4], before)
    assert {"cls.0.weight", "cls.1.weight", "cls.1.bias"} <= set(model.state_dict())


def test_unknown_backbone_gets_a_suggestion():
    with pytest.raises(UsageError, match=r"resnet110[\s\S]*Did you mean resnet101"):
        build(ModelSettings(backbone="resnet110"))


@pytest.mark.parametrize("change", [{"width": 32}, {"norm": "abn"}])
def test_mobilenet_refuses_settings_of_resnets(change):
    with pytest.raises(UsageError, match=next(iter(change))):
        build(MOBILE.model_copy(update=change))


def test_auto_norm_follows_the_backbone():
    assert isinstance(build(SMALL).head.map_bn, ABN)
    assert not isinstance(build(MOBILE).head.map_bn, ABN)
    assert not isinstance(build(SMALL.model_copy(update={"norm": "bn"})).body.mod1.bn1, ABN)


def test_head_settings_reach_the_head():
    changed = {"head_dilations": (1, 2, 3), "pooling": None, "activation": "relu"}
    head = build(SMALL.model_copy(update=changed)).head
    assert [conv.dilation[0] for conv in head.map_convs] == [1, 1, 2, 3]
    assert head.pooling is None
    assert head.map_bn.activation == "relu"
    strides = {stride: build(SMALL.model_copy(update={"output_stride": stride})).head for stride in (8, 16)}
    assert [conv.dilation[0] for conv in strides[16].map_convs] == [1, 6, 12, 18]
    assert [conv.dilation[0] for conv in strides[8].map_convs] == [1, 12, 24, 32]


def test_single_training_image_is_refused():
    with pytest.raises(UsageError, match="2 images per device"):
        build().train()(torch.randn(1, 3, 64, 64))


def test_registry_names_are_those_of_the_settings():
    assert set(BACKBONES) == {"resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "mobilenet_v2"}
