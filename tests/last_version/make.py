"""Writes ``stored.tar.xz``: what the last version of plop left behind, for `test_last_version.py` to open.

    python tests/last_version/make.py

Run it with the code of the version that is to be stored, never with newer code. The archive holds

- ``data/``: 46 generated pictures and masks, 28 of them for training;
- ``plop/``: 18-1 by PLOP, stopped in the middle of step 2: two finished steps with their results, and a snapshot;
- ``ewc/``: the same by EWC, stopped in the middle of step 1, with tables in checkpoint and snapshot;
- ``weights.pth``: what the backbones began from;
- ``expected.json``: what that version made of them when it went on.

So that it stays small, weights of the backbone have a handful of values, and finished steps leave the backbone alone;
step 2 of PLOP trains it. Snapshots are rounded.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plopcli.cli.app import main
from plopcli.models.segmenter import build_segmenter
from plopcli.runs.checkpoint import load_checkpoint
from plopcli.runs.verified import read_verified, write_verified
from plopcli.settings.sections import ModelSettings

HERE = Path(__file__).parent
NETWORK = {
    "model.backbone": "resnet18",
    "model.width": 8,
    "model.head_channels": 6,
    "model.output_stride": 8,
    "model.pooling": 4,
    "model.weights": "weights.pth",
}
RECIPE = {
    "data.crop": 40,
    "data.workers": 0,
    "train.batch": 2,
    "train.first.epochs": 20,
    "train.first.lr": 0.03,
    "train.first.lr_body": 0,
    "train.later.epochs": 6,
    "train.later.lr": 0.003,
    "train.later.lr_body": 0,
    "train.from_step.2.lr_body": 1,
    "train.from_step.2.lr": 0.0005,
    "train.from_step.2.freeze_norm": "body",
    "train.validate_every": 5,
    "compute.gpus": 0,
    "compute.precision": "float32",
    "output.print_every": 50,
    "output.overlays": 0,
}


def coarse(tensor: Tensor) -> Tensor:
    """``tensor`` rounded to a handful of values."""
    unit = 2.0 ** torch.floor(torch.log2(tensor.std())) if tensor.std() > 0 else 1.0
    return (tensor / unit).round().clamp(-4, 4) * unit


def write_weights() -> None:
    torch.manual_seed(3)
    settings = ModelSettings(backbone="resnet18", pretrained=False, width=8, head_channels=6, output_stride=8)
    body = build_segmenter(settings, [1]).body
    torch.save({name: coarse(t) if t.dim() == 4 else t for name, t in body.state_dict().items()}, "weights.pth")


def words(method: str) -> list[str]:
    given = ["run-scenario", "--dataset", "toy", "--data-root", "data", "--task", "18-1", "--preset", "none"]
    given += ["--method", method, "--run", method, "--seed", "7"]
    return [*given, *(word for key, value in (NETWORK | RECIPE).items() for word in ("--set", f"{key}={value}"))]


def stop_within(method: str, step: int) -> None:
    """Trains until step ``step`` has a snapshot, and stops the run there as SLURM does."""
    run = subprocess.Popen([sys.executable, "-m", "plopcli", *words(method)])
    while not list(Path(method).glob(f"checkpoints/snapshot-{step}-*.pt")):
        assert run.poll() is None, "it has ended before"
        time.sleep(0.01)
    run.send_signal(signal.SIGTERM)
    assert run.wait(60) == 143
    for older in sorted(Path(method).glob("checkpoints/snapshot-*.pt"), key=os.path.getmtime)[:-1]:
        older.unlink()


def round_snapshot(path: Path) -> None:
    """Rounds the network, its momentum and the method's tables."""

    def rounded(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: rounded(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [rounded(inner) for inner in value]
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        # Head and classifiers have 6 channels.
        backbone = value.dim() == 4 and value.shape[0] % 8 == 0 and value.shape[1] != 6
        return coarse(value) if backbone else value.bfloat16().float()

    content = read_verified(path)
    write_verified(path, {**content, "trainer": rounded(content["trainer"])})


def anonymous(folder: Path) -> None:
    """Takes the names of the machine and its folders out of what a run says of itself."""
    for path in folder.rglob("*"):
        if path.suffix in {".json", ".jsonl", ".txt", ".toml"}:
            text = path.read_text()
            for mine, plain in (
                (str(Path.cwd()), "/home/u"),
                (str(HERE.parent.parent), "/home/u/plop"),
                (socket.gethostname(), "host"),
                (sys.prefix, "/home/u/venv"),
            ):
                text = text.replace(mine, plain)
            path.write_text(text)


def files(folder: Path) -> Iterator[Path]:
    # Networks of equal weights follow each other, so that the compression meets them again.
    yield from sorted((p for p in folder.rglob("*") if p.is_file()), key=lambda p: (p.suffix != ".pt", str(p)))


def expected(method: str) -> dict[str, Any]:
    """What going on with a copy of the run gives."""
    shutil.copytree(method, f"{method}-copy", copy_function=shutil.copy2)
    (Path("kept") / method).parent.mkdir(exist_ok=True)
    Path(method).rename(Path("kept") / method)
    Path(f"{method}-copy").rename(method)
    assert main(["run-scenario", "--run", method, "--resume"]) == 0
    results = json.loads(Path(method, "results.json").read_text())
    model = load_checkpoint(Path(method, "checkpoints/step-2.pt")).model
    norms = {name: tensor.double().norm().item() for name, tensor in model.items() if tensor.is_floating_point()}
    shutil.rmtree(method)
    (Path("kept") / method).rename(method)
    return {
        "steps": [{"iou": s["iou"], "miou": s["miou"]} for s in results["steps"]],
        "avg": results["avg"],
        "norms": norms,
    }


if __name__ == "__main__":
    os.chdir(tempfile.mkdtemp())
    assert (
        main(["download", "toy", "--data-root", "data", "--train", "28", "--val", "6", "--test", "12", "--size", "48"])
        == 0
    )
    write_weights()
    stop_within("plop", 2)
    stop_within("ewc", 1)
    for snapshot in Path().glob("*/checkpoints/snapshot-*.pt"):
        round_snapshot(snapshot)
    for run in ("plop", "ewc"):
        anonymous(Path(run))
    told = {run: expected(run) for run in ("plop", "ewc")}
    Path("expected.json").write_text(json.dumps(told, indent=1))
    shutil.rmtree("kept")
    with tarfile.open(HERE / "stored.tar.xz", "w:xz", preset=9) as archive:
        for path in files(Path()):
            info = archive.gettarinfo(path)
            info.uid = info.gid = 0
            info.uname = info.gname = ""
            archive.addfile(info, path.open("rb"))
    print((HERE / "stored.tar.xz").stat().st_size, Path.cwd())
