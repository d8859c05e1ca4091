"""Residual networks (He et al., "Deep Residual Learning for Image Recognition", CVPR 2016), dilated.

The names of the modules are those of the In-Place ABN checkpoints: ``mod1`` is the stem, ``mod2``..``mod5`` the stages.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from plopcli.models.abn import Activation, NormFactory, activate
from plopcli.models.encoder import Encoder

#: Kind of block and number of blocks per stage, by depth.
LAYOUTS: dict[int, tuple[Literal["basic", "bottleneck"], tuple[int, int, int, int]]] = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
}

#: Channels that leave a block, as a multiple of those inside it.
EXPANSION = {"basic": 1, "bottleneck": 4}

#: Dilation of mod2..mod5 by output stride.
DILATIONS = {16: (1, 1, 1, 2), 8: (1, 1, 2, 4)}


class Block(nn.Module):
    """A residual block.

    Args:
        channels: Channels of the input.
        inner: Output channels of every convolution, in order; two make a basic block, three a bottleneck.
        stride: 1 or 2.
        dilation: Of the 3 x 3 convolutions.
        norm: Builds the norms.
        activation: Of every norm but the last.
    """

    def __init__(
        self,
        channels: int,
        inner: Sequence[int],
        stride: int,
        dilation: int,
        norm: NormFactory,
        activation: Activation,
    ) -> None:
        super().__init__()
        kernels = (3, 3) if len(inner) == 2 else (1, 3, 1)
        strided = kernels.index(3)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        before = channels
        for i, (after, kernel) in enumerate(zip(inner, kernels, strict=True)):
            spread = dilation if kernel == 3 else 1
            layers[f"conv{i + 1}"] = nn.Conv2d(
                before,
                after,
                kernel,
                stride=stride if i == strided else 1,
                padding=spread * (kernel // 2),
                dilation=spread,
                bias=False,
            )
            layers[f"bn{i + 1}"] = norm(after, "identity" if i == len(inner) - 1 else activation)
            before = after
        self.convs = nn.Sequential(layers)
        self.proj_conv: nn.Conv2d | None = None
        if stride != 1 or channels != before:
            self.proj_conv = nn.Conv2d(channels, before, 1, stride=stride, bias=False)
            self.proj_bn = norm(before, "identity")

    def forward(self, x: Tensor, activation: Activation = "identity") -> Tensor:
        """The sum (B, C', h', w') of both branches, activated."""
        shortcut = x if self.proj_conv is None else self.proj_bn(self.proj_conv(x))
        *layers, last = self.convs
        for layer in layers:
            x = layer(x)
        # The last norm adds the shortcut itself: in place, it must know what its output consists of.
        total: Tensor = last(x, shortcut, activation)
        return total


class ResNet(Encoder):
    """A dilated ResNet without its classifier.

    Args:
        depth: 18, 34, 50, 101 or 152.
        norm: Builds the norms.
        activation: Between the convolutions and after every block.
        output_stride: 8 or 16.
        width: Channels of the stem and of the first stage's blocks, doubled in each stage; originally 64.
    """

    def __init__(
        self,
        depth: int,
        norm: NormFactory,
        activation: Activation = "leaky_relu",
        output_stride: int = 16,
        width: int = 64,
    ) -> None:
        super().__init__()
        self.activation = activation
        stem: OrderedDict[str, nn.Module] = OrderedDict()
        stem["conv1"] = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        stem["bn1"] = norm(width, activation)
        stem["pool1"] = nn.MaxPool2d(3, stride=2, padding=1)
        self.mod1 = nn.Sequential(stem)

        kind, counts = LAYOUTS[depth]
        channels = width
        for stage, (count, dilation) in enumerate(zip(counts, DILATIONS[output_stride], strict=True)):
            inside = width * 2**stage
            inner = (inside, inside) if kind == "basic" else (inside, inside, EXPANSION[kind] * inside)
            blocks: OrderedDict[str, nn.Module] = OrderedDict()
            for i in range(count):
                stride = 2 if i == 0 and stage > 0 and dilation == 1 else 1
                blocks[f"block{i + 1}"] = Block(channels, inner, stride, dilation, norm, activation)
                channels = inner[-1]
            self.add_module(f"mod{stage + 2}", nn.Sequential(blocks))
        self.channels = channels

    @property
    def stages(self) -> tuple[nn.Sequential, ...]:
        """mod2..mod5."""
        stages = tuple(self.get_submodule(f"mod{i}") for i in range(2, 6))
        return tuple(stage for stage in stages if isinstance(stage, nn.Sequential))

    def forward(self, images: Tensor, taps: bool = False) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Encodes images (B, 3, H, W); see `Encoder.forward`. f_i is the last sum of a stage before its activation."""
        x = self.run(self.mod1, images)
        tapped: list[Tensor] = []
        for stage in self.stages:
            last = len(stage) - 1
            for i, block in enumerate(stage):
                if taps and i == last:
                    total = self.run(block, x)
                    tapped.append(total)
                    x = activate(total, self.activation, in_place=False)
                else:
                    x = self.run(block, x, self.activation)
        return x, tuple(tapped)
