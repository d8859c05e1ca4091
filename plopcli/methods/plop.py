"""PLOP: POD distillation and pseudo-labels.

Source: Douillard, Chen, Dapogny, Cord: PLOP: Learning without Forgetting for Continual Semantic Segmentation,
CVPR 2021 (https://arxiv.org/abs/2011.11390).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from plopcli.data.batches import Batch
from plopcli.losses.classification import IGNORED, cross_entropy
from plopcli.losses.pseudo_labels import PseudoLabels, adaptive_factor
from plopcli.losses.unbiased import unbiased_cross_entropy
from plopcli.methods.base import BEGINNING, CROSS_ENTROPY, Moment, StepContext, StepData
from plopcli.methods.initialisation import Init, InitialisedMethod, InitSettings
from plopcli.methods.pod_distillation import PodSettings, check_pod, pod_by_layer
from plopcli.methods.pseudo_labelling import PseudoLabeller, PseudoLabelSettings
from plopcli.models.segmenter import Outputs
from plopcli.settings.presets import PLOP_PAPER, Preset
from plopcli.settings.sections import MethodSettings

_PRESETS = (
    Preset("voc", PLOP_PAPER, {"method": {"pod_factor": 0.01, "pod_logits_factor": 0.0005}}),
    Preset("ade", PLOP_PAPER, {"method": {"pod_factor": 0.001, "pod_logits_factor": 0.00001}}),
    Preset("cityscapes-domain", PLOP_PAPER, {"method": {"pod_factor": 0.0001, "pod_logits_factor": 0.0001}}),
    Preset("cityscapes-domain", PLOP_PAPER, {"method": {"pod_logits_factor": 0.001}}, task="1-1"),
    Preset(
        "toy",
        "from the same trial: the paper's factors are too strong for few iterations; docs/results.md",
        {"method": {"pod_factor": 0.0003, "pod_logits_factor": 0.00001}},
    ),
    Preset(
        "photos-small",
        "chosen on a fifth of the training images; few images make the published thresholds erratic; docs/results.md",
        {"method": {"pod_factor": 0.0001, "pod_logits_factor": 0.00005, "estimator": "exact"}},
    ),
    Preset(
        "plop-exact",
        "PLOP, CVPR 2021, as its text has it: entropies from 0 to 1, true medians per class",
        {"method": {"estimator": "exact"}},
        variant=True,
    ),
    Preset(
        "plop-naive", "measured on the generated data: docs/results.md", {"method": {"pseudo": "naive"}}, variant=True
    ),
)


class PlopSettings(InitSettings, PseudoLabelSettings, PodSettings):
    """The parts of PLOP, each of which can be varied or switched off."""

    name: Literal["plop"] = "plop"
    """Name of the method."""
    init: Init = "balanced"
    """Start new classes from the background's classifier, or at random."""


class Plop(InitialisedMethod):
    """Cross-entropy on pseudo-labelled images, with POD between the new and the old model.

    At step 0 it is plain cross-entropy. In later steps `diagnostics` holds, for the last micro-batch: ``accepted``, the
    share of background pixels that got a pseudo-label; ``adaptive_factor``, its mean over the images (where it is
    used); and ``pod_1`` .. ``pod_5``, ``pod_logits``, the layers' shares of the POD term.
    """

    Settings = PlopSettings
    summary = "local POD on features and logits, entropy pseudo-labels for old classes in the background"
    source = "Douillard et al., CVPR 2021, https://arxiv.org/abs/2011.11390"
    later_steps = (
        "adaptive factor of the image * cross-entropy(pseudo-labels) + sqrt(all classes / new classes) "
        "* mean over 6 layers of factor * POD distance, factor = pod_factor (features), pod_logits_factor (logits)"
    )
    first_step = "cross-entropy"
    presets: ClassVar[tuple[Preset, ...]] = _PRESETS
    for_domains: ClassVar[Mapping[str, Any]] = {"pseudo": "off", "learn_background": True, "init": "default"}

    settings: PlopSettings

    @classmethod
    def step_0_key(cls, settings: MethodSettings) -> Mapping[str, Any]:
        """Cross-entropy."""
        return CROSS_ENTROPY

    @classmethod
    def check_maps(cls, settings: MethodSettings, outputs: Outputs) -> None:
        """Whether POD can cut them into windows."""
        assert isinstance(settings, PlopSettings)
        check_pod(settings, outputs)

    def __init__(self, settings: PlopSettings, context: StepContext) -> None:
        super().__init__(settings, context)
        #: From step 1 on, where pseudo-labels are used.
        self.labeller: PseudoLabeller | None = None
        if context.step > 0 and settings.pseudo != "off":
            self.labeller = PseudoLabeller(settings, context)

    @property
    def thresholds(self) -> Tensor | None:
        """Thresholds (C,) of the pseudo-labels, where the rule has estimated them."""
        if self.labeller is None or self.labeller.thresholds is None:
            return None
        return self.labeller.thresholds.values

    @property
    def uses_features(self) -> bool:
        """Where a POD factor is not 0, from step 1 on."""
        return self.context.step > 0 and self.settings.compares_maps

    @property
    def uses_old_model(self) -> bool:
        """For POD and pseudo-labels, from step 1 on."""
        return self.uses_features or self.labeller is not None

    def before_step(self, data: StepData) -> None:
        """Estimates the thresholds of the pseudo-labels from one pass over the step's images, if the rule has any."""
        if self.labeller is not None:
            self.labeller.prepare(data)

    def losses(self, batch: Batch, new: Outputs, old: Outputs | None, at: Moment = BEGINNING) -> dict[str, Tensor]:
        """``classification``, and ``pod`` from step 1 on."""
        terms = {"classification": self._classification(batch, new, old)}
        if self.context.step > 0 and self.settings.compares_maps:
            assert old is not None
            terms["pod"] = self._pod(new, old)
        return terms

    def pseudo_labels(self, batch: Batch, old: Outputs) -> PseudoLabels | None:
        """By the rule, with the thresholds of the step."""
        return None if self.labeller is None else self.labeller.label(batch, old.logits)

    def _classification(self, batch: Batch, new: Outputs, old: Outputs | None) -> Tensor:
        if self.labeller is None:
            return cross_entropy(new.logits, self._taught(batch.labels)).mean()
        assert old is not None
        pseudo = self.labeller.label(batch, old.logits)
        self.diagnostics["accepted"] = pseudo.accepted.sum() / (pseudo.background.sum() + 1e-6)
        loss = cross_entropy(new.logits, self._taught(pseudo.labels))
        if self.settings.pseudo_rejected == "unbiased":
            loss = loss + self._unbiased(pseudo, new)
        if pseudo.weights is not None:
            loss = loss * pseudo.weights
        if not self.labeller.adapts:
            return loss.mean()
        settings = self.settings
        without, least = settings.adaptive_without_background, settings.adaptive_min_factor
        factor = adaptive_factor(pseudo, without, least, loss.dtype)
        self.diagnostics["adaptive_factor"] = factor.mean()
        return (loss * factor[:, None, None]).mean()

    def _taught(self, labels: Tensor) -> Tensor:
        """Labels without those of pixels that teach nothing, by choice."""
        if self.settings.learn_background or self.context.step == 0:
            return labels
        return labels.masked_fill(labels == 0, IGNORED)

    def _unbiased(self, pseudo: PseudoLabels, new: Outputs) -> Tensor:
        """Unbiased cross-entropy (B, H, W) of the background's rejected pixels, 0 elsewhere."""
        rejected = pseudo.background & ~pseudo.accepted
        labels = torch.where(rejected, 0, IGNORED)
        return unbiased_cross_entropy(new.logits, labels, self.context.old)

    def _pod(self, new: Outputs, old: Outputs) -> Tensor:
        shares = pod_by_layer(self.settings, self.context, new, old)
        self.diagnostics.update({name: share.detach() for name, share in shares.items()})
        return torch.stack(list(shares.values())).sum()

    def carried_state(self) -> dict[str, Any]:
        """The thresholds, and what `report` says about them."""
        return {} if self.labeller is None else self.labeller.state_dict()

    def load_carried_state(self, state: Mapping[str, Any], *, same_step: bool) -> None:
        """Takes up the thresholds in the same step; a new step estimates its own.

        Raises:
            DataError: The state has no thresholds for this step's classes.
        """
        if same_step and self.labeller is not None:
            self.labeller.load_state_dict(state)

    def report(self) -> dict[str, Any]:
        """What `PseudoLabeller.report` says, from step 1 on."""
        return {} if self.labeller is None else self.labeller.report()
