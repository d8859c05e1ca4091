"""Options that several commands share, one by one. Those of a run together: `plopcli.cli.run_description`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

SCENARIO = "Scenario"
RECIPE = "Recipe"
MACHINE = "Machine"
_SETTINGS = "Settings"
_RUN = "Run"

PROTOCOLS = ("overlapped", "disjoint", "sequential")
PRECISIONS = ("auto", "float32", "bf16", "fp16")


def dataset_names() -> list[str]:
    """For completion."""
    from plopcli.data.datasets import DATASETS

    return list(DATASETS)


def task_names() -> list[str]:
    """For completion."""
    from plopcli.scenarios.tasks import named_tasks

    return list(named_tasks("voc"))


def _preset_names() -> list[str]:
    from plopcli.settings.presets import AUTOMATIC, NO_PRESET, PRESETS

    # Variants stand with their methods, which take seconds to import.
    return [AUTOMATIC, NO_PRESET, *PRESETS]


def _option(*flags: str, under: str | None = None, default: str | bool = False, **more: Any) -> Any:
    """An option that has no value unless it is given; ``default`` says what holds then."""
    return typer.Option(*flags, show_default=default, rich_help_panel=under, **more)


_ROOT_HELP = "Folder with a folder for every data set"
_AS_TRAINED = "as in training"
_FOLDER = "runs/{dataset}-{task}-{protocol}-{method}-s{seed}"
BY_PRESET = "by preset"

Text = str | None
File = Path | None


def setting(flag: str, key: str, metavar: str | None = None, default: str | None = None, **more: Any) -> Any:
    """An option that is short for a setting, whose help is the setting's own (`described`).

    Args:
        flag: How it is spelled.
        key: The setting.
        metavar: Of its value: DIR and FILE stand for paths; None: a switch.
        default: What holds where it is not given, if not the setting's own default.
        more: For Typer.
    """
    kind: Any = bool | None if metavar is None else File if metavar in ("DIR", "FILE") else Text
    return Annotated[kind, _option(flag, metavar=metavar, help=f"Sets {key}.", default=default or True, **more)]


def described(option: Any) -> None:
    """Gives an option that was made by `setting` its help, from the docstring, bounds and default of the setting."""
    found = re.fullmatch(r"Sets ([a-z_.]+)\.", option.help or "")
    if found is None:
        return
    # Not before somebody asks for help: pydantic alone takes longer to import than `plop --help` may take.
    from plopcli.settings.keys import leaves, toml_value
    from plopcli.settings.sections import MethodSettings

    leaf = leaves(MethodSettings)[found[1]]
    said = leaf.description.rstrip(".")
    for section, steps in (("train.first.", "step 0"), ("train.later.", "later steps")):
        said += f" ({steps})" if leaf.key.startswith(section) else ""
    option.help = f"{said} ({leaf.allowed})." if leaf.allowed.startswith("one of ") else f"{said}."
    if option.show_default is True:
        known = None if leaf.field.is_required() else leaf.default
        option.show_default = toml_value(known).strip('"') if known is not None else False


def switch(flag: str, help: str, under: str) -> Any:
    """An option that is on where it is given."""
    return Annotated[bool, _option(flag, help=help, under=under)]


OrderSeed = setting("--order-seed", "scenario.order_seed", "N", "the task's own order", under=SCENARIO)
Splits = setting("--splits", "scenario.splits", "DIR", under=SCENARIO)
Overlapped, Disjoint, Sequential = (
    switch(f"--{name}", f"Short for --protocol {name}.", SCENARIO) for name in PROTOCOLS
)
Deterministic = switch(
    "--deterministic", "Deterministic algorithms alone, with a warning where there is none.", MACHINE
)
Compile = switch("--compile", "Compile the networks: minutes once, then faster.", MACHINE)

# All settings
Config = Annotated[
    File,
    _option("--config", metavar="FILE", help="Settings in TOML, such as a run's settings.toml.", under=_SETTINGS),
]
Assignments = Annotated[
    list[str] | None,
    _option("--set", metavar="KEY=VALUE", help="Any setting by its dotted key; repeatable.", under=_SETTINGS),
]
PresetName = Annotated[
    str,
    _option(
        "--preset",
        metavar="NAME",
        help="Recipe to start from; auto: the data set's own; none: defaults only. Variants of a method go on top: "
        "plop-exact, plop-naive (`plop methods NAME` lists them).",
        default=True,
        autocompletion=_preset_names,
        under=_SETTINGS,
    ),
]
PrintConfig = Annotated[
    bool,
    _option(
        "--print-config",
        help="Print every setting with its origin, as a file for --config, and stop.",
        under=_SETTINGS,
    ),
]

# The run
RunFolderOption = setting("--run", "run", "DIR", _FOLDER, under=_RUN)
DryRun = Annotated[
    bool, _option("--dry-run", help="Show classes, images and iterations of every step, and stop.", under=_RUN)
]
Json = Annotated[bool, _option("--json", help="Print JSON to standard output.")]

# Commands that take no other settings
DataRoot = Annotated[
    Path, _option("--data-root", metavar="DIR", envvar="PLOP_DATA_ROOT", help=f"{_ROOT_HELP}.", default=True)
]
DataPath = Annotated[
    File, _option("--data-path", metavar="DIR", help="The data set's own folder, where it is not in the data root.")
]
# Not by the environment: what a run remembers is beaten only by what is typed.
OtherDataRoot = Annotated[File, _option("--data-root", metavar="DIR", help=f"{_ROOT_HELP}.", default=_AS_TRAINED)]
Split = Annotated[
    Text, _option("--split", metavar="NAME", help="Images to look at: test, val, train.", default=_AS_TRAINED)
]
OtherGpus = Annotated[Text, _option("--gpus", metavar="N", help="1, or 0 for the CPU.", default=_AS_TRAINED)]
EvaluationGpus = Annotated[
    Text, _option("--gpus", metavar="N", help="GPUs to share the images; 0: CPU.", default="1, if trained on GPUs")
]
Processes = Annotated[
    Text, _option("--processes", metavar="N", help="Processes on the CPU that share the images.", default="1")
]
OtherPrecision = Annotated[
    Text,
    _option(
        "--precision",
        metavar="NAME",
        help="float32, bf16 or fp16.",
        default=_AS_TRAINED,
        autocompletion=lambda: list(PRECISIONS),
    ),
]

# What checkpoints of the original implementation do not say themselves
_ORIGINAL = "Checkpoints of the original implementation"
OriginalDataset = Annotated[
    Text,
    _option(
        "--dataset",
        metavar="NAME",
        help="The data set that it has learned from (`plop datasets`).",
        autocompletion=dataset_names,
        under=_ORIGINAL,
    ),
]
OriginalTask = Annotated[
    Text,
    _option(
        "--task",
        metavar="NAME",
        help="Its task (`plop tasks`), X-Y in general, or a TOML file with steps.",
        autocompletion=task_names,
        under=_ORIGINAL,
    ),
]
OriginalMethod = Annotated[
    Text,
    _option("--method", metavar="NAME", help="The method that trained it (`plop methods`).", under=_ORIGINAL),
]
OriginalStep = Annotated[
    int | None,
    _option(
        "--step",
        metavar="N",
        min=0,
        help="Its step, where steps bring domains.",
        default="told by the classifiers",
        under=_ORIGINAL,
    ),
]
OriginalAssignments = Annotated[
    list[str] | None,
    _option(
        "--set",
        metavar="KEY=VALUE",
        help="Any setting that is not the preset's, such as model.output_stride=8; repeatable.",
        under=_ORIGINAL,
    ),
]
