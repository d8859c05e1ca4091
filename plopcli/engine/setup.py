"""What a step of training consists of, assembled in one place: networks, method, images, batch schedule."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import numpy as np
import torch

from plopcli.data.loading import BatchSchedule, Replayed, TrainingImages
from plopcli.data.samples import StepSplit
from plopcli.devices.process import BatchLayout, Process
from plopcli.engine.checks import batch_schedule, weights_path
from plopcli.methods import get_method
from plopcli.methods.base import Method, StepContext
from plopcli.models.segmenter import Segmenter, build_segmenter
from plopcli.models.weights import load_backbone_weights
from plopcli.runs.checkpoint import Checkpoint
from plopcli.runs.restore import build_model, place
from plopcli.scenarios.scenario import Scenario
from plopcli.settings.sections import ModelSettings, RunSettings


@dataclass(frozen=True)
class StepSetup:
    """The parts of a step before its training begins.

    Args:
        context: Where the scenario stands.
        model: The network to train, on its device.
        old_model: The frozen network of the previous step; None at step 0.
        method: The method, initialised.
        images: The step's images, and exemplars.
        schedule: Which of them form which batch.
    """

    context: StepContext
    model: Segmenter
    old_model: Segmenter | None
    method: Method
    images: TrainingImages
    schedule: BatchSchedule


def prepare_step(
    settings: RunSettings,
    scenario: Scenario,
    process: Process,
    layout: BatchLayout,
    step: int,
    previous: Checkpoint | None,
) -> StepSetup:
    """Assembles ``step``, which starts from ``previous`` (None at step 0).

    Raises:
        DataError: The weights or the method's state do not fit, or there is no image.
        UsageError: There are fewer images than a batch.
    """
    # Initial weights depend on the seed and the step alone.
    torch.manual_seed(int(np.random.SeedSequence((settings.seed, step)).generate_state(1)[0]))
    context = StepContext(step, scenario.class_counts(step), scenario.shares_classes)
    method = get_method(settings.method.name)(settings.method, context)
    if previous is not None:
        method.load_carried_state(previous.method, same_step=False)
    before = None if previous is None else build_model(previous, settings)
    model = network_to_train(settings.model, context, method, before)
    if before is None and (path := weights_path(settings)) is not None:
        load_backbone_weights(model, path)
    model = place(method.expand(model), process.device, settings.compute)
    old_model = None if before is None else place(before, process.device, settings.compute).requires_grad_(False)
    initialise(method, model, old_model, process)
    if previous is not None:
        method.load_tensors(previous.method, same_step=False)
    schedule = batch_schedule(settings, scenario, layout, step, process.rank)
    exemplars: tuple[StepSplit, ...] = ()
    if step > 0 and (replay := method.replay) is not None and replay.exemplars:
        exemplars = scenario.exemplars(replay.exemplars)
        schedule = replace(schedule, replayed=Replayed(sum(map(len, exemplars)), replay.share))
    images = TrainingImages(scenario.training(step), settings.data, exemplars, method.maps)
    return StepSetup(context, model, old_model, method, images, schedule)


def network_to_train(
    settings: ModelSettings, context: StepContext, method: Method, before: Segmenter | None
) -> Segmenter:
    """The network of a step, before `Method.expand`: a copy of that of the step before, with a fresh classifier for new
    classes; or one with random weights.
    """
    plan = method.classifier(method.settings)
    if before is None:
        return build_segmenter(settings, context.classes, plan)
    model = copy.deepcopy(before)
    # Of a plan that differs in what scores mean alone (others are refused beforehand), the method's own holds.
    model.cls.plan = plan
    if not context.shared:
        model.add_classifier(context.new)
    return model


def initialise(method: Method, model: Segmenter, old_model: Segmenter | None, process: Process) -> None:
    """Binds a method to its networks and lets it set the new classifiers and its own modules."""
    method.bind(model, old_model, process.sum)
    method.initialise(model, old_model)
    method.to(process.device)
