"""What the records of a run, `results.json` and `metrics.jsonl`, have to hold before anything is computed from them.

A run's folder may come from somebody else, or have been edited. Keys may be added to either file, never renamed.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Percent = float | None
Number = Annotated[int, Field(ge=0)]


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class _Means(_Record):
    all: Percent
    old: Percent
    new: Percent


class _Domain(_Record):
    miou: Percent


class _Step(_Record):
    step: Number
    iou: dict[str, Percent]
    miou: _Means
    miou_foreground: _Means | None = None
    domains: dict[str, _Domain] | None = None


class _Augmentation(_Record):
    described: str


class _Results(_Record):
    dataset: str
    task: str
    protocol: str
    method: str
    seed: Number
    classes: list[str]
    base_classes: Number | None = None
    domains: list[list[str]] | None = None
    augmentation: _Augmentation | None = None
    steps: list[_Step]
    avg: Percent


class _Iteration(_Record):
    step: Number
    iteration: Number
    lr: float | None = None
    terms: dict[str, float | None] = {}
    diagnostics: dict[str, float | None] = {}


def fault_of_results(content: object) -> str | None:
    """What is wrong with the content of a `results.json`, in a few words; None if nothing is."""
    try:
        results = _Results.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc'])) or 'all of it'}: {first['msg'].lower()}"
    numbers = [step.step for step in results.steps]
    if numbers != sorted(set(numbers)):
        return "its steps are not in order"
    if results.domains and numbers and numbers[-1] >= len(results.domains):
        return f"it has no domains of step {numbers[-1]}"
    return None


def is_iteration(row: Any) -> bool:
    """Whether a line of `metrics.jsonl` holds an iteration."""
    try:
        _Iteration.model_validate(row)
    except ValidationError:
        return False
    return True
