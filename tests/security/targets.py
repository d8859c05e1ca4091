"""What reads foreign files: how to make valid ones, and how to read a damaged one as the commands do."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mutation import damaged, distorted
from PIL import Image
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import save as to_safetensors
from valid_files import (
    CLASSES,
    archives,
    array_file,
    domain_results,
    pictures,
    results,
    row,
    snapshot_file,
    torch_files,
    tree,
)

from plopcli.console.log import RunLog
from plopcli.data.archives import unpack
from plopcli.data.checking import check_pair
from plopcli.data.colours import read_palette
from plopcli.data.index import class_index, index_file
from plopcli.data.matlab import read_segmentation
from plopcli.data.reading import check_readable, read_image, read_mask
from plopcli.data.samples import Sample
from plopcli.data.sets.folder import load_folder
from plopcli.data.sets.voc import load_voc
from plopcli.engine.checks import check_first_step, check_folder, check_previous
from plopcli.evaluation.evaluate import Changes, scenario_of
from plopcli.exporting.export import ExportOptions, export
from plopcli.files.lock import holder_of
from plopcli.inference.load import load as open_model
from plopcli.models.segmenter import build_segmenter
from plopcli.models.weights import load_backbone_weights
from plopcli.reporting.comparison import compare, read_runs, run_labels
from plopcli.reporting.formats import as_csv, latex, markdown, terminal_table
from plopcli.reporting.html.page import render_page
from plopcli.reporting.run_data import gather
from plopcli.reporting.run_tables import class_table, step_table
from plopcli.reporting.tables import comparison_tables
from plopcli.resolution.layers import resolve_settings, settings_to_toml
from plopcli.runs.checkpoint import Checkpoint, load_checkpoint
from plopcli.runs.confusion import Confusion, read_confusion, write_confusion
from plopcli.runs.folder import RunFolder
from plopcli.runs.restore import build_model, load
from plopcli.runs.snapshot import newest_snapshot
from plopcli.runs.verified import write_verified
from plopcli.scenarios.published_splits import read_splits
from plopcli.scenarios.scenario import Scenario
from plopcli.scenarios.tasks import resolve_task
from plopcli.settings.sections import ModelSettings, RunSettings

SBD = Path(__file__).parent.parent / "data" / "sbd"
LOG = RunLog(Console(file=io.StringIO()))


@dataclass(frozen=True)
class Target:
    """One reader.

    Args:
        mutate: Makes a damaged file.
        read: Reads it, written to the path that ``place`` names below a folder.
        place: Where the file lies.
    """

    mutate: Callable[[random.Random], bytes]
    read: Callable[[Path], Any]
    place: str


def _bytes(samples: list[bytes], *tokens: bytes) -> Callable[[random.Random], bytes]:
    return lambda rng: damaged(rng, samples, tokens)


def _task(path: Path) -> None:
    resolve_task(str(path), CLASSES, "folder", order_seed=3)


def _settings(path: Path) -> None:
    resolve_settings({}, config=path, environment={})


def _image(path: Path) -> None:
    for read in (read_image, read_mask, lambda p: check_readable(Sample("a", p, p), whole=True)):
        try:
            read(path)
        except Exception as error:
            kept = error
        else:
            kept = None
    other = path.with_name("other.png")
    if not other.exists():
        Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(other)
    table = np.arange(256, dtype=np.uint8)
    check_pair(Sample("a", path, other), 4, table, whole=True)
    check_pair(Sample("a", other, path), 4, table)
    if kept is not None:
        raise kept


def settings() -> RunSettings:
    """Those of a tiny run on `tree`."""
    keys = {"data.dataset": "folder", "model.backbone": "resnet18", "model.pretrained": "false", "model.width": "8"}
    keys |= {"model.head_channels": "8", "scenario.task": "2-1", "data.crop": "16"}
    return resolve_settings({}, assignments=[f"{key}={value}" for key, value in keys.items()], environment={}).settings


class Checkpoints:
    """A tiny checkpoint, and whatever reads one."""

    def __init__(self, folder: Path) -> None:
        root = tree(folder)
        plain = settings()
        self.settings = plain.model_copy(update={"data": plain.data.model_copy(update={"path": root})})
        self.scenario = Scenario.from_settings(self.settings)
        task = self.scenario.task
        model = build_segmenter(self.settings.model, self.scenario.class_counts(0))
        self.checkpoint = Checkpoint(
            step=0,
            classes=self.scenario.class_names[: len(task.steps[0])],
            class_counts=list(self.scenario.class_counts(0)),
            task_name=task.name,
            task_steps=[list(step) for step in task.steps],
            task_groups=[list(step) for step in task.groups],
            settings=self.settings.model_dump(mode="json"),
            model=model.state_dict(),
            method={"thresholds": torch.ones(3)},
            data_fingerprint=self.scenario.fingerprint,
            made_with={"precision": "float32"},
        )
        self.content = {
            "format": "plop-checkpoint",
            "version": 3,
            **vars(self.checkpoint),
            "model": dict(model.state_dict()),
        }
        self.path = folder / "whole.pt"
        write_verified(self.path, self.content)

    def distort(self, rng: random.Random) -> bytes:
        """A sound file which says something else."""
        kept = {"weights": self.content["model"]}
        few = {**self.content, "model": {}}
        changed = distorted(rng, few)
        if changed.get("model") == {}:
            changed["model"] = (
                kept["weights"] if rng.random() < 0.05 else distorted(rng, dict(list(kept["weights"].items())[:3]))
            )
        changed = {str(name): value for name, value in changed.items()}
        path = self.path.with_name("changed.pt")
        write_verified(path, changed)
        return path.read_bytes()

    def read(self, path: Path) -> None:
        """As evaluate, visualize, --previous, --init-from and --resume read one."""
        checkpoint, stored = load(path)
        evaluated = Changes().apply(stored)
        check_previous(checkpoint, self.settings, self.scenario, 1)
        check_folder(RunFolder(path.parent.parent), self.settings)
        check_first_step(checkpoint, self.settings, self.scenario, {})
        scenario = scenario_of(checkpoint, evaluated)
        scenario.evaluation(checkpoint.step, evaluated.data.results_on)
        build_model(checkpoint, stored)


def _report(path: Path) -> None:
    runs = read_runs([path.parent])
    comparisons = compare(runs)
    tables = [table for comparison in comparisons for table in comparison_tables(comparison)]
    results = [run.results for run in runs]
    for table in (*map(step_table, results), *map(class_table, results), *map(terminal_table, tables)):
        Console(file=io.StringIO()).print(table)
    assert all(markdown(table) and latex(table) for table in tables)
    as_csv(comparisons)
    labels = run_labels(comparisons)
    render_page(comparisons, [gather(labels[run.path], run, "none", "none") for run in runs])


def _metrics(path: Path) -> None:
    for line in RunFolder(path.parent).read_metrics():
        line["step"], line["iteration"], [float(value or 0) for value in line.get("terms", {}).values()]


def _as_json(*values: Any) -> Callable[[random.Random], bytes]:
    """Half of the files say something else, half are no JSON."""
    samples = [json.dumps(value, indent=2).encode() for value in values]
    return lambda rng: (
        damaged(rng, samples, (b"null", b"[", b"{}", b'""', b","))
        if rng.random() < 0.5
        else json.dumps(distorted(rng, rng.choice(values))).encode()
    )


def _as_lines(rows: list[dict[str, Any]]) -> Callable[[random.Random], bytes]:
    def make(rng: random.Random) -> bytes:
        changed = distorted(rng, rows)
        lines = changed if isinstance(changed, list) else [changed]
        return damaged(rng, ["".join(json.dumps(line) + "\n" for line in lines).encode() or b"\n"], (b"\n", b"null"))

    return make


def _matrices(folder: Path) -> list[bytes]:
    """Confusion matrices of classes, and of domains."""
    path, counts = folder / "step-0.npz", np.arange(9).reshape(3, 3)
    files = []
    for domains in ({}, {"aachen": counts, "bremen": counts}):
        write_confusion(path, Confusion(["background", "cat", "dog"], counts, domains))
        files.append(path.read_bytes())
    return files


def _exported(checkpoint: Path) -> Callable[[random.Random], bytes]:
    """Exported weights: half of them are damaged, half say something else of themselves."""
    path = export(checkpoint, checkpoint.with_name("exported.safetensors"), ExportOptions(check=None)).path
    whole = path.read_bytes()
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
    facts = {name: json.loads(value) for name, value in metadata.items() if name not in ("format", "format_version")}
    fixed = {name: metadata[name] for name in ("format", "format_version")}

    def make(rng: random.Random) -> bytes:
        if rng.random() < 0.5:
            return damaged(rng, [whole], (b'"', b"{", b"null"))
        said = {name: json.dumps(value) for name, value in distorted(rng, facts).items()}
        content: bytes = to_safetensors(tensors, fixed | said)
        return content

    return make


def _use(path: Path) -> None:
    model = open_model(path, device="cpu")
    if model.info["shorter_side"] <= 64:
        model.predict(np.zeros((9, 7, 3), dtype=np.uint8)).mask()


def targets(folder: Path) -> dict[str, Target]:
    """Every reader of foreign files by name; ``folder`` takes their valid files."""
    root, checkpoints = tree(folder), Checkpoints(folder / "model")
    data = load_folder(root)
    class_index(data)
    indexed = index_file(data).read_bytes()
    names = [f"p{number}" for number in range(6)]
    samples = tuple(Sample(name, Path(), Path()) for name in names)
    small = ModelSettings(backbone="resnet18", width=8, head_channels=8)
    model = build_segmenter(small, (3,))
    weights = torch_files(dict(list(model.body.state_dict().items())[:6]))
    holder = {
        "host": "a",
        "boot": "b",
        "pid": 1,
        "started": 2,
        "command": "plop",
        "since": "x",
        "job": "",
        "restart": 0,
    }
    words = (b"[", b"]", b'"', b"=", b"\n", b"steps", b"true", b"'''", b"{", b"1979-05-27T07:32:00Z", b"nan", b"..")
    voc = root / "voc"
    (voc / "JPEGImages").mkdir(parents=True, exist_ok=True)
    (voc / "SegmentationClass").mkdir(exist_ok=True)
    (voc / "val.txt").write_text("2007_000033\n")
    return {
        "task": Target(
            _bytes(
                [b'steps = [["cat", "dog"], ["bird"], ["horse"]]\n', b"# mine\nsteps = [\n  [1, 2],\n  [3]\n]\n"],
                *words,
            ),
            _task,
            "task.toml",
        ),
        "settings": Target(
            _bytes(
                [settings_to_toml(checkpoints.settings).encode(), b"seed = 1\n[train.from_step.2]\nlr = 0.1\n"], *words
            ),
            _settings,
            "settings.toml",
        ),
        "list": Target(
            _bytes([(root / "train.txt").read_bytes()], b"\n", b"../", b"\x00", b"\xef\xbb\xbf", b"p4"),
            lambda _: load_folder(root),
            "own/train.txt",
        ),
        "classes": Target(
            _bytes([(root / "classes.txt").read_bytes()], b"\n", b"\r", b"\x00", b"\xff\xfe"),
            lambda _: load_folder(root),
            "own/classes.txt",
        ),
        "voc list": Target(
            _bytes([b"/JPEGImages/a.jpg /SegmentationClass/a.png\n2007_000032\n"], b"/", b" ", b"..", b"\n", b"\x00"),
            lambda _: load_voc(voc),
            "own/voc/train_aug.txt",
        ),
        "palette": Target(
            _bytes([b"255 0 0 cat\n#00ff00 dog\n0,0,0 background\n"], b"#", b" ", b"\n"),
            lambda p: read_palette(str(p)),
            "palette.txt",
        ),
        "picture": Target(_bytes(pictures()), _image, "picture.png"),
        "split file": Target(
            _bytes(
                [
                    array_file(np.array([0, 2, 4])),
                    array_file(np.array([1, 3], dtype=np.uint8)),
                    array_file(np.array([[1.5]])),
                ],
                b"'O'",
                b"(",
                b"|O",
            ),
            lambda path: read_splits(path.parent, 1, samples),
            "splits/train-0.npy",
        ),
        "mat": Target(
            _bytes([(SBD / f"{name}.mat").read_bytes() for name in ("compressed", "plain", "double", "tiny")]),
            read_segmentation,
            "a.mat",
        ),
        "index cache": Target(_bytes([indexed]), lambda _: class_index(data), f"own/{index_file(data).name}"),
        "results": Target(_as_json(results(), domain_results()), _report, "run/results.json"),
        "metrics": Target(
            _as_lines([row(step, at) for step in range(3) for at in range(2)]), _metrics, "run/metrics.jsonl"
        ),
        "confusion": Target(
            _bytes(_matrices(folder), b"'O'", b"|O", b"<i8"), read_confusion, "run/confusion/step-0.npz"
        ),
        "environment": Target(
            _as_json({"time": "x", "earlier": [{"time": "y"}], "versions": {}}),
            lambda path: RunFolder(path.parent).read_environment(),
            "run/environment.json",
        ),
        "lock": Target(_as_json(holder), holder_of, "run/run.lock"),
        "checkpoint": Target(
            _bytes([checkpoints.path.read_bytes()], b"cposix\nsystem\n", b"\x80\x02"),
            lambda path: load_checkpoint(path),
            "run/checkpoints/step-0.pt",
        ),
        "checkpoint content": Target(checkpoints.distort, checkpoints.read, "run/checkpoints/step-0.pt"),
        "snapshot": Target(
            _bytes([snapshot_file(folder)], b"cposix\nsystem\n", b"\x80\x02"),
            lambda path: newest_snapshot(RunFolder(path.parent.parent), 0),
            "run/checkpoints/snapshot-0-7.pt",
        ),
        "backbone weights": Target(
            _bytes(weights, b"cposix\nsystem\n", b"R", b"."),
            lambda path: load_backbone_weights(model, path),
            "weights.pth",
        ),
        "exported weights": Target(_exported(checkpoints.path), _use, "m.safetensors"),
        "archive": Target(_bytes(archives(), b"../", b"/", b"PK\x05\x06"), _unpack, "archive.bin"),
    }


def _unpack(path: Path) -> None:
    import shutil

    try:
        unpack(path, path.with_name("unpacked"), LOG)
    finally:
        shutil.rmtree(path.with_name("unpacked"), ignore_errors=True)
    assert not (path.parent.parent / "a.png").exists()
