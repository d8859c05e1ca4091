"""Options that several commands share, one by one. Those of a run together: `plopcli.cli.run_description`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

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
    from plopcli.settings.presets import AUTOMATIC, NO_PRESET, PRESETS

    # Variants stand with their methods, which take seconds to import.
    return [AUTOMATIC, NO_PRESET, *PRESETS]


def _option(*flags: str, under: str | None = None, default: str | bool = False, **more: Any) -> Any:
    """An option that has no value unless it is given; ``default`` says what holds then."""
    return typer.Option(*flags, show_default=default, rich_help_panel=under, **more)


_PROTOCOL_HELP = "Which images and labels a step sees: overlapped, disjoint or sequential."
_ROOT_HELP = "Folder with a folder for every data set"
_DEVICE_PRECISION = "float32, bf16, fp16; auto: bf16 on GPUs that have it, else fp16; float32 on CPU."
_BY_PRESET = "by preset"
_AS_TRAINED = "as in training"
_FOLDER = "runs/{dataset}-{task}-{protocol}-{method}-s{seed}"

Text = str | None
File = Path | None

# The scenario
Task = Annotated[
    Text,
    _option(
        "--task",
        metavar="NAME",
        help="A task (`plop tasks`), X-Y in general, or a TOML file with steps.",
        default="15-1",
        autocompletion=_task_names,
        under=_SCENARIO,
    ),
]
Dataset = Annotated[
    Text,
    _option(
        "--dataset",
        metavar="NAME",
        help="A data set (`plop datasets`).",
        default="voc",
        autocompletion=_dataset_names,
        under=_SCENARIO,
    ),
]
Method = Annotated[
    Text, _option("--method", metavar="NAME", help="A method (`plop methods`).", default="plop", under=_SCENARIO)
]
Protocol = Annotated[
    Text,
    _option(
        "--protocol",
        metavar="NAME",
        help=_PROTOCOL_HELP,
        default="overlapped",
        autocompletion=lambda: list(PROTOCOLS),
        under=_SCENARIO,
    ),
]
Overlapped = Annotated[bool, _option("--overlapped", help="Short for --protocol overlapped.", under=_SCENARIO)]
Disjoint = Annotated[bool, _option("--disjoint", help="Short for --protocol disjoint.", under=_SCENARIO)]
Sequential = Annotated[bool, _option("--sequential", help="Short for --protocol sequential.", under=_SCENARIO)]
OrderSeed = Annotated[
    Text,
    _option(
        "--order-seed",
        metavar="N",
        help="Shuffle the order in which the task learns its classes, by this seed.",
        default="the task's own order",
        under=_SCENARIO,
    ),
]
Splits = Annotated[
    File,
    _option(
        "--splits",
        metavar="DIR",
        help="Folder with train-0.npy, ...: positions in the sorted train list, in place of the protocol's images.",
        under=_SCENARIO,
    ),
]
Seed = Annotated[
    Text, _option("--seed", metavar="N", help="Seed of weights, order and augmentation.", default="42", under=_SCENARIO)
]
RunDataRoot = Annotated[
    File,
    _option("--data-root", metavar="DIR", help=f"{_ROOT_HELP} (or PLOP_DATA_ROOT).", default="data", under=_SCENARIO),
]
RunDataPath = Annotated[
    File,
    _option(
        "--data-path",
        metavar="DIR",
        help="The data set's own folder, where it is not in the data root.",
        under=_SCENARIO,
    ),
]
Background = Annotated[
    bool | None,
    _option(
        "--background/--no-background",
        help="Data set folder: whether classes.txt begins with the background.",
        default="background",
        under=_SCENARIO,
    ),
]
ValFraction = Annotated[
    Text,
    _option(
        "--val-fraction",
        metavar="X",
        help="Share of the training images kept apart for validation.",
        default="0",
        under=_SCENARIO,
    ),
]

# The recipe
Epochs = Annotated[Text, _option("--epochs", metavar="N", help="Epochs of step 0.", default=_BY_PRESET, under=_RECIPE)]
EpochsLater = Annotated[
    Text, _option("--epochs-later", metavar="N", help="Epochs of every later step.", default=_BY_PRESET, under=_RECIPE)
]
LearningRate = Annotated[
    Text, _option("--lr", metavar="X", help="Learning rate of step 0.", default=_BY_PRESET, under=_RECIPE)
]
LearningRateLater = Annotated[
    Text, _option("--lr-later", metavar="X", help="Learning rate of later steps.", default=_BY_PRESET, under=_RECIPE)
]
Batch = Annotated[
    Text,
    _option(
        "--batch",
        metavar="N",
        help="Images per iteration, over all GPUs and accumulation.",
        default=_BY_PRESET,
        under=_RECIPE,
    ),
]
Backbone = Annotated[
    Text,
    _option(
        "--backbone",
        metavar="NAME",
        help="resnet18 to resnet152, or mobilenet_v2.",
        default=_BY_PRESET,
        under=_RECIPE,
    ),
]
Weights = Annotated[File, _option("--weights", metavar="FILE", help="The backbone's ImageNet weights.", under=_RECIPE)]
Pretrained = Annotated[
    bool | None,
    _option(
        "--pretrained/--no-pretrained",
        help="Start step 0 from ImageNet weights, or at random.",
        default=_BY_PRESET,
        under=_RECIPE,
    ),
]

# The machine
RunGpus = Annotated[
    Text,
    _option(
        "--gpus",
        metavar="N",
        help="GPUs of this machine, one process each; auto: one if there is one; 0: CPU.",
        default="auto",
        under=_MACHINE,
    ),
]
RunProcesses = Annotated[
    Text,
    _option(
        "--processes",
        metavar="N",
        help="Processes on the CPU that share the batch, with --gpus 0.",
        default="1",
        under=_MACHINE,
    ),
]
Deterministic = Annotated[
    bool,
    _option(
        "--deterministic",
        help="Deterministic algorithms alone, with a warning where there is none.",
        under=_MACHINE,
    ),
]
Compile = Annotated[bool, _option("--compile", help="Compile the networks: minutes once, then faster.", under=_MACHINE)]
Profile = Annotated[
    Text,
    _option(
        "--profile",
        metavar="N",
        help="Profile N iterations of every step into RUN/profile.",
        default="0",
        under=_MACHINE,
    ),
]
RunPrecision = Annotated[
    Text,
    _option(
        "--precision",
        metavar="NAME",
        help=_DEVICE_PRECISION,
        default="auto",
        autocompletion=lambda: list(PRECISIONS),
        under=_MACHINE,
    ),
]

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
RunFolderOption = Annotated[File, _option("--run", metavar="DIR", help="Run folder.", default=_FOLDER, under=_RUN)]
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
        autocompletion=_dataset_names,
        under=_ORIGINAL,
    ),
]
OriginalTask = Annotated[
    Text,
    _option(
        "--task",
        metavar="NAME",
        help="Its task (`plop tasks`), X-Y in general, or a TOML file with steps.",
        autocompletion=_task_names,
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
