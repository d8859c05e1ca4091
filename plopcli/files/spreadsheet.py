"""CSV that spreadsheets open: text from anywhere stays text."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

#: What a cell begins with that a spreadsheet would compute.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def csv_text(rows: Iterable[Sequence[object]], end: str = "\r\n") -> str:
    """Rows as CSV; None is an empty cell, and text that would be a formula gets an apostrophe in front.

    Args:
        rows: Numbers stay as they are.
        end: Of a line.
    """
    text = io.StringIO()
    csv.writer(text, lineterminator=end).writerows([[_cell(value) for value in row] for row in rows])
    return text.getvalue()


def _cell(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value.lstrip(" ").startswith(_FORMULA) else value
