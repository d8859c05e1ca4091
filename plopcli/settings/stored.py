"""Settings that come back from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from plopcli.errors import DataError
from plopcli.methods import get_method
from plopcli.settings.sections import RunSettings


def restore_settings(stored: Mapping[str, Any]) -> RunSettings:
    """The settings that ``RunSettings.model_dump(mode="json")`` gave.

    Raises:
        DataError: They do not fit this version of plop.
    """
    try:
        method = get_method(str(stored["method"]["name"])).Settings.model_validate(stored["method"])
        return RunSettings.model_validate({**stored, "method": method})
    except (KeyError, TypeError, ValidationError) as error:
        raise DataError(f"The settings inside the checkpoint cannot be read: {error}") from error
