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


def option(
    flag: str,
    metavar: str | None = None,
    help: str = "",
    *,
    under: str | None = None,
    default: str | bool = True,
    **more: Any,
) -> Any:
    """`typer.Option`, under a heading of the help page; ``default`` says what holds where the option is not given."""
    return typer.Option(flag, metavar=metavar, help=help, show_default=default, rich_help_panel=under, **more)


_ROOT_HELP = "Folder with a folder for every data set"
_AS_TRAINED = "as in training"
_FOLDER = "runs/{dataset}-{task}-{protocol}-{method}-s{seed}"
BY_PRESET = "by preset"

Text = str | None
File = Path | None


def setting(flag: str, key: str, metavar: str | None = None, default: str | None = None, **more: Any) -> Any:
    """An option for a setting, with the setting's own help (`described`).

    Args:
        flag: Its spelling.
        key: The setting.
        metavar: Of its value: DIR and FILE stand for paths; None: a switch.
        default: Shown as the default, if not the setting's own.
        more: For Typer.
    """
    kind: Any = bool | None if metavar is None else File if metavar in ("DIR", "FILE") else Text
    return Annotated[kind, option(flag, metavar, f"Sets {key}.", default=default or True, **more)]


def described(option: Any) -> None:
    """Sets the help of an option that was made by `setting`, from the docstring, bounds and default of the setting."""
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
    return Annotated[bool, option(flag, help=help, under=under)]


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
    File, option("--config", "FILE", "Settings in TOML, such as a run's settings.toml.", under=_SETTINGS)
]
Assignments = Annotated[
    list[str] | None, option("--set", "KEY=VALUE", "Any setting by its dotted key; repeatable.", under=_SETTINGS)
]
PresetName = Annotated[
    str,
    option(
        "--preset",
        "NAME",
        "Recipe to start from; auto: the data set's own; none: defaults only. Variants of a method go on top: "
        "plop-exact, plop-naive (`plop methods NAME` lists them).",
        autocompletion=_preset_names,
        under=_SETTINGS,
    ),
]
PrintConfig = Annotated[
    bool,
    option(
        "--print-config", help="Print every setting with its origin, as a file for --config, and stop.", under=_SETTINGS
    ),
]

# The run
RunFolderOption = setting("--run", "run", "DIR", _FOLDER, under=_RUN)
DryRun = Annotated[
    bool, option("--dry-run", help="Show classes, images and iterations of every step, and stop.", under=_RUN)
]
Json = Annotated[bool, option("--json", help="Print JSON to standard output.")]

# Commands that take no other settings
DataRoot = Annotated[Path, option("--data-root", "DIR", f"{_ROOT_HELP}.", envvar="PLOP_DATA_ROOT")]
DataPath = Annotated[File, option("--data-path", "DIR", "The data set's own folder, where it is not in the data root.")]
# Not by the environment: what a run remembers is beaten only by what is typed.
OtherDataRoot = Annotated[File, option("--data-root", "DIR", f"{_ROOT_HELP}.", default=_AS_TRAINED)]
Split = Annotated[Text, option("--split", "NAME", "Images to look at: test, val, train.", default=_AS_TRAINED)]
OtherGpus = Annotated[Text, option("--gpus", "N", "1, or 0 for the CPU.", default=_AS_TRAINED)]
EvaluationGpus = Annotated[
    Text, option("--gpus", "N", "GPUs to share the images; 0: CPU.", default="1, if trained on GPUs")
]
Processes = Annotated[Text, option("--processes", "N", "Processes on the CPU that share the images.", default="1")]
OtherPrecision = Annotated[
    Text,
    option(
        "--precision", "NAME", "float32, bf16 or fp16.", default=_AS_TRAINED, autocompletion=lambda: list(PRECISIONS)
    ),
]

# What checkpoints of the original implementation do not say themselves
_ORIGINAL = "Checkpoints of the original implementation"
OriginalDataset = Annotated[
    Text,
    option(
        "--dataset",
        "NAME",
        "The data set that it has learned from (`plop datasets`).",
        autocompletion=dataset_names,
        under=_ORIGINAL,
    ),
]
OriginalTask = Annotated[
    Text,
    option(
        "--task",
        "NAME",
        "Its task (`plop tasks`), X-Y in general, or a TOML file with steps.",
        autocompletion=task_names,
        under=_ORIGINAL,
    ),
]
OriginalMethod = Annotated[
    Text, option("--method", "NAME", "The method that trained it (`plop methods`).", under=_ORIGINAL)
]
Step = Annotated[int | None, option("--step", "N", "The step of a run folder.", default="the last", min=0)]
Markdown = Annotated[bool, option("--markdown", help="A Markdown table in place of the terminal's.")]
Latex = Annotated[bool, option("--latex", help="A LaTeX table (booktabs).")]
Csv = Annotated[bool, option("--csv", help="CSV with full precision.")]
OriginalStep = Annotated[
    int | None,
    option(
        "--step", "N", "Its step, where steps bring domains.", default="told by the classifiers", min=0, under=_ORIGINAL
    ),
]
OriginalAssignments = Annotated[
    list[str] | None,
    option(
        "--set",
        "KEY=VALUE",
        "Any setting that is not the preset's, such as model.output_stride=8; repeatable.",
        under=_ORIGINAL,
    ),
]
