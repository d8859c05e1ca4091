"""The network for other programs: from pixels to logits, without what only training needs."""

from __future__ import annotations

from copy import deepcopy
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plopcli.data.transforms import MEAN, STD
from plopcli.exporting.folding import Affine, FoldedNorm, fold_in_place, folded_conv
from plopcli.exporting.pooling import pool_windows
from plopcli.models.classifiers import Linear, last_layer
from plopcli.models.deeplab import DeepLabV3Head
from plopcli.models.encoder import Encoder
from plopcli.models.segmenter import Segmenter

InputKind = Literal["pixels", "normalised"]


class InferenceHead(nn.Module):
    """`DeepLabV3Head` in eval mode with its norms folded, for maps of any size in one graph.

    Args:
        head: The head.
        pooling: Side of the pooling window in feature pixels; None: global.
    """

    def __init__(self, head: DeepLabV3Head, pooling: int | None) -> None:
        super().__init__()
        self.pooling = pooling
        convs = [conv for conv in head.map_convs if isinstance(conv, nn.Conv2d)]
        parts = Affine.of(head.map_bn).slices([conv.out_channels for conv in convs])
        self.map_convs = nn.ModuleList(folded_conv(conv, part) for conv, part in zip(convs, parts, strict=True))
        self.map_bn = FoldedNorm(head.map_bn.activation)
        self.global_pooling_conv = folded_conv(head.global_pooling_conv, Affine.of(head.global_pooling_bn))
        self.global_pooling_bn = FoldedNorm(head.global_pooling_bn.activation)
        # The last norm follows the sum of these two.
        last = Affine.of(head.red_bn)
        self.red_conv = folded_conv(head.red_conv, last)
        self.pool_red_conv = folded_conv(head.pool_red_conv, last, offset=False)
        self.red_bn = FoldedNorm(head.red_bn.activation)

    def forward(self, x: Tensor) -> Tensor:
        """Turns the encoder output (B, in_channels, h, w) into (B, channels, h, w)."""
        maps = self.map_bn(torch.cat([conv(x) for conv in self.map_convs], dim=1))
        deep: Tensor = self.red_bn(self.red_conv(maps), self._context(x))
        return deep

    def _context(self, x: Tensor) -> Tensor:
        if self.pooling is None:
            return self._reduced(x.mean((2, 3), keepdim=True))
        pooled, rows, columns = pool_windows(x, self.pooling)
        # Pixel by pixel, so that the borders are repeated after it, on fewer channels.
        return self._reduced(pooled).index_select(2, rows).index_select(3, columns)

    def _reduced(self, pooled: Tensor) -> Tensor:
        reduced: Tensor = self.pool_red_conv(self.global_pooling_bn(self.global_pooling_conv(pooled)))
        return reduced


class InferenceNetwork(nn.Module):
    """A `Segmenter` for inference alone: norms folded, one classifier for all steps, normalisation inside.

    The weights are copies, in float32 on the CPU; ``model`` is left as it is.

    Args:
        model: The trained network.
        pooling: Side of the head's pooling window in feature pixels; None: global.
        takes: What goes in: ``pixels`` (B, H, W, 3) uint8 RGB as pictures are stored, or ``normalised`` images
            (B, 3, H, W) float32.
    """

    mean: Tensor
    inverse_deviation: Tensor

    def __init__(self, model: Segmenter, pooling: int | None, takes: InputKind = "pixels") -> None:
        super().__init__()
        self.takes = takes
        self.body: Encoder = deepcopy(model.body).cpu().float().to(memory_format=torch.contiguous_format)
        fold_in_place(self.body)
        head = deepcopy(model.head).cpu().float()
        if isinstance(head, DeepLabV3Head):
            self.head: nn.Module = InferenceHead(head, pooling)
        else:
            fold_in_place(head)
            self.head = head
        self.plan = model.plan
        classifiers = deepcopy(model.cls).cpu().float()
        fold_in_place(classifiers)
        self.cls = _one_convolution(classifiers) if isinstance(classifiers, Linear) else classifiers
        self.register_buffer("mean", torch.tensor([255 * value for value in MEAN]), persistent=False)
        self.register_buffer("inverse_deviation", torch.tensor([1 / (255 * value) for value in STD]), persistent=False)
        self.requires_grad_(False)
        self.eval()

    def forward(self, pictures: Tensor) -> Tensor:
        """Class scores (B, C, H, W), float32, at the size of the pictures; the largest is the label."""
        if self.takes == "pixels":
            height, width = pictures.shape[1:3]
            images = ((pictures.to(torch.float32) - self.mean) * self.inverse_deviation).permute(0, 3, 1, 2)
        else:
            height, width = pictures.shape[2:4]
            images = pictures
        encoder, _ = self.body(images)
        small = self.cls(self.head(encoder))
        return self.plan.class_scores(F.interpolate(small, size=(height, width), mode="bilinear", align_corners=False))


def _one_convolution(classifiers: Linear) -> nn.Conv2d:
    """1 x 1 classifiers side by side in one."""
    layers = [last_layer(classifier) for classifier in (*classifiers.extra.values(), *classifiers)]
    one = nn.utils.skip_init(nn.Conv2d, layers[0].in_channels, sum(layer.out_channels for layer in layers), 1)
    assert isinstance(one, nn.Conv2d)
    assert one.bias is not None
    one.weight.data = torch.cat([layer.weight.detach() for layer in layers])
    one.bias.data = torch.cat([layer.bias.detach() for layer in layers if layer.bias is not None])
    return one


def example(network: InferenceNetwork) -> Tensor:
    """An input that a graph can be recorded from: two pictures that are no squares."""
    if network.takes == "pixels":
        return torch.zeros(2, 96, 128, 3, dtype=torch.uint8)
    return torch.zeros(2, 3, 96, 128)
