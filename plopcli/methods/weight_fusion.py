"""EWF: endpoints weight fusion, at the end of the steps of any method.

Source: Xiao, Zhang, Feng, Liu, van de Weijer, Cheng: Endpoints Weight Fusion for Class Incremental Semantic
Segmentation, CVPR 2023.

The two endpoints of a step's training, the previous model and the trained one, are averaged, weight by weight. The
source freezes the classifiers of earlier steps while it trains (`train.later.lr_old = 0`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from plopcli.methods.base import StepContext
from plopcli.settings.sections import MethodSettings

EWF_SOURCE = "Xiao et al., CVPR 2023, https://github.com/schuy1er/EWF_official"
#: What comes behind the loss in `Method.later_steps`.
FUSED = "afterwards theta = (1 - fusion) * theta_old + fusion * theta"


def fusion_share(settings: MethodSettings, context: StepContext) -> float | None:
    """Share of the trained weights in the mean; None where nothing is fused."""
    if settings.fusion == "off" or context.step == 0:
        return None
    return math.sqrt(context.new / context.total) if settings.fusion == "auto" else settings.fusion


@torch.no_grad()
def fuse(new: Mapping[str, Tensor], old: Mapping[str, Tensor], share: float) -> None:
    """``new <- (1 - share) old + share new``, in place, for every floating-point tensor that ``old`` has too.

    With tensors of a state dict, running statistics of batch norms are fused as well, and the counts of batches are
    not. A share of 1 leaves the new tensors exactly as they are, 0 gives the old ones.

    Args:
        new: The trained tensors by name; those of new classes, which ``old`` lacks, stay as they are.
        old: The previous ones, a part of the names, of the same shapes.
        share: In [0, 1].
    """
    for name, before in old.items():
        if before.is_floating_point():
            after = new[name]
            after.copy_(torch.lerp(before.to(after), after, share))
