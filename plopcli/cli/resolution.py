"""From the options of a command to settings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plopcli.cli.options import PROTOCOLS
from plopcli.cli.run_description import OPTION_OF
from plopcli.errors import UsageError

if TYPE_CHECKING:
    from plopcli.resolution.layers import Resolved
    from plopcli.runs.foreign import Description

_DATA_VARIABLES = ("PLOP_DATA_ROOT", "PLOP_DATA_PATH")


def resolve(parameters: Mapping[str, Any]) -> Resolved:
    """Resolves the options of a training command, with all layers below them, to settings.

    ``parameters`` are the command's parameters by name, as Typer parsed them.

    Raises:
        UsageError: Options contradict each other, or settings are wrong.
    """
    flags = {key: parameters[name] for name, (key, _) in OPTION_OF.items()}
    names = {key: "--" + name.replace("_", "-") for name, (key, _) in OPTION_OF.items()}
    protocols = [name for name in PROTOCOLS if parameters[name]]
    if len({*protocols, parameters["protocol"]} - {None}) > 1:
        given = [*(f"--{name}" for name in protocols), *(["--protocol"] if parameters["protocol"] else [])]
        raise UsageError(f"{' and '.join(given)} contradict each other.", "A run follows one protocol.")
    if protocols:
        flags["scenario.protocol"], names["scenario.protocol"] = protocols[0], f"--{protocols[0]}"
    if parameters["pretrained"] is False:
        names["model.pretrained"] = "--no-pretrained"
    if parameters["background"] is False:
        names["data.background"] = "--no-background"
    if parameters["weights"] is not None:
        if parameters["pretrained"] is False:
            raise UsageError("--weights and --no-pretrained contradict each other.", "Leave one of them away.")
        flags["model.pretrained"], names["model.pretrained"] = True, "--weights"

    if parameters["deterministic"]:
        flags["compute.deterministic"], names["compute.deterministic"] = True, "--deterministic"
    if parameters["compile"]:
        flags["compute.compile"], names["compute.compile"] = "inductor", "--compile"

    from plopcli.resolution.layers import resolve_settings
    from plopcli.settings.presets import NO_PRESET

    def layered(config: Path | None, preset: str, environment: Mapping[str, str] | None = None) -> Resolved:
        return resolve_settings(
            flags,
            config=config,
            assignments=parameters["assignments"] or (),
            environment=environment,
            preset=preset,
            flag_names=names,
        )

    if parameters["config"] is not None or not _goes_on(parameters):
        return layered(parameters["config"], parameters["preset"])
    folder = parameters["run"] or layered(None, parameters["preset"]).settings.run_folder
    # What was said once need not be said again.
    stored = Path(folder) / "settings.toml"
    if not stored.is_file():
        return layered(None, parameters["preset"])
    _refuse_unasked_code(stored, parameters["method"])
    return layered(stored, NO_PRESET, _without_data(stored))


def _refuse_unasked_code(stored: Path, named: str | None) -> None:
    """Refuses to resume a run whose method came from a file, unless the file is given again.

    Raises:
        UsageError: Names the copy in the run folder.
    """
    from plopcli.methods import METHODS
    from plopcli.plugins import METHOD_FILE
    from plopcli.resolution.layers import read_settings

    name, copy = read_settings(stored).method.name, stored.with_name(METHOD_FILE)
    if named is None and name not in METHODS and copy.is_file():
        raise UsageError(
            f"The method {name} of {stored.parent} came from a file, and the code in a run folder is not run unasked.",
            f"Add --method with your file, or, if you know where this folder comes from, --method {copy}",
        )


def _without_data(stored: Path) -> dict[str, str]:
    """The environment, without the place of the data if the run's own still exists."""
    from plopcli.data.datasets import dataset_folder
    from plopcli.resolution.layers import read_settings

    data = read_settings(stored).data
    known = dataset_folder(data.dataset, data.root, data.path).is_dir()
    return {key: value for key, value in os.environ.items() if not (known and key in _DATA_VARIABLES)}


def _goes_on(parameters: Mapping[str, Any]) -> bool:
    """Whether an existing run may be resumed: by --resume, or by a step of a given folder."""
    return bool(parameters.get("resume")) or ("step" in parameters and parameters["run"] is not None)


def checked(parameters: Mapping[str, Any], setting_of: Mapping[str, str]) -> dict[str, Any]:
    """Converts and checks options of a command that takes no other settings; those not given are left out.

    ``setting_of`` maps parameters to the dotted keys of the settings that they stand for.

    Raises:
        UsageError: Everything that is wrong, one line each.
    """
    from plopcli.settings.keys import leaves
    from plopcli.settings.sections import MethodSettings

    keys = leaves(MethodSettings)
    values, errors = {}, []
    for name, key in setting_of.items():
        if parameters[name] is None:
            continue
        values[name] = keys[key].convert(parameters[name])
        if not keys[key].accepts(values[name]):
            errors.append(f"--{name.replace('_', '-')} {parameters[name]}: {keys[key].complaint(parameters[name])}")
    if errors:
        raise UsageError("\n".join(errors))
    return values


def described(parameters: Mapping[str, Any], *, step_of_run: bool = False) -> Description | None:
    """Describes a checkpoint of the original implementation from the options of a command; None without any.

    With ``step_of_run``, --step is also the step of a run folder, and alone describes no such checkpoint.
    """
    from plopcli.runs.foreign import Description

    said = Description(
        dataset=parameters["dataset"],
        task=parameters["task"],
        method=parameters["method"],
        step=parameters["step"],
        assignments=tuple(parameters["assignments"] or ()),
        root=parameters["data_root"],
        path=parameters["data_path"],
    )
    return said if (replace(said, step=None) if step_of_run else said) else None
