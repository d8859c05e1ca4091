"""Everything that can be refused before anything is trained, written or removed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from plopcli.data.loading import BatchSchedule
from plopcli.devices.process import BatchLayout
from plopcli.errors import DataError, UsageError
from plopcli.methods import get_method
from plopcli.methods.base import StepContext
from plopcli.models.abn import save_memory
from plopcli.models.segmenter import build_segmenter
from plopcli.models.weights import backbone_tensors, default_weights_path
from plopcli.resolution.stored import restore_settings
from plopcli.runs.checkpoint import Checkpoint, load_checkpoint
from plopcli.runs.folder import RunFolder
from plopcli.runs.foreign import is_from_original
from plopcli.runs.restore import plan_of
from plopcli.scenarios.scenario import Scenario
from plopcli.settings.keys import leaves
from plopcli.settings.sections import Decides, MethodSettings, RunSettings


def check_scenario(settings: RunSettings, scenario: Scenario, layout: BatchLayout) -> None:
    """Refuses a scenario that would fail at a later step.

    Raises:
        DataError: A step has no image to train or to measure on.
        UsageError: A step has fewer images than a batch, a split is missing, or the network cannot be built so.
    """
    if settings.train.validate_every and not scenario.has_split("val"):
        raise UsageError(
            f"train.validate_every needs a validation set, and data set {scenario.data.name} has none.",
            "Keep a share of the training list apart: --val-fraction 0.2.",
        )
    with torch.device("meta"):
        plan = get_method(settings.method.name).classifier(settings.method)
        save_memory(build_segmenter(settings.model, scenario.class_counts(0), plan), settings.compute.in_place_norm)
    together = layout.world if settings.compute.sync_norm else 1
    for step in range(scenario.steps):
        recipe = settings.train.recipe(step)
        if layout.micro * together == 1 and recipe.freeze_norm != "all" and recipe.lr_head > 0:
            raise UsageError(
                "Batch norm cannot be trained on one image at a time: its pooled context has one value per channel.",
                "Raise train.batch or compute.micro_batch, or freeze the norms: --set train.first.freeze_norm=all "
                "--set train.later.freeze_norm=all",
            )
        batch_schedule(settings, scenario, layout, step)
        scenario.evaluation(step, settings.data.results_on)


def batch_schedule(
    settings: RunSettings, scenario: Scenario, layout: BatchLayout, step: int, rank: int = 0
) -> BatchSchedule:
    """How the images of ``step`` are dealt into batches.

    Raises:
        DataError: The step has no image.
        UsageError: It has fewer images than a batch.
    """
    images = len(scenario.training(step))
    return BatchSchedule(images, layout.total, layout.micro, settings.seed, step, rank=rank, world=layout.world)


def backbone_weights(settings: RunSettings) -> Path:
    """Where the backbone's weights are expected."""
    model = settings.model
    return model.weights or default_weights_path(model.backbone, settings.data.root)


def weights_path(settings: RunSettings) -> Path | None:
    """The file with the backbone's weights, None for random ones.

    Raises:
        DataError: It is not there.
    """
    if not settings.model.pretrained:
        return None
    path, backbone = backbone_weights(settings), settings.model.backbone
    if not path.is_file():
        raise DataError(
            f"Pretrained weights of {backbone} are not at {path}.",
            f"Get them with: plop download weights --backbone {backbone}   "
            "(or give --weights FILE, or start from random weights with --no-pretrained)",
        )
    return path


def check_weights(settings: RunSettings) -> None:
    """Refuses a weights file that step 0 could not start from.

    Raises:
        DataError: It is missing, broken, or holds the weights of another backbone.
    """
    if (path := weights_path(settings)) is not None:
        with torch.device("meta"):
            model = build_segmenter(settings.model, (1,))
        backbone_tensors(model, path)


def weights_digest(settings: RunSettings) -> str | None:
    """SHA-256 of the backbone's weights file, None for random weights."""
    path = weights_path(settings)
    if path is None:
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_folder(folder: RunFolder, settings: RunSettings, before_step: int | None = None) -> None:
    """Refuses to go on in a folder whose checkpoints were made with other settings.

    Args:
        folder: The run's folder.
        settings: The settings to go on with.
        before_step: Compare only checkpoints of earlier steps; by default all.

    Raises:
        UsageError: Names the differences, or a gap in the checkpoints.
    """
    steps = [step for step in folder.steps() if before_step is None or step < before_step]
    if not steps:
        return
    path = folder.checkpoint(steps[-1])
    check_same_settings(path, load_checkpoint(path).settings, settings)
    if before_step is None and (missing := sorted(set(range(steps[-1])) - set(steps))):
        raise UsageError(
            f"{folder.path} holds step {steps[-1]} but not step {missing[0]}.",
            "Go on with `plop train-step`, or begin anew with --overwrite or another --run.",
        )


def check_same_settings(path: Path, made: Mapping[str, Any], settings: RunSettings) -> None:
    """Refuses to go on from ``path``, made with settings that give other results.

    Raises:
        UsageError: Names the differences.
    """
    # What an older version did not know yet has its default.
    stored = restore_settings(made).model_dump(mode="json")
    if found := _differences(stored, settings.model_dump(mode="json")):
        raise UsageError(
            f"{path} was made with other settings: {'; '.join(found)}.",
            "Give the same settings (--config RUN/settings.toml), --overwrite, or another --run.",
        )


def check_previous(previous: Checkpoint, settings: RunSettings, scenario: Scenario, step: int) -> None:
    """Refuses a checkpoint that ``step`` cannot start from.

    Raises:
        DataError: Says in what it differs.
    """
    if previous.step != step - 1:
        raise DataError(
            f"Step {step} starts from a checkpoint of step {step - 1}; this one is of step {previous.step}.",
            "Choose another with --previous.",
        )
    expected = [list(learned) for learned in scenario.task.steps[:step]]
    names = scenario.class_names[: sum(scenario.class_counts(step - 1))]
    if previous.task_steps[:step] != expected or previous.classes != names:
        raise DataError(
            f"The checkpoint is of another task, {previous.task_name}: it knows {', '.join(previous.classes)}.",
            f"Task {scenario.task.name} brings before step {step}: "
            f"{', '.join(name for earlier in range(step) for name in scenario.learned(earlier))}.",
        )
    if changed := _other_network(previous, settings):
        raise DataError(
            f"The checkpoint is of another network: {'; '.join(changed)}.",
            "Model settings cannot change between steps.",
        )
    _check_state(previous, settings, scenario)


def check_first_step(
    checkpoint: Checkpoint, settings: RunSettings, scenario: Scenario, made_with: Mapping[str, Any]
) -> None:
    """Refuses to take step 0 over from a run whose step 0 is another.

    Raises:
        UsageError: Names the differences.
        DataError: The settings in the checkpoint are none of this version.
    """
    if is_from_original(checkpoint):
        # Recipe, seed, images and precision of that program are in no file: they are taken on trust, and it is said.
        found = _other_network(checkpoint, settings)
        _check_state(checkpoint, settings, scenario)
    else:
        theirs = restore_settings(checkpoint.settings)
        stored, ours = (_of_first_step(one.model_dump(mode="json")) for one in (theirs, settings))
        found = _differences(stored, ours, "results")
        found += [
            f"{key}: {checkpoint.made_with.get(key)} -> {value}"
            for key, value in made_with.items()
            if checkpoint.made_with.get(key) != value
        ]
        if checkpoint.data_fingerprint != scenario.fingerprint:
            found.append("the images and masks")
    if checkpoint.step != 0:
        found.append(f"it is of step {checkpoint.step}")
    task = checkpoint.task
    if task.steps[0] != scenario.task.steps[0]:
        found.append("the classes of step 0")
    elif scenario.protocol != "overlapped" and set(task.order) != set(scenario.task.order):
        found.append("the classes of later steps, which this protocol excludes from step 0")
    if found:
        raise UsageError(
            f"Step 0 cannot be taken over from --init-from; it differs in: {'; '.join(found)}.",
            "Leave --init-from away, or use the same settings for step 0.",
        )


def _other_network(checkpoint: Checkpoint, settings: RunSettings) -> list[str]:
    """Where the network of a checkpoint is another than that of ``settings``, as ``model.key: theirs -> ours``."""
    stored = restore_settings(checkpoint.settings)
    theirs, ours = (one.model.model_dump(mode="json") for one in (stored, settings))
    found = [
        f"model.{key}: {theirs.get(key)} -> {ours[key]}"
        for key in ours
        if key not in ("pretrained", "weights") and theirs.get(key) != ours[key]
    ]
    plans = (plan_of(checkpoint, stored), get_method(settings.method.name).classifier(settings.method))
    return found + [
        f"classifier.{key}: {getattr(plans[0], key)} -> {getattr(plans[1], key)}"
        for key in ("kind", "extra")
        if getattr(plans[0], key) != getattr(plans[1], key)
    ]


def _check_state(previous: Checkpoint, settings: RunSettings, scenario: Scenario) -> None:
    """Refuses a checkpoint without the state that the method has to go on from."""
    step = previous.step + 1
    if step < scenario.steps:
        context = StepContext(step, scenario.class_counts(step), scenario.shares_classes)
        get_method(settings.method.name)(settings.method, context).load_carried_state(previous.method, same_step=False)


def shares_first_step(donor: RunSettings, settings: RunSettings) -> bool:
    """Whether the settings of two runs of one scenario make the same step 0, so that one can take it from the other."""
    merged = [get_method(one.method.name).merges_steps for one in (donor, settings)]
    if merged[0] != merged[1] or donor.scenario != settings.scenario:
        return False
    stored, ours = (_of_first_step(one.model_dump(mode="json")) for one in (donor, settings))
    return not _differences(stored, ours, "results")


def _of_first_step(dumped: Mapping[str, Any]) -> dict[str, Any]:
    """What of dumped settings decides about step 0."""
    kind = get_method(dumped["method"]["name"])
    settings = kind.Settings.model_validate(dumped["method"])
    plan = kind.classifier(settings)
    return {
        **dumped,
        "train": {key: dumped["train"][key] for key in ("batch", "first")},
        # Of classes of other steps, step 0 has but later ones, which are background unless they are ignored.
        "scenario": {
            "protocol": dumped["scenario"]["protocol"],
            "later classes ignored": dumped["scenario"].get("other_labels") == "ignored",
        },
        "method": {"first step": dict(kind.step_0_key(settings)), "classifier": [plan.kind, *plan.extra]},
    }


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any], *passed: Decides) -> list[str]:
    """Where two dumped settings differ, as ``key: theirs -> ours``.

    Settings that decide nothing may differ, and those that decide what is ``passed`` over. So may those of devices and
    precision, as far as settings are concerned: what was computed with is compared with the checkpoint itself.
    """
    left, right, keys = _flat(theirs), _flat(ours), leaves(MethodSettings)
    return [
        f"{key}: {left.get(key)} -> {right.get(key)}"
        for key in dict.fromkeys([*right, *left])
        if left.get(key) != right.get(key)
        and not key.startswith("compute.")
        and not (key in keys and keys[key].decides in ("nothing", *passed))
    ]


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
