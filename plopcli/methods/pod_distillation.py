"""POD between the new and the old model, as the methods that distil by it share it: its settings, and its term."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator
from torch import Tensor

from plopcli.losses.pod import PodMode, Preparation, check_size, match_logits, pod_terms
from plopcli.methods.base import StepContext
from plopcli.models.segmenter import Outputs
from plopcli.settings.sections import Count, MethodSettings, NonNegative

#: Which of the feature maps f_1..f_5 `pod_apply` compares.
_APPLIED: dict[str, slice] = {"all": slice(5), "backbone": slice(4), "head": slice(4, 5)}


class PodSettings(MethodSettings):
    """How POD compares the two models; with ``pod`` off, or all factors 0, it does not."""

    pod: PodMode | Literal["off"] = "local"
    """How POD pools maps: `local` means over width and height of windows at several scales (the paper); `global` sums
    of the map averaged at several scales; `spatial` sums of the map; `off`: no POD at all."""
    pod_factor: NonNegative = 0.01
    """Factor of POD on the feature maps; 0: none."""
    pod_apply: Literal["all", "backbone", "head"] = "all"
    """Feature maps that POD compares: the backbone's four stages and the head's output, or only one of the two."""
    pod_logits: Literal["sum", "trim", "off"] = "sum"
    """POD on the logits too: `sum` adds the new classes' logits to the background's, `trim` drops them."""
    pod_logits_factor: NonNegative = 0.0005
    """Factor of POD on the logits."""
    pod_logits_size: Literal["small", "large"] = "small"
    """Logits that POD compares: those of the feature maps' size, or upsampled to the image's (far more memory)."""
    pod_scales: Annotated[tuple[Count, ...], Field(min_length=1)] = (1, 2, 4)
    """POD, local or global, pools windows of 1/scale of the map's sides, at each of these scales."""
    pod_prepro: Preparation = "pow"
    """What is done to maps before they are pooled: `pow` squares them, `abs` takes absolute values, `relu` drops
    negative ones, `none` leaves them."""
    pod_schedule: bool = True
    """Weigh POD by sqrt(all classes / new classes)."""

    @model_validator(mode="after")
    def _pod_settings_have_an_effect(self) -> PodSettings:
        if self.pod == "off":
            return self
        if self.pod == "spatial" and self.pod_scales != type(self).model_fields["pod_scales"].default:
            raise ValueError("method.pod_scales belongs to method.pod = local or global: spatial POD has no scales")
        if self.pod_logits == "off" and self.pod_logits_size == "large":
            raise ValueError("method.pod_logits_size = large needs POD on the logits: method.pod_logits = sum or trim")
        return self

    @property
    def compares_maps(self) -> bool:
        """Whether any of POD's terms counts."""
        on_logits = self.pod_logits != "off" and self.pod_logits_factor > 0
        return self.pod != "off" and (self.pod_factor > 0 or on_logits)


def pod_by_layer(settings: PodSettings, context: StepContext, new: Outputs, old: Outputs) -> dict[str, Tensor]:
    """The layers' shares of the POD term, which is their sum.

    Args:
        settings: How maps are compared; ``pod`` is not off.
        context: Where the scenario stands.
        new: The current model's outputs, with features.
        old: Those of the previous model.

    Returns:
        Scalars by name: ``pod_1`` .. ``pod_5`` as far as they are compared, and ``pod_logits``.

    Raises:
        UsageError: A map is too small for the scales.
    """
    assert settings.pod != "off"
    applied = _APPLIED[settings.pod_apply]
    names = [f"pod_{i}" for i in range(1, len(new.features) + 1)][applied]
    factors = [settings.pod_factor] * len(names)
    new_maps, old_maps = list(new.features[applied]), list(old.features[applied])
    if settings.pod_logits != "off":
        large = settings.pod_logits_size == "large"
        names.append("pod_logits")
        factors.append(settings.pod_logits_factor)
        new_maps.append(match_logits(new.logits if large else new.small, context.old, settings.pod_logits))
        old_maps.append(old.logits if large else old.small)
    if settings.pod_schedule:
        schedule = math.sqrt(context.total / context.new)
        factors = [schedule * factor for factor in factors]
    terms = pod_terms(new_maps, old_maps, factors, settings.pod_scales, settings.pod, settings.pod_prepro)
    return dict(zip(names, terms, strict=True))


def check_pod(settings: PodSettings, outputs: Outputs) -> None:
    """Refuses scales at which a map that is compared cannot be pooled.

    Raises:
        UsageError: Says how large the map is.
    """
    if settings.pod in ("off", "spatial"):
        return
    maps = list(outputs.features[_APPLIED[settings.pod_apply]]) if settings.pod_factor else []
    if settings.pod_logits != "off" and settings.pod_logits_factor:
        maps.append(outputs.logits if settings.pod_logits_size == "large" else outputs.small)
    if maps:
        check_size(min(maps, key=lambda compared: min(compared.shape[-2:])), settings.pod_scales)
