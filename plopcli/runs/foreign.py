"""Checkpoints of the original implementation as checkpoints of plop, and back.

Our labels and the original's are numbered alike: background, the classes of step 0 in the order of the task, those of
step 1, and so on (`Task.order`); the networks have the same tensors under the same names. What such a file does not
say, its data set and its task, a `Description` says, or the settings of the run that goes on from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from plopcli.data.datasets import DATASETS, known_names, load_dataset
from plopcli.errors import DataError, UsageError
from plopcli.methods import get_method
from plopcli.methods.regularised import Regularised
from plopcli.models.segmenter import build_segmenter
from plopcli.models.weights import check_finite
from plopcli.resolution.layers import DEFAULT, Resolved, resolve_settings
from plopcli.runs.checkpoint import Checkpoint, load_checkpoint
from plopcli.runs.original import SOURCE, OriginalCheckpoint, OriginalCheckpointError, carried_tables, fitted
from plopcli.runs.original import read_original as take_apart
from plopcli.runs.restore import with_settings
from plopcli.scenarios.scenario import Scenario
from plopcli.scenarios.tasks import Task, named_tasks, resolve_task
from plopcli.settings.sections import RunSettings

#: What a result shows of a model where its file does not say it, by setting.
_SHOWN = {"method.name": "method", "scenario.protocol": "protocol", "seed": "seed"}
_FITTING_SHOWN = 4


@dataclass(frozen=True)
class Description:
    """What a user says about a checkpoint that does not say it itself.

    Args:
        dataset: The data set that it has learned from.
        task: The task.
        method: The method.
        step: The step after which it was written, where the classifiers do not tell.
        assignments: ``KEY=VALUE`` for any other setting.
        root: The folder of all data sets, for class names that only the data set knows.
        path: The data set's own folder.
    """

    dataset: str | None = None
    task: str | None = None
    method: str | None = None
    step: int | None = None
    assignments: tuple[str, ...] = ()
    root: Path | None = None
    path: Path | None = None

    def __bool__(self) -> bool:
        """Whether it says anything; where the data are is no description."""
        return any((self.dataset, self.task, self.method, self.assignments)) or self.step is not None

    def resolved(self) -> Resolved:
        """The settings that it amounts to, on top of presets and defaults.

        Raises:
            UsageError: Data set or task is not said, or settings are wrong.
        """
        missing = [f"--{name}" for name in ("dataset", "task") if getattr(self, name) is None]
        if missing:
            raise UsageError(
                f"A checkpoint of {SOURCE} holds neither data set nor task: {' and '.join(missing)} is missing.",
                "For example: --dataset voc --task 15-1",
            )
        flags = {
            "data.dataset": self.dataset,
            "scenario.task": self.task,
            "method.name": self.method,
            "data.root": self.root,
            "data.path": self.path,
        }
        names = {key: "--" + key.rpartition(".")[2] for key in flags} | {"method.name": "--method"}
        return resolve_settings(flags, assignments=self.assignments, flag_names=names)


@dataclass(frozen=True)
class Lesson:
    """What a model has learned: a task, and the names of what it partitions."""

    task: Task
    classes: tuple[str, ...]
    domains: tuple[str, ...] = ()

    def counts(self, step: int) -> tuple[int, ...]:
        """Classes of each classifier after ``step``."""
        return (len(self.classes),) if self.domains else self.task.counts(step)

    def names(self, step: int) -> list[str]:
        """Names of the classes known after ``step``, in learned order."""
        return list(self.classes) if self.domains else [self.classes[label] for label in self.task.seen(step)]


def load_described(
    path: Path, description: Description | None, *, among_others: bool = False
) -> tuple[Checkpoint, RunSettings]:
    """A checkpoint of plop, or one of the original as ``description`` says, with its settings.

    Args:
        path: The file.
        description: What it has learned, in case it does not say so itself.
        among_others: The description may be for other files.

    Raises:
        DataError: It is missing, damaged, something else, or fits neither the description nor any network.
        UsageError: The description is wrong, or there is nothing to describe.
    """
    try:
        checkpoint = load_checkpoint(path)
    except OriginalCheckpointError as error:
        if not description:
            raise
        checkpoint = adopt(error.content, path, description)
        check_finite(checkpoint.model, path)
    else:
        if description and not among_others:
            raise UsageError(
                f"{path} is a checkpoint of plop, which knows its data set, task and settings.",
                f"--dataset, --task, --method and --set are for checkpoints of {SOURCE}: leave them away.",
            )
    return with_settings(checkpoint)


def adopt(content: Mapping[str, Any], path: Path, description: Description) -> Checkpoint:
    """A file of the original as a checkpoint of plop.

    Network settings come from the tensors where these tell (backbone, width, channels of the head), else from the
    description, the preset of the data set and the defaults.

    Raises:
        DataError: File and description do not go together.
        UsageError: The description is wrong or incomplete.
    """
    found = take_apart(content, path)
    resolved = description.resolved()
    settings = _with_network(resolved, found, path)
    lesson = _lesson(settings)
    step = _step(found.class_counts, lesson, description.step, settings.data.dataset, path)
    unknown = [name for key, name in _SHOWN.items() if _open(resolved.origins[key])]
    return _checkpoint(found, path, settings, lesson, step, unknown)


def load_for_run(path: Path, settings: RunSettings, scenario: Scenario, step: int) -> Checkpoint:
    """A checkpoint that a run goes on from; one of the original is taken for what the run's settings say.

    Args:
        path: The file.
        settings: Those of the run.
        scenario: That of the run.
        step: The step that it has to be of, which the classifiers do not tell where steps bring domains.

    Raises:
        DataError: It is missing, damaged or something else, or is of another task than the run.
    """
    try:
        return load_checkpoint(path)
    except OriginalCheckpointError as error:
        found = take_apart(error.content, path)
        check_finite(found.tensors, path)
    settings = settings.model_copy(update={"model": settings.model.model_copy(update=dict(found.network))})
    lesson = Lesson(scenario.task, scenario.data.classes, scenario.data.domains)
    at = _step(found.class_counts, lesson, step if lesson.domains else None, settings.data.dataset, path)
    return _checkpoint(found, path, settings, lesson, at, None)


def is_from_original(checkpoint: Checkpoint) -> bool:
    """Whether the weights are the original's, converted or not."""
    return checkpoint.made_with.get("source") == SOURCE


def taken_over(made_with: Mapping[str, Any]) -> dict[str, Any]:
    """``made_with`` of a step that becomes part of a run, whose settings are known."""
    return {key: value for key, value in made_with.items() if key != "unknown"}


def unknown_facts(checkpoint: Checkpoint) -> dict[str, str]:
    """What results say in place of settings that nobody has told: ``{"protocol": "protocol unknown"}``."""
    return {name: f"{name} unknown" for name in checkpoint.made_with.get("unknown", ())}


def model_label(checkpoint: Checkpoint, settings: RunSettings, path: Path) -> str:
    """What a model is called beside its pictures."""
    name = path.name if "method" in checkpoint.made_with.get("unknown", ()) else settings.method.name
    return f"{name} after step {checkpoint.step}"


def summary(checkpoint: Checkpoint) -> str:
    """What a checkpoint holds, in one line: what a file was taken for."""
    settings = checkpoint.settings
    model, pooling = settings["model"], settings["model"]["pooling"]
    return (
        f"{settings['data']['dataset']} {checkpoint.task_name} after step {checkpoint.step}, "
        f"{' + '.join(map(str, checkpoint.class_counts))} classes; {model['backbone']}, output stride "
        f"{model['output_stride']}, pooling {'global' if pooling is None else pooling}"
    )


def how_it_was_read(checkpoint: Checkpoint, path: Path) -> list[str]:
    """What to tell of a checkpoint that a user has described; nothing for others."""
    if "unknown" not in checkpoint.made_with:
        return []
    return [f"{path} is from {SOURCE}, read as {summary(checkpoint)}"]


def caveats(checkpoint: Checkpoint, settings: RunSettings) -> list[str]:
    """What a run that goes on from the original's weights should say; nothing for other checkpoints."""
    if not is_from_original(checkpoint):
        return []
    said = [
        f"it comes from {SOURCE} ({checkpoint.made_with.get('file')}), read as {summary(checkpoint)}",
        "taken on trust, since that file does not say: data set, task and protocol, recipe, seed, loss, norm, stride",
    ]
    dropped = checkpoint.made_with.get("dropped")
    return [*said, f"its state of {dropped} is not used by {settings.method.name}"] if dropped else said


def _with_network(resolved: Resolved, found: OriginalCheckpoint, path: Path) -> RunSettings:
    settings = resolved.settings
    for key, value in found.network.items():
        origin = resolved.origins[f"model.{key}"]
        if not _open(origin) and getattr(settings.model, key) != value:
            raise DataError(
                f"{path} holds a network with model.{key} = {value}, not {getattr(settings.model, key)} ({origin}).",
                "Leave that setting away: the tensors tell it.",
            )
    return settings.model_copy(update={"model": settings.model.model_copy(update=dict(found.network))})


def _open(origin: str) -> bool:
    """Whether nobody has said the value: it is a preset's or the default."""
    return origin == DEFAULT or origin.startswith("preset ")


def _lesson(settings: RunSettings) -> Lesson:
    data = settings.data
    names = known_names(data.dataset) if data.background else None
    if names is None:
        found = load_dataset(data.dataset, data.root, data.path, background=data.background, dealt_by=data.dealt_by)
        names = found.classes, found.domains
    classes, domains = names
    scenario = settings.scenario
    task = resolve_task(
        scenario.task, domains or classes, data.dataset, background=not domains, order_seed=scenario.order_seed
    )
    task = task.joined() if get_method(settings.method.name).merges_steps else task
    return Lesson(task, classes, domains)


def _step(counts: tuple[int, ...], lesson: Lesson, said: int | None, dataset: str, path: Path) -> int:
    """The step after which a model has classifiers of ``counts`` classes."""
    steps = len(lesson.task.steps)
    step = len(counts) - 1 if said is None and not lesson.domains else said
    if step is None:
        raise UsageError(
            f"{path}: the steps of {dataset} bring domains and share one classifier, which does not tell the step.",
            f"Add --step N, from 0 to {steps - 1}.",
        )
    if not 0 <= step < steps or lesson.counts(step) != counts:
        has, wanted = (" + ".join(map(str, some)) for some in (counts, lesson.counts(steps - 1)))
        which = f"task {lesson.task.name} of {dataset} has {wanted} in its {steps} steps"
        raise DataError(
            f"{path} has classifiers of {has} classes (background in the first), and {which}"
            + (f"; --step says {said}." if said is not None else "."),
            _fitting(counts, dataset) or "`plop tasks` lists the tasks; a TOML file with your own steps works too.",
        )
    return step


def _fitting(counts: tuple[int, ...], dataset: str) -> str | None:
    """The named tasks with such classifiers."""
    # Where a task has several names, the papers' one comes last.
    named = {} if DATASETS[dataset].domains else named_tasks(dataset)
    fits = {steps: name for name, steps in named.items() if tuple(map(len, steps[: len(counts)])) == counts}
    some = list(fits.values())[:_FITTING_SHOWN]
    more = " and others of its shape" if len(fits) > len(some) else ""
    return f"Tasks that fit: {', '.join(some)}{more}." if some else None


def _checkpoint(
    found: OriginalCheckpoint, path: Path, settings: RunSettings, lesson: Lesson, step: int, unknown: list[str] | None
) -> Checkpoint:
    with torch.device("meta"):
        network = build_segmenter(settings.model, found.class_counts)
    model = fitted(found.tensors, network.state_dict(), path)
    shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
    method = _method_state(found, settings.method.name, shapes)
    holds = found.regulariser.get("name")
    made: dict[str, Any] = {"source": SOURCE, "file": path.name, "epoch": found.epoch, "best_score": found.best_score}
    made |= {"dropped": holds} if holds and not method else {}
    return Checkpoint(
        step=step,
        classes=lesson.names(step),
        class_counts=list(found.class_counts),
        task_name=lesson.task.name,
        task_steps=[list(learned) for learned in lesson.task.steps],
        task_groups=[list(group) for group in lesson.task.groups],
        settings=settings.model_dump(mode="json"),
        model=model,
        method=method,
        made_with=made | ({} if unknown is None else {"unknown": unknown}),
    )


def _method_state(found: OriginalCheckpoint, name: str, shapes: Mapping[str, torch.Size]) -> dict[str, Any]:
    """The state of one of our regularisers from the original's, raw as both keep it; else empty."""
    kind = get_method(name)
    if not issubclass(kind, Regularised):
        return {}
    carried = carried_tables(found.regulariser, name, kind.carries, shapes)
    if carried is None:
        return {}
    return {"method": name, "calls": 0, "carried": carried, "running": {table: {} for table in kind.runs}}
