"""Settings that come back from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from plopcli.errors import DataError
from plopcli.methods import METHODS, get_method
from plopcli.settings.sections import RunSettings, Section, of_unknown_method

#: Pixels on the side of a crop: a file must not make this machine enlarge pictures to any size.
LARGEST_CROP = 1 << 12


def restore_settings(stored: Mapping[str, Any]) -> RunSettings:
    """The settings that ``RunSettings.model_dump(mode="json")`` gave.

    The method's code need not be here: what a model has learned can be used without it. What concerns the
    machine (processes, GPUs, waiting times, caches, compilers) is that of this one, whatever the file says; it can only
    ask for less: no loader processes, no GPU.

    Raises:
        DataError: They do not fit this version of plop.
    """
    try:
        name = str(stored["method"]["name"])
        kind = get_method(name).Settings if name in METHODS else of_unknown_method(stored["method"])
        method = kind.model_validate(stored["method"])
        settings = RunSettings.model_validate({**stored, "method": method})
    except (KeyError, TypeError, RecursionError, ValidationError) as error:
        raise DataError(f"The settings inside the checkpoint cannot be read: {error!s:.1000}") from error
    if settings.data.crop > LARGEST_CROP:
        raise DataError(
            f"The settings inside the checkpoint ask for crops of {settings.data.crop} pixels.",
            f"plop measures and predicts with models of at most {LARGEST_CROP}.",
        )
    data = {"workers": 0 if settings.data.workers == 0 else "auto"} | _defaults(settings.data, "timeout", "cache")
    compute = {"gpus": 0 if settings.compute.gpus == 0 else "auto"}
    compute |= _defaults(settings.compute, "processes", "timeout", "compile")
    return settings.model_copy(
        update={"data": settings.data.model_copy(update=data), "compute": settings.compute.model_copy(update=compute)}
    )


def _defaults(section: Section, *names: str) -> dict[str, Any]:
    return {name: type(section).model_fields[name].default for name in names}
