from __future__ import annotations

import json
import math
from typing import Any

import pytest

from plopcli.files.strict_json import to_json


def _refuse(constant: str) -> Any:
    raise AssertionError(f"{constant} is not JSON")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_does_not_have_become_null(bad: float) -> None:
    value = {"loss": bad, "terms": {"ce": bad, "kd": 1.5}, "list": [1, (bad, True, None)], "text": "NaN"}
    text = to_json(value, indent=2)
    assert json.loads(text, parse_constant=_refuse) == {
        "loss": None,
        "terms": {"ce": None, "kd": 1.5},
        "list": [1, [None, True, None]],
        "text": "NaN",
    }
