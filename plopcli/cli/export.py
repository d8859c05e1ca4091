"""`plop export`: a model as a file for other programs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plopcli.cli import options
from plopcli.cli.options import option
from plopcli.cli.output import print_json, say_lines
from plopcli.cli.resolution import described
from plopcli.console.streams import echo
from plopcli.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from plopcli.exporting.export import Exported

EXAMPLES = """
plop export runs/demo-plop demo.onnx                       # the last step, for ONNX Runtime
plop export runs/demo-plop demo.onnx --check my-photos/    # compared with the model on your own pictures
plop export runs/demo-plop/checkpoints/step-2.pt --format torchscript --input normalised
"""

_INPUTS = ("pixels", "normalised")
_POOLINGS = ("trained", "global")


def export(
    ctx: typer.Context,
    source: Annotated[Path, typer.Argument(metavar="MODEL", help="A checkpoint or a run folder.", show_default=False)],
    target: Annotated[
        Path | None, typer.Argument(metavar="OUT", help="The file to write.", show_default="named after MODEL, here")
    ] = None,
    kind: Annotated[
        str | None,
        option(
            "--format",
            "NAME",
            "onnx, torchscript or safetensors (weights alone).",
            default="by OUT's suffix",
            autocompletion=lambda: ["onnx", "torchscript", "safetensors"],
        ),
    ] = None,
    takes: Annotated[
        str,
        option(
            "--input",
            "NAME",
            "pixels: (batch, height, width, 3), uint8, RGB, normalised inside; normalised: (batch, 3, height, "
            "width), float32.",
            autocompletion=lambda: list(_INPUTS),
        ),
    ] = "pixels",
    pooling: Annotated[
        str,
        option(
            "--pooling",
            "NAME",
            "The head's pooling: trained, or global, which is simpler and differs where a side of the input is "
            "over window x output stride (512 pixels by default).",
            autocompletion=lambda: list(_POOLINGS),
        ),
    ] = "trained",
    check: Annotated[
        list[str] | None,
        option(
            "--check", "FILE|DIR|GLOB", "Pictures to compare file and model on; repeatable.", default="generated ones"
        ),
    ] = None,
    no_check: Annotated[bool, option("--no-check", help="Write the file without comparing it.")] = False,
    overwrite: Annotated[bool, option("--overwrite", help="Replace OUT where it exists.")] = False,
    step: options.Step = None,
    dataset: options.OriginalDataset = None,
    task: options.OriginalTask = None,
    method: options.OriginalMethod = None,
    assignments: options.OriginalAssignments = None,
    data_root: options.OtherDataRoot = None,
    data_path: options.DataPath = None,
    as_json: options.Json = False,
) -> None:
    """Write a model for other programs: norms folded into convolutions, any batch and size, classes as metadata.

    What comes out are logits (batch, classes, height, width) at the size of the input. The file is then run beside the
    model, differences and times are told, and a file that computes something else is not kept. The name of the file
    goes to standard output.
    """
    for name, value, known in (("input", takes, _INPUTS), ("pooling", pooling, _POOLINGS)):
        if value not in known:
            raise unknown_name(name, value, known)
    if check and no_check:
        raise UsageError("--check and --no-check contradict each other.", "Leave one of them away.")
    from plopcli.data.pictures import picture_paths
    from plopcli.exporting.export import ExportOptions
    from plopcli.exporting.export import export as export_model

    plan = ExportOptions(
        format=kind,
        takes=takes,  # type: ignore[arg-type]
        pooling=pooling,  # type: ignore[arg-type]
        check=None if no_check else picture_paths(check or []),
        overwrite=overwrite,
        step=step,
        described=described(ctx.params, step_of_run=True),
    )
    done = export_model(source, target, plan)
    if as_json:
        print_json(_json(done))
        return
    say_lines(_lines(done))
    echo(str(done.path))


def _json(done: Exported) -> dict[str, Any]:
    checked = None if done.checked is None else asdict(done.checked)
    facts = done.facts.model_dump()
    return {"path": str(done.path), "format": done.format, "bytes": done.size, "facts": facts, "checked": checked}


def _lines(done: Exported) -> list[str]:
    """A summary of an export."""
    from rich.filesize import decimal

    from plopcli.exporting.formats import FORMATS

    facts, checked = done.facts, done.checked
    shape = "(batch, height, width, 3) uint8 RGB" if facts.input == "pixels" else "(batch, 3, height, width) float32"
    lines = [
        f"{facts.dataset} {facts.task} after step {facts.step}: {facts.backbone}, {len(facts.classes)} classes; "
        f"{done.format}, {decimal(done.size)}",
        f"takes {shape}, shorter side {facts.shorter_side}; gives logits (batch, {len(facts.classes)}, height, width)",
    ]
    if checked is None:
        return [*lines, "not checked"]
    small, large = (f"{width} x {height}" for height, width in (checked.smallest, checked.largest))
    sizes = small if small == large else f"{small} to {large}"
    pictures = f"{checked.pictures} picture{'s' if checked.pictures > 1 else ''}"
    lines.append(
        f"checked on {pictures} ({sizes}): logits differ by at most {checked.difference:.1e} of the largest, "
        f"arg-max equal on {100 * checked.agreement:.4f} % of the pixels"
    )
    if checked.own_pooling is not None:
        lines.append(
            f"global pooling: arg-max equal to the model's own pooling on {100 * checked.own_pooling:.2f} % of them"
        )
    lines.append(
        f"time a picture, median: {checked.model_ms:.0f} ms the model in torch, {checked.file_ms:.0f} ms "
        f"{FORMATS[done.format].runtime} ({checked.model_ms / checked.file_ms:.2f} x), CPU, {checked.threads} threads"
    )
    return lines
