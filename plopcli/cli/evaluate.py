"""`plop evaluate`: the figures of a checkpoint or of a whole run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from plopcli.cli import options
from plopcli.cli.options import option
from plopcli.cli.output import message_console, print_results
from plopcli.cli.resolution import checked, described

EXAMPLES = """
plop evaluate runs/demo-plop                                   # every step of a run
plop evaluate runs/demo-plop/checkpoints/step-3.pt --json
plop evaluate runs/demo-plop --split val --data-root /data
plop evaluate runs/demo-plop --evaluation full --save-predictions out --csv out.csv
plop evaluate runs/voc --scales 0.5,0.75,1,1.25,1.5,1.75 --flip
plop evaluate runs/voc --gpus 4                                # the same figures, sooner
plop evaluate 15-5s_PLOP_5.pth --dataset voc --task 15-1       # of the original implementation
"""


_SETTING_OF = {
    "data_root": "data.root",
    "data_path": "data.path",
    "split": "data.results_on",
    "batch": "train.batch",
    "evaluation": "data.evaluation",
    "gpus": "compute.gpus",
    "processes": "compute.processes",
    "precision": "compute.precision",
}


def evaluate(
    ctx: typer.Context,
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A checkpoint or a run folder.", show_default=False)],
    data_root: options.OtherDataRoot = None,
    data_path: options.DataPath = None,
    split: options.Split = None,
    evaluation: Annotated[
        str | None,
        option(
            "--evaluation", "NAME", "crop: a central crop of every image; full: whole images.", default="as in training"
        ),
    ] = None,
    scales: Annotated[
        str | None,
        option(
            "--scales", "LIST", "Average the probabilities over resized images: 0.5,0.75,1,1.25,1.5,1.75.", default="1"
        ),
    ] = None,
    flip: Annotated[bool, option("--flip", help="Average over mirror images, too.")] = False,
    batch: Annotated[int | None, option("--batch", "N", "Images at a time.", default="as in training")] = None,
    gpus: options.EvaluationGpus = None,
    processes: options.Processes = None,
    precision: options.OtherPrecision = None,
    dataset: options.OriginalDataset = None,
    task: options.OriginalTask = None,
    method: options.OriginalMethod = None,
    step: options.OriginalStep = None,
    assignments: options.OriginalAssignments = None,
    csv: Annotated[Path | None, option("--csv", "FILE", "Write the figures of every step, too.")] = None,
    predictions: Annotated[
        Path | None,
        option(
            "--save-predictions",
            "DIR",
            "Write every prediction as an index PNG, with the size of its image and the ids of the masks.",
        ),
    ] = None,
    confusion: Annotated[Path | None, option("--confusion", "DIR", "Write the confusion matrix of every step.")] = None,
    as_json: options.Json = False,
) -> None:
    """Measure a checkpoint, or every step of a run.

    By default it measures as the run itself did, and gives the same figures. Figures of other images, of crops or
    whole images, or with test-time augmentation (--scales, --flip) are not comparable: the output says what they are
    of. A checkpoint of the original implementation needs --dataset and --task.
    """
    changes = checked(ctx.params, _SETTING_OF)

    from plopcli.devices.launch import run_everywhere
    from plopcli.evaluation.augmentation import Augmentation, read_scales
    from plopcli.evaluation.evaluate import Changes, Files, check_evaluation, evaluate_path, settings_of
    from plopcli.runs.results import check_csv, write_csv

    augmentation = Augmentation(flip=flip) if scales is None else Augmentation(read_scales(scales), flip)
    changed = Changes(**changes, described=described(ctx.params), augmentation=augmentation)
    if csv is not None:
        check_csv(csv)
    results = run_everywhere(
        evaluate_path,
        check_evaluation,
        settings_of(path, changed).compute,
        message_console(),
        path=path,
        changes=changed,
        files=Files(predictions, confusion),
    )
    if csv is not None and results is not None:
        write_csv(results, csv)
    print_results(results, as_json=as_json)
