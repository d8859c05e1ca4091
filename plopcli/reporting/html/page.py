"""The page: comparison on top, then every run. One file, which loads nothing (`templates/`)."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Sequence
from pathlib import Path

import jinja2
import numpy as np
import numpy.typing as npt
from PIL import Image

import plopcli
from plopcli.errors import UsageError
from plopcli.files.atomic import write_atomic
from plopcli.reporting.comparison import Comparison, Entry, mean_std
from plopcli.reporting.html import maps
from plopcli.reporting.html.charts import Chart, Series, line_chart, over_steps
from plopcli.reporting.html.view import view_of
from plopcli.reporting.run_data import RunData
from plopcli.reporting.tables import comparison_tables
from plopcli.runs.results import GROUPS

_QUALITY = 82


def write_page(path: Path, comparisons: Sequence[Comparison], runs: Sequence[RunData]) -> None:
    """Writes the report, whole or not at all.

    Raises:
        UsageError: It cannot be written.
    """
    text = render_page(comparisons, runs)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text.encode(errors="backslashreplace"))  # names of files may be no UTF-8
    except OSError as error:
        raise UsageError(
            f"Cannot write {path}: {error.strerror or error}.", "Choose another file with --html."
        ) from error


def render_page(comparisons: Sequence[Comparison], runs: Sequence[RunData]) -> str:
    """The report as one HTML document, with ``comparisons`` of all runs and ``runs`` in the order of the page."""
    alone = len(runs) == 1
    compared = []
    for comparison in comparisons:
        tables = comparison_tables(comparison)
        if not alone or any(row.published for table in tables for row in table.rows):
            charts = {} if alone else {name: _curves(comparison.entries, name) for name in GROUPS}
            compared.append((comparison.setting, tables, charts))
    return (
        _templates()
        .get_template("page.html")
        .render(
            title=runs[0].title if alone else f"{len(runs)} runs side by side",
            made=f"plop {plopcli.__version__}, {time.strftime('%Y-%m-%d %H:%M')}",
            compared=compared,
            runs=[view_of(data, f"run-{number}") for number, data in enumerate(runs, start=1)],
        )
    )


def _templates() -> jinja2.Environment:
    # Whatever comes from a file or a user is escaped.
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("plopcli.reporting.html"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"percent": _percent, "share": _share, "few": _few, "jpeg": _jpeg, "png": _png}
    templates.globals["heat_style"] = maps.style
    return templates


def _curves(entries: Sequence[Entry], group: str) -> Chart:
    longest = max(entries, key=lambda entry: entry.steps)
    steps = [step.step for step in longest.runs[0].results.steps]
    series = []
    for look, entry in enumerate(entries):
        if points := _means(entry, group):
            series.append(Series(entry.label, points, look, flat=entry.steps == 1 and len(steps) > 1))
    return line_chart(series, over_steps(steps), top=100, text=f"mIoU, {group}")


def _means(entry: Entry, group: str) -> list[tuple[float, float]]:
    """The mean over the seeds after every step."""
    by_step = zip(*(run.results.steps for run in entry.runs), strict=False)
    means = [(steps[0].step, mean_std([getattr(step.miou, group) for step in steps])) for steps in by_step]
    return [(float(step), mean.mean) for step, mean in means if mean is not None]


def _percent(value: float | None) -> str:
    """A figure in percent as shown; a dash for none."""
    return "–" if value is None else f"{value:.1f}"


def _share(value: float | None) -> str:
    return _percent(None if value is None else 100 * value)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more"


def _jpeg(pixels: npt.NDArray[np.uint8]) -> str:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"


def _png(pixels: npt.NDArray[np.uint8]) -> str:
    """A PNG with a palette: exact for few colours, in a third of the bytes."""
    content = io.BytesIO()
    Image.fromarray(pixels).convert("P", palette=Image.Palette.ADAPTIVE, colors=256).save(content, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
