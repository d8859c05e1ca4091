"""Everything that the page shows of one run; `templates/run.html` lays it out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from plopcli.reporting.html import maps
from plopcli.reporting.html.charts import Chart, Series, line_chart, over_steps
from plopcli.reporting.html.facts import facts, settings
from plopcli.reporting.html.training import training_charts
from plopcli.reporting.run_data import RunData, warnings
from plopcli.runs.diagnosis import Diagnosis, StepAudit
from plopcli.runs.results import GROUPS, StepMatrix


@dataclass(frozen=True)
class ConfusionView:
    """A confusion matrix: as a map with names, or for many classes as pixels (C, C, 3); and the largest confusions."""

    map: maps.HeatMap | None
    pixels: npt.NDArray[np.uint8] | None
    largest: Sequence[tuple[str, str, float]]


@dataclass(frozen=True)
class DiagnosisView:
    """Pseudo-labels against the hidden truth: a chart over the steps, class by class, and in numbers."""

    steps: Sequence[StepAudit]
    chart: Chart
    recovered: maps.HeatMap


@dataclass(frozen=True)
class RunView:
    """Everything about a run."""

    anchor: str
    data: RunData
    warnings: Sequence[str]
    matrix: StepMatrix
    curves: Chart
    iou: maps.HeatMap
    forgetting: Sequence[maps.Bar]
    confusion: ConfusionView | str
    diagnosis: DiagnosisView | str
    training: Mapping[str, Chart]
    facts: Mapping[str, str]
    settings: Mapping[str, Mapping[str, str]]


def view_of(data: RunData, anchor: str) -> RunView:
    """Draws a run; ``anchor`` is the target of links to it."""
    matrix = data.results.matrix
    return RunView(
        anchor,
        data,
        warnings(data),
        matrix,
        _curves(data),
        maps.iou_map(matrix),
        maps.forgetting_bars(matrix),
        _confusion(data),
        _diagnosis(data.diagnosis, matrix),
        training_charts(data.rows),
        facts(data),
        settings(data),
    )


def _curves(data: RunData) -> Chart:
    steps = data.results.steps
    series = []
    for look, name in enumerate(GROUPS):
        values = [(float(step.step), getattr(step.miou, name)) for step in steps]
        if points := [(at, value) for at, value in values if value is not None]:
            series.append(Series(name, points, look))
    return line_chart(series, over_steps([step.step for step in steps]), top=100, text="mIoU over the steps")


def _confusion(data: RunData) -> ConfusionView | str:
    found = data.confusion
    if isinstance(found, str):
        return found
    largest = maps.largest_confusions(found)
    if len(found.classes) > maps.NAMED:
        return ConfusionView(None, maps.colours(np.nan_to_num(maps.shares(found))), largest)
    return ConfusionView(maps.confusion_map(found), None, largest)


def _diagnosis(found: Diagnosis | str, matrix: StepMatrix) -> DiagnosisView | str:
    if isinstance(found, str) or not found.steps:
        return found if isinstance(found, str) else "No later step to look at."
    lines = {
        "background pixels accepted": [audit.accepted for audit in found.steps],
        "right among the accepted": [audit.right for audit in found.steps],
        "old classes recovered": [audit.old_recovered for audit in found.steps],
        "young classes recovered": [audit.young_recovered for audit in found.steps],
    }
    steps = [audit.step for audit in found.steps]
    series = [
        Series(name, [(float(s), 100 * v) for s, v in zip(steps, values, strict=True) if v is not None], look)
        for look, (name, values) in enumerate(lines.items())
    ]
    chart = line_chart(series, over_steps(steps), top=100, text="Pseudo-labels over the steps")
    return DiagnosisView(found.steps, chart, maps.recovered_map(matrix, found))
