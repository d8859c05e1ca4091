"""The whole network: backbone, DeepLab v3 head, one classifier per learning step, upsampling."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plopcli.errors import DataError, UsageError, unknown_name
from plopcli.models.abn import NORMS, NormFactory
from plopcli.models.classifiers import PLAIN, ClassifierPlan, Classifiers, build_classifiers
from plopcli.models.deeplab import DILATIONS, DeepLabV3Head
from plopcli.models.encoder import Encoder
from plopcli.models.mobilenet import MobileNetV2
from plopcli.models.resnet import LAYOUTS, ResNet
from plopcli.plugins import Registry
from plopcli.settings.sections import ModelSettings


class Outputs(NamedTuple):
    """Outputs of a forward pass.

    Attributes:
        logits: (B, C, H, W), of the classes, at the size of the images, float32 (float64 where the network is).
        small: (B, C, h, w) before upsampling, of the same type.
        features: f_1..f_4, the last sums of the four stages before their activation, and f_5, the head's output;
            empty where they were not asked for.
        encoder: The backbone's output e, where features were asked for.
        extra: (B, k, H, W), of the k channels that are no classes; None without any.
        small_extra: (B, k, h, w) before upsampling.
    """

    logits: Tensor
    small: Tensor
    features: tuple[Tensor, ...] = ()
    encoder: Tensor | None = None
    extra: Tensor | None = None
    small_extra: Tensor | None = None

    @property
    def scores(self) -> Tensor:
        """(B, k + C, H, W), as the network's `ClassifierPlan` reads them."""
        return self.logits if self.extra is None else torch.cat([self.extra, self.logits], 1)

    @property
    def small_scores(self) -> Tensor:
        """(B, k + C, h, w) before upsampling."""
        return self.small if self.small_extra is None else torch.cat([self.small_extra, self.small], 1)


class Part(NamedTuple):
    """Parameters that are trained at one rate.

    Attributes:
        parameters: All of them, frozen ones too.
        lr: Factor on the recipe's rate for the part.
        weight_decay: Factor on the recipe's weight decay for the part.
        recipe: The part of the recipe whose factors hold (``lr_body``, ``lr_head``, ...); empty: the part's own name.
    """

    parameters: list[nn.Parameter]
    lr: float = 1.0
    weight_decay: float = 1.0
    recipe: str = ""


class Segmenter(nn.Module):
    """A segmentation network whose classes grow from step to step.

    Its state dict has the names of the original implementation: ``body``, ``head``, ``cls.0``, ``cls.1``, ...

    Args:
        settings: The settings that it was built from; a checkpoint rebuilds it from these and the plan.
        body: The backbone.
        head: The decoder.
        classifiers: One per step, and the meaning of their scores.
    """

    def __init__(self, settings: ModelSettings, body: Encoder, head: nn.Module, classifiers: Classifiers) -> None:
        super().__init__()
        assert len(classifiers), "a segmenter needs the classes of step 0"
        self.settings = settings
        self.body = body
        self.head = head
        self.cls = classifiers
        #: Share of the head's output channels that training drops before the classifiers.
        self.dropout = 0.0

    @property
    def backbone(self) -> str:
        """Name of the backbone."""
        return self.settings.backbone

    @property
    def plan(self) -> ClassifierPlan:
        """The meaning of the scores."""
        return self.cls.plan

    @property
    def class_counts(self) -> tuple[int, ...]:
        """Classes of each step so far; the first counts background."""
        return self.cls.class_counts

    @property
    def classifiers(self) -> tuple[nn.Conv2d, ...]:
        """The last layer of each step's classifier, in the order of the steps."""
        return self.cls.last_layers()

    def form(self) -> dict[str, Any]:
        """Plain values that `restored` needs beside the class counts and the weights; stored in every checkpoint."""
        return {"model": self.settings.model_dump(mode="json"), "classifier": self.plan.stored()}

    @classmethod
    def restored(cls, form: Mapping[str, Any], class_counts: Sequence[int], tensors: Mapping[str, Tensor]) -> Segmenter:
        """The network that `form` describes, with random weights.

        Args:
            form: Out of a file.
            class_counts: Likewise.
            tensors: The weights in the same file: `build_for`.

        Raises:
            DataError: This version does not know it, or it is not the network that the tensors are of.
        """
        try:
            settings = ModelSettings.model_validate(form["model"])
            plan = ClassifierPlan.restored(form["classifier"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"The form of the network is not sound: {error}", "Update plop, or train anew.") from error
        return build_for(tensors, settings, class_counts, plan)

    def add_classifier(self, count: int) -> None:
        """Appends a new classifier for ``count`` classes, on the device and of the type of the others."""
        self.cls.grow(count)

    def parts(self) -> dict[str, Part]:
        """All parameters, by the parts that recipes know; ``classifier`` is the newest one, ``old`` earlier ones."""
        modules: dict[str, Iterable[nn.Module]] = {
            "body": [self.body],
            "head": [self.head],
            "classifier": [self.cls[-1]],
            "old": [self.cls[step] for step in range(len(self.cls) - 1)],
            "extra": self.cls.extra.values(),
        }
        return {name: Part([p for part in found for p in part.parameters()]) for name, found in modules.items()}

    def forward(self, images: Tensor, features: bool = False) -> Outputs:
        """Segments images (B, 3, H, W).

        With ``features``, the maps f_1..f_5 and e are returned too, which costs their memory.

        Raises:
            UsageError: In training on a single image, whose pooled context has no variance.
        """
        encoder, taps = self.body(images, taps=features)
        deep = self.head(encoder)
        small = self.cls(F.dropout(deep, self.dropout) if self.training and self.dropout else deep)
        if small.dtype in (torch.bfloat16, torch.float16):
            small = small.float()
        logits = F.interpolate(small, size=images.shape[-2:], mode="bilinear", align_corners=False)
        extra = small_extra = None
        if count := len(self.plan.extra):
            extra, logits = logits[:, :count], logits[:, count:]
            small_extra, small = small[:, :count], small[:, count:]
        maps = (*taps, deep) if features else ()
        return Outputs(logits, small, maps, encoder if features else None, extra, small_extra)


class Backbone(NamedTuple):
    """How a backbone is built, and the norm that `model.norm = "auto"` stands for."""

    build: Callable[[ModelSettings, NormFactory], Encoder]
    norm: Literal["abn", "bn"]


def _resnet(depth: int, settings: ModelSettings, norm: NormFactory) -> Encoder:
    return ResNet(depth, norm, settings.activation, settings.output_stride, settings.width)


def _mobilenet_v2(settings: ModelSettings, norm: NormFactory) -> Encoder:
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
    **{f"resnet{depth}": Backbone(partial(_resnet, depth), "abn") for depth in LAYOUTS},
    "mobilenet_v2": Backbone(_mobilenet_v2, "bn"),
}
#: Every backbone by its name; those of installed packages too (`plopcli.plugins`).
BACKBONES: Registry[Backbone] = Registry("backbone", "plopcli.backbones", _BUILT_IN, _checked)


class DecoderFactory(Protocol):
    """Builds a decoder, from the backbone's output (B, in_channels, h, w) to (B, head_channels, h', w')."""

    def __call__(self, in_channels: int, settings: ModelSettings, norm: NormFactory) -> nn.Module:
        """The decoder."""


def _deeplab_v3(in_channels: int, settings: ModelSettings, norm: NormFactory) -> nn.Module:
    dilations = settings.head_dilations or DILATIONS[settings.output_stride]
    return DeepLabV3Head(in_channels, settings.head_channels, dilations, settings.pooling, norm, settings.activation)


#: Every decoder by its name; those of installed packages too.
DECODERS: Registry[DecoderFactory] = Registry("decoder", "plopcli.decoders", {"deeplab_v3": _deeplab_v3})


def norm_of(settings: ModelSettings) -> Literal["abn", "bn"]:
    """The norm that ``model.norm`` stands for with the backbone.

    Raises:
        UsageError: For an unknown backbone.
    """
    backbone = BACKBONES.get(settings.backbone)
    if backbone is None:
        raise unknown_name("backbone", settings.backbone, BACKBONES)
    return backbone.norm if settings.norm == "auto" else settings.norm


def build_segmenter(settings: ModelSettings, class_counts: Sequence[int], plan: ClassifierPlan = PLAIN) -> Segmenter:
    """Builds the network with random weights; ``class_counts`` are the classes of each step, with background in step 0.

    ``pretrained`` and ``weights`` are left to `load_backbone_weights`.

    Raises:
        UsageError: For an unknown backbone or kind of classifier, or settings that do not go with it.
    """
    norm = NORMS[norm_of(settings)]
    body = BACKBONES[settings.backbone].build(settings, norm)
    if settings.decoder not in DECODERS:
        raise unknown_name("decoder", settings.decoder, DECODERS)
    head = DECODERS[settings.decoder](body.channels, settings, norm)
    return Segmenter(settings, body, head, build_classifiers(plan, settings.head_channels, class_counts))


#: Values that a network may have for each one that its file holds: norms that are folded away leave less.
_SLACK = 2
#: More than any map has pixels on a side; a convolution pads by as many.
_LARGEST_DILATION = 1 << 12


def build_for(
    tensors: Mapping[str, Tensor], settings: ModelSettings, class_counts: Sequence[int], plan: ClassifierPlan
) -> Segmenter:
    """The network that a file of unknown origin describes, once it is clear that the file holds as large a one.

    Args:
        tensors: What the file holds.
        settings: What it says of itself.
        class_counts: Likewise.
        plan: Likewise.

    Raises:
        DataError: Its weights are of a far smaller network.
        UsageError: As `build_segmenter`.
    """
    held = sum(tensor.numel() for tensor in tensors.values())
    needed = 0
    sound = len(class_counts) <= len(tensors) and max(settings.head_dilations or (1,)) <= _LARGEST_DILATION
    if sound:
        try:
            with torch.device("meta"):  # takes no memory, and no random numbers
                planned = build_segmenter(settings, class_counts, plan)
            needed = sum(tensor.numel() for tensor in planned.state_dict().values())
        except (RuntimeError, OverflowError, TypeError, ValueError):  # sizes beyond what torch can count
            sound = False
    if not sound or needed > _SLACK * held:
        raise DataError(
            f"The file describes a far larger network than the one whose weights it holds ({held:,} values).",
            "It was edited or put together wrongly: take a copy from where it was made.",
        )
    return build_segmenter(settings, class_counts, plan)
