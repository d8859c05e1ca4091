"""`plop train-step`: one step of a scenario."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from plopcli.cli import options
from plopcli.cli.output import message_console, print_results
from plopcli.cli.planning import answer_beforehand
from plopcli.cli.resolution import resolve
from plopcli.errors import UsageError

EXAMPLES = """
plop train-step --step 0 --dataset toy --run runs/mine
plop train-step --step 1 --run runs/mine                       # goes on from step 0, with the same settings
plop train-step --step 1 --run runs/mine --resume              # goes on in the middle of step 1
plop train-step --step 1 --dataset toy --run runs/other --previous runs/mine/checkpoints/step-0.pt
"""


def train_step(
    ctx: typer.Context,
    step: Annotated[int, typer.Option("--step", metavar="N", help="The step to train, from 0.", rich_help_panel="Run")],
    run: options.RunFolderOption = None,
    previous: Annotated[
        Path | None,
        typer.Option(
            "--previous",
            metavar="CKPT",
            help="Checkpoint of the step before.",
            show_default="that of the run folder",
            rich_help_panel="Run",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the step where it stopped.", rich_help_panel="Run")
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Train the step anew; later steps are dropped.", rich_help_panel="Run"),
    ] = False,
    dry_run: options.DryRun = False,
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
    print_config: options.PrintConfig = False,
    as_json: options.Json = False,
) -> None:
    """Train one step of a scenario, from the checkpoint of the step before, and measure it.

    Steps 0 to N trained one by one give the same run as run-scenario.
    """
    if resume and overwrite:
        raise UsageError("--resume and --overwrite contradict each other.", "Leave one of them away.")
    resolved = resolve(ctx.params)
    if answer_beforehand(resolved, print_config=print_config, dry_run=dry_run, as_json=as_json):
        return

    from plopcli.devices.launch import run_everywhere
    from plopcli.engine import scenario_run as engine

    results = run_everywhere(
        engine.train_one_step,
        engine.check_one_step,
        resolved.settings.compute,
        message_console(),
        resolved=resolved,
        choices=engine.StepChoices(step, previous, overwrite, resume),
    )
    print_results(results, as_json=as_json)
