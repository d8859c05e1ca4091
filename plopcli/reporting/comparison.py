"""Runs side by side: which differ in the seed only, what the others differ in, and mean and spread."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from plopcli.errors import DataError, PlopError
from plopcli.reporting.differences import differing_settings, settings_that_matter
from plopcli.runs.folder import RunFolder
from plopcli.runs.results import GroupMeans, Results
from plopcli.settings.sections import RunSettings


class MeanStd(NamedTuple):
    """Mean and sample standard deviation over seeds; no deviation for one seed."""

    mean: float
    deviation: float | None

    def __str__(self) -> str:
        """With one decimal: ``54.6 ± 1.2``."""
        return f"{self.mean:.1f}" if self.deviation is None else f"{self.mean:.1f} ± {self.deviation:.1f}"


#: Columns of `figures`: the first step, the share of it that the old classes keep, and the last step.
FIGURES = ("step 0", "kept %", "old", "new", "all", "avg")


class MeasuredRun(NamedTuple):
    """A run that has measured at least one step: its folder, `results.json` and `settings.toml`.

    ``settings`` is None where they are missing, or of another version.
    """

    path: Path
    results: Results
    settings: RunSettings | None


class SameSetting(NamedTuple):
    """What runs must share for their figures to be comparable."""

    dataset: str
    task: str
    protocol: str
    split: str
    measured: str

    def __str__(self) -> str:
        """For people: ``toy 15-1 overlapped, central crops of split val``."""
        return f"{self.dataset} {self.task} {self.protocol}, {self.measured}"


@dataclass(frozen=True)
class Entry:
    """A row of a comparison: runs that differ in the seed only.

    Args:
        label: Its method, with settings or a folder where methods repeat.
        runs: The runs.
    """

    label: str
    runs: tuple[MeasuredRun, ...]

    @property
    def note(self) -> str:
        """Says that the runs are not finished."""
        results = self.runs[0].results
        return "" if results.is_finished() else f"after step {results.steps[-1].step}, not finished"

    @property
    def steps(self) -> int:
        """Steps that are measured."""
        return len(self.runs[0].results.steps)

    def figures(self, key: str = "miou") -> list[MeanStd | None]:
        """The values of `FIGURES` over the runs; ``key`` is `miou` or `miou_foreground`."""
        members = [figures(run.results, key) for run in self.runs]
        return [mean_std(column) for column in zip(*members, strict=True)]


@dataclass(frozen=True)
class Comparison:
    """Entries on the same setting; ``common`` holds for entries of a method whose label does not say otherwise."""

    setting: SameSetting
    entries: tuple[Entry, ...]
    common: tuple[str, ...] = ()


def read_runs(paths: Sequence[Path]) -> list[MeasuredRun]:
    """The runs in folders, each folder once.

    Raises:
        DataError: A folder holds no results yet, or damaged ones.
    """
    from plopcli.resolution.layers import read_settings

    found: dict[Path, MeasuredRun] = {}
    for path in paths:
        folder = RunFolder(path)
        results = folder.read_results()
        if results is None or not results.steps:
            raise DataError(f"{path} holds no results.json with a finished step.", "Give the folders of runs.")
        try:
            settings = read_settings(folder.settings)
        except PlopError:
            settings = None
        found.setdefault(path.resolve(), MeasuredRun(path, results, settings))
    return list(found.values())


def compare(runs: Sequence[MeasuredRun], *, pool: bool = False) -> list[Comparison]:
    """Groups runs by what they can be compared on, and pools those that differ in the seed only.

    With ``pool``, runs of the same settings are pooled even if their seeds are the same, too.

    Raises:
        DataError: With ``pool``, runs of the same settings have got to different steps: their mean would mean nothing.
    """
    by_setting: dict[SameSetting, list[MeasuredRun]] = {}
    for run in runs:
        by_setting.setdefault(setting_of(run.results), []).append(run)
    compared = []
    for setting, members in by_setting.items():
        pools = _pools(members, pool)
        labels, common = _labels(pools)
        entries = tuple(Entry(label, tuple(each)) for label, each in zip(labels, pools, strict=True))
        compared.append(Comparison(setting, entries, tuple(common)))
    return compared


def by_label(labelled: Iterable[tuple[str, Path, Results]]) -> list[Comparison]:
    """Comparisons of runs whose labels are known: label, folder and results of each."""
    by_setting: dict[SameSetting, dict[str, list[MeasuredRun]]] = {}
    for label, path, results in labelled:
        of_label = by_setting.setdefault(setting_of(results), {}).setdefault(label, [])
        of_label.append(MeasuredRun(path, results, None))
    for entries in by_setting.values():
        for label, members in entries.items():
            _check_same_steps(label, members)
    return [
        Comparison(setting, tuple(Entry(label, tuple(runs)) for label, runs in entries.items()))
        for setting, entries in by_setting.items()
    ]


def run_labels(comparisons: Sequence[Comparison]) -> dict[Path, str]:
    """A label for every single run, by its folder as it was given."""
    labels: dict[Path, str] = {}
    for comparison in comparisons:
        for entry in comparison.entries:
            for run in entry.runs:
                alone = len(entry.runs) == 1
                labels[run.path] = entry.label if alone else f"{entry.label}, seed {run.results.seed}"
    repeated = {label for label, count in Counter(labels.values()).items() if count > 1}
    return {path: str(path) if label in repeated else label for path, label in labels.items()}


def setting_of(results: Results) -> SameSetting:
    """The setting that the figures of a run were measured in."""
    return SameSetting(results.dataset, results.task, results.protocol, results.split or "test", results.measured_on)


def figures(results: Results, key: str = "miou") -> list[float | None]:
    """The values of `FIGURES` of one run.

    ``key`` is `miou`, with background among the old classes, or `miou_foreground`, without.
    """
    steps = [getattr(step, key) or GroupMeans(all=None, old=None, new=None) for step in results.steps]
    first, last = steps[0], steps[-1]
    kept = 100 * last.old / first.all if len(steps) > 1 and first.all and last.old is not None else None
    start = None if len(steps) == 1 else first.all
    avg = results.avg
    if key != "miou" and avg is not None:
        every = [step.all for step in steps if step.all is not None]
        avg = statistics.fmean(every) if len(every) == len(steps) else None
    return [start, kept, last.old, last.new, last.all, avg]


def mean_std(values: Sequence[float | None]) -> MeanStd | None:
    """Mean and deviation of the values that are not None."""
    present = [value for value in values if value is not None]
    if not present:
        return None
    return MeanStd(statistics.fmean(present), statistics.stdev(present) if len(present) > 1 else None)


def _pools(runs: Sequence[MeasuredRun], pool: bool) -> list[list[MeasuredRun]]:
    """Runs that differ in the seed only, together."""
    pools: dict[tuple[object, ...], list[MeasuredRun]] = {}
    for run in runs:
        reached = 0 if pool else len(run.results.steps)
        settings = None if run.settings is None else frozenset(settings_that_matter(run.settings).items())
        pools.setdefault((run.results.method, reached, settings), []).append(run)
    if pool:
        for members in pools.values():
            _check_same_steps(members[0].results.method, members)
        return list(pools.values())
    split: list[list[MeasuredRun]] = []
    for members in pools.values():
        seeds = {run.results.seed for run in members}
        split += [members] if len(seeds) == len(members) else [[run] for run in members]
    return split


def _check_same_steps(label: str, runs: Sequence[MeasuredRun]) -> None:
    if len({len(run.results.steps) for run in runs}) > 1:
        reached = ", ".join(f"seed {run.results.seed}: {len(run.results.steps)}" for run in runs)
        raise DataError(
            f"The runs of {label} have different numbers of steps ({reached}).", "Finish them with --resume first."
        )


def _labels(pools: Sequence[Sequence[MeasuredRun]]) -> tuple[list[str], list[str]]:
    """A label for every pool, and what all short labels have in common."""
    methods = [runs[0].results.method for runs in pools]
    labels, common = list(methods), []
    for method in dict.fromkeys(methods):
        places = [place for place, name in enumerate(methods) if name == method]
        if len(places) < 2:
            continue
        settings = [pools[place][0].settings for place in places]
        own, shared = differing_settings([each for each in settings if each is not None])
        if None in settings or len(set(own)) < len(own):
            for place in places:
                first, *others = (run.path.resolve().name for run in pools[place])
                labels[place] = f"{first} and {len(others)} more" if others else first
            continue
        if shared:
            common.append(f"{method}: {shared} where not said otherwise")
        for place, difference in zip(places, own, strict=True):
            labels[place] = f"{method} {difference}".rstrip()
    return _told_apart(labels, pools), common


def _told_apart(labels: Sequence[str], pools: Sequence[Sequence[MeasuredRun]]) -> list[str]:
    """Unique labels: the folder replaces those that repeat, then its whole path."""
    for name_of in (lambda runs: str(runs[0].path), str):
        repeated = {label for label, count in Counter(labels).items() if count > 1}
        if not repeated:
            break
        labels = [name_of(runs) if label in repeated else label for label, runs in zip(labels, pools, strict=True)]
    return list(labels)
