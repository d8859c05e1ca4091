"""What a line of `metrics.jsonl` has to hold before anything is computed from it.

A run's folder may come from somebody else, or have been edited. Keys may be added, never renamed.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Number = Annotated[int, Field(ge=0)]


class _Iteration(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")

    step: Number
    iteration: Number
    lr: float | None = None
    terms: dict[str, float | None] = {}
    diagnostics: dict[str, float | None] = {}


def is_iteration(row: Any) -> bool:
    """Whether a line of `metrics.jsonl` holds an iteration."""
    try:
        _Iteration.model_validate(row)
    except ValidationError:
        return False
    return True
