"""The whole network: backbone, DeepLab v3 head, one classifier per learning step, upsampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plopcli.errors import UsageError, unknown_name
from plopcli.models.abn import NORMS, NormFactory
from plopcli.models.body import Body
from plopcli.models.deeplab import DILATIONS, DeepLabV3Head
from plopcli.models.mobilenet import MobileNetV2
from plopcli.models.resnet import ResNet
from plopcli.plugins import Registry
from plopcli.settings.sections import ModelSettings


class Outputs(NamedTuple):
    """What a forward pass gives.

    Attributes:
        logits: (B, C, H, W) at the size of the images, float32 (float64 where the network is).
        small: (B, C, h, w) before upsampling, of the same type.
        features: f_1..f_4, the last sums of the four stages before their activation, and f_5, the head's output;
            empty where they were not asked for.
        encoder: The backbone's output e, where features were asked for.
    """

    logits: Tensor
    small: Tensor
    features: tuple[Tensor, ...] = ()
    encoder: Tensor | None = None


class Segmenter(nn.Module):
    """A segmentation network whose classes grow from step to step.

    Args:
        backbone: Name of the backbone, for messages.
        body: The backbone.
        head: The DeepLab head.
        channels: Channels of the head's output.
        class_counts: Classes of each step so far; the first counts background.
    """

    def __init__(
        self, backbone: str, body: Body, head: DeepLabV3Head, channels: int, class_counts: Sequence[int]
    ) -> None:
        super().__init__()
        assert class_counts, "a segmenter needs the classes of step 0"
        self.backbone = backbone
        self.body = body
        self.head = head
        self.cls = nn.ModuleList(nn.Conv2d(channels, count, 1) for count in class_counts)

    @property
    def classifiers(self) -> tuple[nn.Conv2d, ...]:
        """The classifiers in the order of the steps."""
        return tuple(classifier for classifier in self.cls if isinstance(classifier, nn.Conv2d))

    @property
    def class_counts(self) -> tuple[int, ...]:
        """Classes of each step so far."""
        return tuple(classifier.out_channels for classifier in self.classifiers)

    def add_classifier(self, count: int) -> None:
        """Appends a fresh classifier for ``count`` new classes, on the device and of the type of the others."""
        first = self.classifiers[0]
        self.cls.append(
            nn.Conv2d(first.in_channels, count, 1, device=first.weight.device, dtype=first.weight.dtype),
        )

    def forward(self, images: Tensor, features: bool = False) -> Outputs:
        """Segments images.

        Args:
            images: (B, 3, H, W).
            features: Whether to return the maps f_1..f_5 and e, which costs their memory.

        Raises:
            UsageError: In training on a single image, whose pooled context has no variance.
        """
        encoder, taps = self.body(images, taps=features)
        deep = self.head(encoder)
        # A single convolution would read the deep features once, and sum their gradients in another order than the
        # original does.
        small = torch.cat([classifier(deep) for classifier in self.classifiers], dim=1)
        if small.dtype in (torch.bfloat16, torch.float16):
            small = small.float()
        logits = F.interpolate(small, size=images.shape[-2:], mode="bilinear", align_corners=False)
        if not features:
            return Outputs(logits, small)
        return Outputs(logits, small, (*taps, deep), encoder)


class Backbone(NamedTuple):
    """How a backbone is built, and which norm `model.norm = "auto"` means for it."""

    build: Callable[[ModelSettings, NormFactory], Body]
    norm: Literal["abn", "bn"]


def _resnet(depth: int, settings: ModelSettings, norm: NormFactory) -> Body:
    return ResNet(depth, norm, settings.activation, settings.output_stride, settings.width)


def _mobilenet_v2(settings: ModelSettings, norm: NormFactory) -> Body:
    if settings.width != ModelSettings.model_fields["width"].default:
        raise UsageError(
            f"model.width = {settings.width} is a setting of the ResNets, and the backbone is mobilenet_v2.",
            "Leave model.width alone, or choose a ResNet: --set model.backbone=resnet18.",
        )
    if norm is not NORMS["bn"]:
        raise UsageError(
            f"model.norm = {settings.norm} does not go with mobilenet_v2, whose weights are for plain batch norm.",
            "Set model.norm to bn or auto.",
        )
    return MobileNetV2(norm, settings.output_stride)


def _checked(name: str, found: Any) -> Backbone:
    if not isinstance(found, Backbone):
        raise TypeError(f"{found!r} is no Backbone")
    return found


_BUILT_IN = {
    "resnet18": Backbone(partial(_resnet, 18), "abn"),
    "resnet34": Backbone(partial(_resnet, 34), "abn"),
    "resnet50": Backbone(partial(_resnet, 50), "abn"),
    "resnet101": Backbone(partial(_resnet, 101), "abn"),
    "resnet152": Backbone(partial(_resnet, 152), "abn"),
    "mobilenet_v2": Backbone(_mobilenet_v2, "bn"),
}
#: Every backbone by its name; those of installed packages too (`plopcli.plugins`).
BACKBONES: Registry[Backbone] = Registry("backbone", "plopcli.backbones", _BUILT_IN, _checked)


def norm_of(settings: ModelSettings) -> Literal["abn", "bn"]:
    """The norm that ``model.norm`` means for the backbone.

    Raises:
        UsageError: For an unknown backbone.
    """
    backbone = BACKBONES.get(settings.backbone)
    if backbone is None:
        raise unknown_name("backbone", settings.backbone, BACKBONES)
    return backbone.norm if settings.norm == "auto" else settings.norm


def build_segmenter(settings: ModelSettings, class_counts: Sequence[int]) -> Segmenter:
    """Builds the network with random weights.

    Args:
        settings: The network's settings; ``pretrained`` and ``weights`` are left to `load_backbone_weights`.
        class_counts: Classes of each step; the first counts background.

    Raises:
        UsageError: For an unknown backbone, or settings that do not go with it.
    """
    norm = NORMS[norm_of(settings)]
    body = BACKBONES[settings.backbone].build(settings, norm)
    head = DeepLabV3Head(
        body.channels,
        settings.head_channels,
        settings.head_dilations or DILATIONS[settings.output_stride],
        settings.pooling,
        norm,
        settings.activation,
    )
    return Segmenter(settings.backbone, body, head, settings.head_channels, class_counts)
