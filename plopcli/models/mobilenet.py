"""MobileNetV2 (Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018), dilated."""

from __future__ import annotations

from torch import Tensor, nn

from plopcli.models.abn import NormFactory
from plopcli.models.encoder import Encoder

#: Blocks whose outputs, linear bottlenecks, are f_1..f_4; the last one is the encoder output as well.
TAPPED = (3, 6, 13, 17)

#: Blocks that would halve the map from stride 8 to 16 and from 16 to 32.
STRIDED = (7, 14)


class MobileNetV2(Encoder):
    """torchvision's MobileNetV2 1.0 up to block 17, under the same names (``features.N``).

    Where a stride is removed, all later convolutions are dilated instead, but not the one that lost it: at the
    positions that the strided network visits, the result is the same. The activation, ReLU6, is torchvision's own.
    """

    channels = 320

    def __init__(self, norm: NormFactory, output_stride: int = 16) -> None:
        super().__init__()
        # Imported here so that the ResNets do not depend on a torchvision that fits the installed torch.
        from torchvision.models import mobilenet_v2

        network = mobilenet_v2(weights=None, norm_layer=lambda channels: norm(channels, "identity"))
        self.features = nn.Sequential(*list(network.features)[: TAPPED[-1] + 1])
        dilation = 1
        for i, block in enumerate(self.features):
            dense = i == STRIDED[1] or (i == STRIDED[0] and output_stride == 8)
            for conv in block.modules():
                if isinstance(conv, nn.Conv2d) and conv.kernel_size == (3, 3):
                    conv.dilation = (dilation, dilation)
                    conv.padding = (dilation, dilation)
                    if dense:
                        conv.stride = (1, 1)
            if dense:
                dilation *= 2

    def forward(self, images: Tensor, taps: bool = False) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Encodes images (B, 3, H, W); see `Encoder.forward`."""
        x = images
        tapped: list[Tensor] = []
        for i, block in enumerate(self.features):
            x = self.run(block, x)
            if taps and i in TAPPED:
                tapped.append(x)
        return x, tuple(tapped)
