"""The lines of `metrics.jsonl`, and what one has to hold before anything is computed from it.

A run's folder may come from somebody else, or have been edited. Keys may be added, never renamed. The last key of a
line, ``crc32``, is the check sum of the line without it, so that no flipped bit gives another figure; lines of earlier
versions have none.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from plopcli.files.strict_json import to_json

Number = Annotated[int, Field(ge=0)]


class _Iteration(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")

    step: Number
    iteration: Number
    lr: float | None = None
    terms: dict[str, float | None] = {}
    diagnostics: dict[str, float | None] = {}


def to_line(row: Mapping[str, Any]) -> str:
    """The line that holds ``row``, with its check sum."""
    text = to_json(row)
    return f'{text[:-1]}, "crc32": "{zlib.crc32(text.encode()):08x}"}}\n'


def from_line(line: bytes) -> dict[str, Any] | None:
    """The row that a line holds; None where it is damaged or holds no iteration."""
    if (match := re.fullmatch(rb'(.*), "crc32": "([0-9a-f]{8})"\}', line)) is not None:
        line = match[1] + b"}"
        if zlib.crc32(line) != int(match[2], 16):
            return None
    try:
        row: dict[str, Any] = json.loads(line.decode("utf-8"))
        _Iteration.model_validate(row)
    except (ValueError, RecursionError):
        return None
    return row
