"""The options that describe a run, together, for every command that trains or foresees a training.

How they become settings: `plopcli.cli.resolution`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from inspect import Parameter
from typing import Any

from plopcli.cli import options


def _run_description(
    task: options.Task = None,
    dataset: options.Dataset = None,
    method: options.Method = None,
    protocol: options.Protocol = None,
    overlapped: options.Overlapped = False,
    disjoint: options.Disjoint = False,
    sequential: options.Sequential = False,
    order_seed: options.OrderSeed = None,
    splits: options.Splits = None,
    seed: options.Seed = None,
    data_root: options.RunDataRoot = None,
    data_path: options.RunDataPath = None,
    background: options.Background = None,
    val_fraction: options.ValFraction = None,
    epochs: options.Epochs = None,
    epochs_later: options.EpochsLater = None,
    lr: options.LearningRate = None,
    lr_later: options.LearningRateLater = None,
    batch: options.Batch = None,
    backbone: options.Backbone = None,
    weights: options.Weights = None,
    pretrained: options.Pretrained = None,
    gpus: options.RunGpus = None,
    processes: options.RunProcesses = None,
    precision: options.RunPrecision = None,
    compile: options.Compile = False,
    deterministic: options.Deterministic = False,
    profile: options.Profile = None,
    config: options.Config = None,
    assignments: options.Assignments = None,
    preset: options.PresetName = "auto",
    run: options.RunFolderOption = None,
) -> None:
    """What every command that trains, or foresees a training, takes."""


def describes_run(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options that describe a run, before its own ones.

    They do not arrive as arguments: `plopcli.cli.resolution.resolve` reads them from the parameters of the context.
    """
    own = inspect.signature(command, eval_str=True).parameters
    shared = inspect.signature(_run_description, eval_str=True).parameters
    context, *others = own.values()

    @functools.wraps(command)
    def with_run(**arguments: Any) -> None:
        command(**{name: arguments[name] for name in own})

    merged = [parameter.replace(kind=Parameter.KEYWORD_ONLY) for parameter in (context, *shared.values(), *others)]
    with_run.__signature__ = inspect.Signature(merged)  # type: ignore[attr-defined]
    return with_run
