"""The options that describe a run, for every command that trains or rehearses one.

`plopcli.cli.resolution` turns them into settings.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from inspect import Parameter
from typing import Any

from plopcli.cli import options
from plopcli.cli.options import BY_PRESET, MACHINE, PRECISIONS, PROTOCOLS, RECIPE, SCENARIO, setting

_ROWS: tuple[tuple[str, str, str, str | None, dict[str, Any]], ...] = (
    (SCENARIO, "--task", "scenario.task", "NAME", {"autocompletion": options.task_names}),
    (SCENARIO, "--dataset", "data.dataset", "NAME", {"autocompletion": options.dataset_names}),
    (SCENARIO, "--method", "method.name", "NAME", {"default": "plop"}),
    (SCENARIO, "--protocol", "scenario.protocol", "NAME", {"autocompletion": lambda: list(PROTOCOLS)}),
    (SCENARIO, "--seed", "seed", "N", {}),
    (SCENARIO, "--data-root", "data.root", "DIR", {}),
    (SCENARIO, "--data-path", "data.path", "DIR", {}),
    (SCENARIO, "--background/--no-background", "data.background", None, {"default": "background"}),
    (SCENARIO, "--val-fraction", "data.val_fraction", "X", {}),
    (RECIPE, "--epochs", "train.first.epochs", "N", {"default": BY_PRESET}),
    (RECIPE, "--epochs-later", "train.later.epochs", "N", {"default": BY_PRESET}),
    (RECIPE, "--lr", "train.first.lr", "X", {"default": BY_PRESET}),
    (RECIPE, "--lr-later", "train.later.lr", "X", {"default": BY_PRESET}),
    (RECIPE, "--batch", "train.batch", "N", {"default": BY_PRESET}),
    (RECIPE, "--backbone", "model.backbone", "NAME", {"default": BY_PRESET}),
    (RECIPE, "--weights", "model.weights", "FILE", {}),
    (RECIPE, "--pretrained/--no-pretrained", "model.pretrained", None, {"default": BY_PRESET}),
    (MACHINE, "--gpus", "compute.gpus", "N", {}),
    (MACHINE, "--processes", "compute.processes", "N", {"default": "1"}),
    (MACHINE, "--precision", "compute.precision", "NAME", {"autocompletion": lambda: list(PRECISIONS)}),
    (MACHINE, "--profile", "output.profile", "N", {}),
)
#: The settings with an option of their own, and that option, by its parameter. Values arrive as text, so that all
#: errors are reported at once; help and allowed values are the setting's.
OPTION_OF: dict[str, tuple[str, Any]] = {
    **{
        flag.partition("/")[0].removeprefix("--").replace("-", "_"): (
            key,
            setting(flag, key, metavar, under=panel, **more),
        )
        for panel, flag, key, metavar, more in _ROWS
    },
    "order_seed": ("scenario.order_seed", options.OrderSeed),
    "splits": ("scenario.splits", options.Splits),
    "run": ("run", options.RunFolderOption),
}


def _more(
    overlapped: options.Overlapped = False,
    disjoint: options.Disjoint = False,
    sequential: options.Sequential = False,
    compile: options.Compile = False,
    deterministic: options.Deterministic = False,
    config: options.Config = None,
    assignments: options.Assignments = None,
    preset: options.PresetName = "auto",
) -> None:
    """Options that are no settings by themselves."""


def describes_run(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options that describe a run to a command, before its own ones.

    They do not arrive as arguments: `plopcli.cli.resolution.resolve` reads them from the parameters of the context.
    """
    own = inspect.signature(command, eval_str=True).parameters
    context, *others = own.values()
    shared = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=kind) for name, (_, kind) in OPTION_OF.items()
    ]
    shared += inspect.signature(_more, eval_str=True).parameters.values()

    @functools.wraps(command)
    def with_run(**arguments: Any) -> None:
        command(**{name: arguments[name] for name in own})

    merged = [parameter.replace(kind=Parameter.KEYWORD_ONLY) for parameter in (context, *shared, *others)]
    with_run.__signature__ = inspect.Signature(merged)  # type: ignore[attr-defined]
    return with_run
