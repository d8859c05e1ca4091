"""Settings that come back from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from plopcli.errors import DataError
from plopcli.methods import METHODS, get_method
from plopcli.settings.sections import RunSettings, dealt_as_then, of_unknown_method


def restore_settings(stored: Mapping[str, Any]) -> RunSettings:
    """The settings that ``RunSettings.model_dump(mode="json")`` gave.

    The method's code need not be here: what a model has learned can be used without it.

    Raises:
        DataError: They do not fit this version of plop.
    """
    try:
        name = str(stored["method"]["name"])
        kind = get_method(name).Settings if name in METHODS else of_unknown_method(stored["method"])
        method = kind.model_validate(stored["method"])
        return RunSettings.model_validate({**dealt_as_then(stored), "method": method})
    except (KeyError, TypeError, ValidationError) as error:
        raise DataError(f"The settings inside the checkpoint cannot be read: {error}") from error
