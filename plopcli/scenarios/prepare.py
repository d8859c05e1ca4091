"""`plop prepare`: checks a data set, builds its class index and says what every step of a task would see."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from plopcli.console.log import RunLog
from plopcli.data.colours import PROBLEMS_FILE, convert_masks, read_palette
from plopcli.data.datasets import load_dataset
from plopcli.data.index import TWO_VALUES, Inspection, index_file, inspect, is_two_valued
from plopcli.data.reading import KINDS, mask_palette
from plopcli.data.samples import SAME_IDS, SegmentationData, some
from plopcli.errors import DataError, PlopError, UsageError
from plopcli.files.atomic import write_atomic
from plopcli.scenarios.scenario import Scenario, find_task
from plopcli.settings.sections import DataSettings, ScenarioSettings


@dataclass(frozen=True)
class Preparation:
    """What `prepare` is asked for besides the data set.

    Args:
        skip_bad: From now on, go on without pairs that are unusable.
        steps: Give the images of each step of the task.
        ids: Names of these images in place of their number.
        palette: A palette by name or file, where masks in colour are to be converted.
        convert_to: Folder for a copy of the data set with converted masks.
    """

    skip_bad: bool = False
    steps: bool = False
    ids: bool = False
    palette: str | None = None
    convert_to: Path | None = None


def prepare(
    settings: DataSettings, scenario: ScenarioSettings, chosen: Preparation, console: Console
) -> dict[str, Any]:
    """Checks every pair of a data set, images and masks decoded, and indexes its classes.

    Problems are listed in `PROBLEMS_FILE` beside the index.

    Args:
        settings: Which data set, where, and its validation share.
        scenario: Task and protocol, where steps are asked for.
        chosen: What else to do.
        console: Where to show progress.

    Returns:
        ``dataset``, ``root``, ``index``, ``images`` by split, ``classes`` (images and pixels of each), ``problems``
        (kind, pairs, first, hint), ``problems_file``, ``skipped``, ``changes``, ``notes``, and with a task ``steps``:
        for each its number and its train, val and test images. ``refused`` tells why nothing can be trained on.

    Raises:
        DataError: The data set is missing, or its masks cannot be converted.
        UsageError: One of palette and folder to convert to is missing.
    """
    if (chosen.palette is None) != (chosen.convert_to is None):
        raise UsageError("--palette and --convert-to belong together.", "--palette FILE --convert-to DIR")
    log = RunLog(console)
    data = load_dataset(
        settings.dataset, settings.root, settings.path, background=settings.background, dealt_by=settings.dealt_by
    )
    if chosen.palette is not None and chosen.convert_to is not None:
        data = _converted(data, settings, chosen.palette, chosen.convert_to, log)
    with log.progress("checking", "pairs") as bar:
        found = inspect(data, bar.update, whole=True, skip_bad=chosen.skip_bad)
    if chosen.skip_bad and found.problems and not found.saved:
        raise DataError(
            f"{index_file(data)} cannot be written, so that what is skipped cannot be remembered.",
            "Make the folder writable, or link its content into another one and give that.",
        )
    answer = _description(found)
    refused = None
    try:
        index = found.index()
        answer["notes"] += index.twice(index.usable(data))
    except DataError as error:
        refused = error.message
    if chosen.steps and refused is None:
        task = find_task(data, scenario.task, scenario.order_seed)
        planned = Scenario.build(
            data, index, task, scenario.protocol, settings.val_fraction, scenario.splits, settings.dealt_by
        )
        steps = [_images(planned, step, chosen.ids) for step in range(planned.steps)]
        answer |= {"task": planned.task.name, "protocol": planned.protocol, "steps": steps}
        if empty := [str(step["step"]) for step in steps if not step["train"]]:
            answer["notes"].append(f"step {', '.join(empty)} has no training image: it cannot be trained")
    return answer | {"refused": refused}


def _converted(
    data: SegmentationData, settings: DataSettings, palette: str, target: Path, log: RunLog
) -> SegmentationData:
    with log.progress("converting", "masks") as bar:
        done = convert_masks(data, read_palette(palette), target, bar.update)
    if done.problems:
        listed = done.problems
        path = target / PROBLEMS_FILE
        _save(path, [vars(problem) | {"mask": str(mask)} for mask, problem in listed.items()])
        first = next(iter(listed.values()))
        raise DataError(
            f"{len(listed)} of {len(listed) + done.converted + done.kept} masks cannot be converted, all listed in "
            f"{path}. The first: {first.message}.",
            f"{KINDS[first.kind]} Then remove {target} and convert again.",
        )
    log.say(f"{done.converted} masks converted, {done.kept} held ids already; the data set with ids is {target}")
    return load_dataset(settings.dataset, target, target, background=settings.background, dealt_by=settings.dealt_by)


def _description(found: Inspection) -> dict[str, Any]:
    data = found.data
    labels = found.counts[~found.skipped][:, : len(data.classes)]
    images = (labels > 0).sum(axis=0)
    notes = list(data.notes)
    if not found.saved:
        notes.append(f"{index_file(data)} could not be written: the masks are counted anew at every start")
    foreground = [(name, number) for name, number in zip(data.classes, images, strict=True)][0 if data.domains else 1 :]
    absent = [name for name, number in foreground if number == 0]
    sound = found.skipped.sum() == len(found.problems)
    if sound and data.ids == SAME_IDS and images[0] == 0:
        notes.append(f"no mask holds id 0, {data.classes[0]}: do the ids count from 1?")
    if is_two_valued(found.counts):
        notes.append(TWO_VALUES)
    elif absent and sound:
        notes.append(f"no image holds {some(absent)}")
    if contradiction := _contradiction(found):
        notes.append(contradiction)
    return {
        "dataset": data.name,
        "root": str(data.root),
        "index": str(index_file(data)),
        "images": {split: len(samples) for split, samples in data.splits.items()},
        "classes": [
            {"name": name, "images": int(images[label]), "pixels": int(labels[:, label].sum())}
            for label, name in enumerate(data.classes)
        ],
        "problems": _by_kind(found),
        "problems_file": _write_problems(found),
        "skipped": [sample.name for (_, sample), skip in zip(found.samples, found.skipped, strict=True) if skip],
        "changes": str(found.changes),
        "notes": notes,
    }


def _contradiction(found: Inspection) -> str | None:
    """Where masks show one id in several colours: a program has then numbered the colours of each by itself."""
    seen: dict[int, tuple[list[int], Path]] = {}
    for row, (_, sample) in enumerate(found.samples):
        palette = [] if row in found.problems else mask_palette(sample.mask)
        for label in np.flatnonzero(found.counts[row, : len(found.data.classes)]):
            number = int(np.flatnonzero(found.data.label_table == label)[0])
            colour = palette[3 * number : 3 * number + 3]
            other, first = seen.setdefault(number, (colour, sample.mask)) if colour else (colour, sample.mask)
            if colour != other:
                return (
                    f"id {number} is {other} in {first} and {colour} in {sample.mask}: if colours mean classes and "
                    "their numbers nothing, convert by colour with --palette FILE --convert-to DIR"
                )
    return None


def _by_kind(found: Inspection) -> list[dict[str, Any]]:
    """One entry per kind of problem, the most frequent first."""
    pairs = Counter(problem.kind for problem in found.problems.values())
    first = {problem.kind: problem.message for problem in reversed(found.problems.values())}
    return [
        {"kind": kind, "pairs": number, "first": first[kind], "hint": KINDS[kind]}
        for kind, number in pairs.most_common()
    ]


def _write_problems(found: Inspection) -> str | None:
    """Lists the problems beside the index; the file of an earlier check is removed where there are none."""
    path = found.data.root / PROBLEMS_FILE
    samples = found.samples
    entries = []
    for row, problem in found.problems.items():
        split, sample = samples[row]
        files = {"image": str(sample.image), "mask": str(sample.mask)}
        entries.append(
            {"kind": problem.kind, "name": sample.name, "split": split}
            | files
            | {"message": problem.message, "hint": KINDS[problem.kind], "skipped": bool(found.skipped[row])}
        )
    try:
        _save(path, entries)
    except OSError:  # a folder that can only be read
        return None
    return str(path) if entries else None


def _save(path: Path, entries: list[dict[str, Any]]) -> None:
    """Writes a list in place of what is there; none where there is nothing to list."""
    if not entries:
        path.unlink(missing_ok=True)
        return
    # A byte that is no UTF-8 becomes an escape of JSON.
    write_atomic(path, f"{json.dumps(entries, indent=2, ensure_ascii=False)}\n".encode(errors="backslashreplace"))


def _images(scenario: Scenario, step: int, ids: bool) -> dict[str, Any]:
    """The train, val and test images of a step, or their number; none where training would refuse."""
    shown: dict[str, Any] = {"step": step}
    for split in ("train", "val", "test"):
        try:
            images = scenario.training(step) if split == "train" else scenario.evaluation(step, split)
        except PlopError:
            shown[split] = [] if ids else 0
        else:
            shown[split] = [sample.name for sample in images.samples] if ids else len(images)
    return shown
