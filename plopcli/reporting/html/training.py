"""Curves of a training: loss terms, adaptive factor, learning rate, over all steps."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from plopcli.reporting.html.charts import Axis, Chart, Series, line_chart, over_training

#: Points that a curve has in each step: the mean of the iterations around it.
_POINTS = 40
#: Diagnostics that count skipped iterations, which are reported as warnings.
_ACCIDENTS = ("skipped", "not_finite")
_SHARES = ("accepted", "adaptive_factor")

Curve = list[tuple[float, float]]


def training_charts(rows: Sequence[Mapping[str, Any]]) -> dict[str, Chart]:
    """Charts of every loss term, the shares of pseudo-labels, other diagnostics and the learning rate, by title.

    ``rows`` are lines of the metrics log; of repeated ones (a step that was resumed) the later one counts.
    """
    logged = dict(sorted({(row["step"], row["iteration"]): row for row in rows}.items()))
    lengths = {step: at + 1 for step, at in dict(logged.keys()).items()}
    if not lengths:
        return {}
    axis = over_training(lengths)
    terms = _curves(logged, lengths, "terms")
    diagnostics = _curves(logged, lengths, "diagnostics")
    charts: dict[str, tuple[dict[str, Curve], float | None]] = {
        f"Loss: {_plain(name)}": ({name: curve}, None) for name, curve in terms.items()
    }
    if pseudo := {name: diagnostics[name] for name in _SHARES if name in diagnostics}:
        title = "Pseudo-labels: share accepted" + (", adaptive factor" if "adaptive_factor" in diagnostics else "")
        charts[title] = (pseudo, 1.0)
    for group, members in _groups(diagnostics).items():
        charts[f"Part by part: {_plain(group)}"] = (members, None)
    rows_of_rate = {place: {"rate": {"learning rate": row.get("lr")}} for place, row in logged.items()}
    if rates := _curves(rows_of_rate, lengths, "rate"):
        charts["Learning rate"] = (rates, None)
    return {title: _chart(title, curves, axis, top) for title, (curves, top) in charts.items()}


def _chart(title: str, curves: Mapping[str, Curve], axis: Axis, top: float | None) -> Chart:
    series = [Series(_plain(name), curve, number) for number, (name, curve) in enumerate(curves.items())]
    return line_chart(series, axis, top=top, text=f"{title} over the iterations of every step")


def _curves(
    logged: Mapping[tuple[int, int], Mapping[str, Any]], lengths: Mapping[int, int], kind: str
) -> dict[str, Curve]:
    """Every quantity of a kind as means over a few iterations; all steps have width 1."""
    place = {step: number for number, step in enumerate(lengths)}
    buckets: dict[str, dict[tuple[int, int], list[float]]] = defaultdict(lambda: defaultdict(list))
    for (step, iteration), row in logged.items():
        part = iteration * min(_POINTS, lengths[step]) // lengths[step]
        for name, value in (row.get(kind) or {}).items():
            if isinstance(value, int | float) and math.isfinite(value):
                buckets[name][step, part].append(float(value))
    return {
        name: [
            (place[step] + (part + 0.5) / min(_POINTS, lengths[step]), sum(values) / len(values))
            for (step, part), values in sorted(found.items())
        ]
        for name, found in buckets.items()
    }


def _groups(diagnostics: Mapping[str, Curve]) -> dict[str, dict[str, Curve]]:
    """Diagnostics grouped by a common beginning (pod_1, pod_2, pod_logits)."""
    groups: dict[str, dict[str, Curve]] = defaultdict(dict)
    for name, curve in diagnostics.items():
        if name not in _SHARES and name not in _ACCIDENTS:
            groups[name.partition("_")[0]][name] = curve
    return groups


def _plain(name: str) -> str:
    return name.replace("_", " ")
