"""Options that several commands share, and how they become settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plopcli.errors import UsageError

if TYPE_CHECKING:
    from plopcli.settings.layers import Resolved

_SCENARIO = "Scenario"
_RECIPE = "Recipe"
_MACHINE = "Machine"
_SETTINGS = "Settings"
_RUN = "Run"

PROTOCOLS = ("overlapped", "disjoint", "sequential")
PRECISIONS = ("auto", "float32", "bf16", "fp16")


def _dataset_names() -> list[str]:
    from plopcli.data.datasets import DATASETS

    return list(DATASETS)


def _task_names() -> list[str]:
    from plopcli.scenarios.tasks import named_tasks

    return list(named_tasks("voc"))


def _preset_names() -> list[str]:
    from plopcli.settings.presets import AUTOMATIC, NO_PRESET, preset_families

    return [AUTOMATIC, NO_PRESET, *preset_families()]


#: Parameters of the training commands and the settings that they are short for. They arrive as text, so that all
#: that is wrong is reported at once.
SETTING_OF = {
    "task": "scenario.task",
    "dataset": "data.dataset",
    "method": "method.name",
    "protocol": "scenario.protocol",
    "seed": "seed",
    "run": "run",
    "data_root": "data.root",
    "val_fraction": "data.val_fraction",
    "backbone": "model.backbone",
    "weights": "model.weights",
    "pretrained": "model.pretrained",
    "epochs": "train.first.epochs",
    "epochs_later": "train.later.epochs",
    "lr": "train.first.lr",
    "lr_later": "train.later.lr",
    "batch": "train.batch",
    "gpus": "compute.gpus",
    "precision": "compute.precision",
}

Task = Annotated[
    str | None,
    typer.Option(
        "--task",
        metavar="NAME",
        help="A task (`plop tasks`), X-Y in general, or a TOML file with steps.",
        show_default="15-1",
        autocompletion=_task_names,
        rich_help_panel=_SCENARIO,
    ),
]
Dataset = Annotated[
    str | None,
    typer.Option(
        "--dataset",
        metavar="NAME",
        help="A data set (`plop datasets`).",
        show_default="voc",
        autocompletion=_dataset_names,
        rich_help_panel=_SCENARIO,
    ),
]
Method = Annotated[
    str | None,
    typer.Option(
        "--method",
        metavar="NAME",
        help="A method (`plop methods`).",
        show_default="plop",
        rich_help_panel=_SCENARIO,
    ),
]
Protocol = Annotated[
    str | None,
    typer.Option(
        "--protocol",
        metavar="NAME",
        help="Which images and labels a step sees: overlapped, disjoint or sequential.",
        show_default="overlapped",
        autocompletion=lambda: list(PROTOCOLS),
        rich_help_panel=_SCENARIO,
    ),
]
Overlapped = Annotated[
    bool, typer.Option("--overlapped", help="Short for --protocol overlapped.", rich_help_panel=_SCENARIO)
]
Disjoint = Annotated[bool, typer.Option("--disjoint", help="Short for --protocol disjoint.", rich_help_panel=_SCENARIO)]
Sequential = Annotated[
    bool, typer.Option("--sequential", help="Short for --protocol sequential.", rich_help_panel=_SCENARIO)
]
Seed = Annotated[
    str | None,
    typer.Option(
        "--seed",
        metavar="N",
        help="Seed of weights, order and augmentation.",
        show_default="42",
        rich_help_panel=_SCENARIO,
    ),
]
RunDataRoot = Annotated[
    Path | None,
    typer.Option(
        "--data-root",
        metavar="DIR",
        help="Folder with a folder for every data set (or PLOP_DATA_ROOT).",
        show_default="data",
        rich_help_panel=_SCENARIO,
    ),
]
ValFraction = Annotated[
    str | None,
    typer.Option(
        "--val-fraction",
        metavar="X",
        help="Share of the training images kept apart for validation.",
        show_default="0",
        rich_help_panel=_SCENARIO,
    ),
]

_BY_PRESET = "by preset"
Epochs = Annotated[
    str | None,
    typer.Option("--epochs", metavar="N", help="Epochs of step 0.", show_default=_BY_PRESET, rich_help_panel=_RECIPE),
]
EpochsLater = Annotated[
    str | None,
    typer.Option(
        "--epochs-later",
        metavar="N",
        help="Epochs of every later step.",
        show_default=_BY_PRESET,
        rich_help_panel=_RECIPE,
    ),
]
LearningRate = Annotated[
    str | None,
    typer.Option(
        "--lr", metavar="X", help="Learning rate of step 0.", show_default=_BY_PRESET, rich_help_panel=_RECIPE
    ),
]
LearningRateLater = Annotated[
    str | None,
    typer.Option(
        "--lr-later",
        metavar="X",
        help="Learning rate of every later step.",
        show_default=_BY_PRESET,
        rich_help_panel=_RECIPE,
    ),
]
Batch = Annotated[
    str | None,
    typer.Option(
        "--batch",
        metavar="N",
        help="Images per iteration, over all GPUs and accumulation.",
        show_default=_BY_PRESET,
        rich_help_panel=_RECIPE,
    ),
]
Backbone = Annotated[
    str | None,
    typer.Option(
        "--backbone",
        metavar="NAME",
        help="resnet18 to resnet152, or mobilenet_v2.",
        show_default=_BY_PRESET,
        rich_help_panel=_RECIPE,
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option("--weights", metavar="FILE", help="ImageNet weights of the backbone.", rich_help_panel=_RECIPE),
]
Pretrained = Annotated[
    bool | None,
    typer.Option(
        "--pretrained/--no-pretrained",
        help="Start step 0 from ImageNet weights, or at random.",
        show_default=_BY_PRESET,
        rich_help_panel=_RECIPE,
    ),
]

RunGpus = Annotated[
    str | None,
    typer.Option(
        "--gpus",
        metavar="N",
        help="GPUs to use; auto: one if there is one; 0: CPU.",
        show_default="auto",
        rich_help_panel=_MACHINE,
    ),
]
RunPrecision = Annotated[
    str | None,
    typer.Option(
        "--precision",
        metavar="NAME",
        help="float32, bf16, fp16; auto: bf16 on GPUs that have it, else fp16; float32 on CPU.",
        show_default="auto",
        autocompletion=lambda: list(PRECISIONS),
        rich_help_panel=_MACHINE,
    ),
]

Config = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", help="Settings in TOML, such as a run's settings.toml.", rich_help_panel=_SETTINGS
    ),
]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any setting by its dotted key; repeatable.",
        rich_help_panel=_SETTINGS,
    ),
]
PresetName = Annotated[
    str,
    typer.Option(
        "--preset",
        metavar="NAME",
        help="Recipe to start from; auto: the data set's own; none: defaults only.",
        autocompletion=_preset_names,
        rich_help_panel=_SETTINGS,
    ),
]
PrintConfig = Annotated[
    bool,
    typer.Option(
        "--print-config",
        help="Print every setting with its origin, as a file for --config, and stop.",
        rich_help_panel=_SETTINGS,
    ),
]

RunFolderOption = Annotated[
    Path | None,
    typer.Option(
        "--run",
        metavar="DIR",
        help="Run folder.",
        show_default="runs/{dataset}-{task}-{protocol}-{method}-s{seed}",
        rich_help_panel=_RUN,
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Show classes, images and iterations of every step, and stop.",
        rich_help_panel=_RUN,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to standard output.")]

DataRoot = Annotated[
    Path,
    typer.Option(
        "--data-root", metavar="DIR", envvar="PLOP_DATA_ROOT", help="Folder with a folder for every data set."
    ),
]
DataPath = Annotated[
    Path | None,
    typer.Option("--data-path", metavar="DIR", help="The data set's own folder, where it is not in the data root."),
]
_AS_TRAINED = "as in training"
OtherDataRoot = Annotated[
    Path | None,
    typer.Option(
        "--data-root",
        metavar="DIR",
        envvar="PLOP_DATA_ROOT",
        help="Folder with a folder for every data set.",
        show_default=_AS_TRAINED,
    ),
]
Split = Annotated[
    str | None,
    typer.Option("--split", metavar="NAME", help="Images to look at: test or val.", show_default=_AS_TRAINED),
]
OtherGpus = Annotated[
    str | None,
    typer.Option("--gpus", metavar="N", help="1, or 0 for the CPU.", show_default=_AS_TRAINED),
]
OtherPrecision = Annotated[
    str | None,
    typer.Option(
        "--precision",
        metavar="NAME",
        help="float32, bf16 or fp16.",
        show_default=_AS_TRAINED,
        autocompletion=lambda: list(PRECISIONS),
    ),
]


def resolve(parameters: Mapping[str, Any]) -> Resolved:
    """The settings that the options of a training command, with all layers below them, amount to.

    Args:
        parameters: The command's parameters by name, as Typer parsed them.

    Raises:
        UsageError: Options contradict each other, or settings are wrong.
    """
    flags = {key: parameters[name] for name, key in SETTING_OF.items()}
    names = {key: "--" + name.replace("_", "-") for name, key in SETTING_OF.items()}
    protocols = [name for name in PROTOCOLS if parameters[name]]
    if len({*protocols, parameters["protocol"]} - {None}) > 1:
        given = [*(f"--{name}" for name in protocols), *(["--protocol"] if parameters["protocol"] else [])]
        raise UsageError(f"{' and '.join(given)} contradict each other.", "A run follows one protocol.")
    if protocols:
        flags["scenario.protocol"], names["scenario.protocol"] = protocols[0], f"--{protocols[0]}"
    if parameters["pretrained"] is False:
        names["model.pretrained"] = "--no-pretrained"
    if parameters["weights"] is not None:
        if parameters["pretrained"] is False:
            raise UsageError("--weights and --no-pretrained contradict each other.", "Leave one of them away.")
        flags["model.pretrained"], names["model.pretrained"] = True, "--weights"

    from plopcli.settings.layers import resolve_settings

    return resolve_settings(
        flags,
        config=parameters["config"],
        assignments=parameters["assignments"] or (),
        preset=parameters["preset"],
        flag_names=names,
    )


def checked(parameters: Mapping[str, Any], setting_of: Mapping[str, str]) -> dict[str, Any]:
    """Options of a command that takes no other settings, as the settings hold them; those not given are left out.

    Args:
        parameters: The command's parameters by name.
        setting_of: The dotted keys that some of them are short for.

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
