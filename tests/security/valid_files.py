"""Valid files of every kind that is read from strangers, small enough to damage thousands of them."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from plopcli.runs.folder import RunFolder
from plopcli.runs.snapshot import Snapshot, write_snapshot

CLASSES = ("background", "cat", "dog", "bird", "horse")


def tree(folder: Path) -> Path:
    """A small data set, with lists, in a user's own layout."""
    root = folder / "own"
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(6):
        mask = np.full((8, 8), number % len(CLASSES), dtype=np.uint8)
        mask[:4] = 1
        Image.fromarray(mask).save(root / "masks" / f"p{number}.png")
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(root / "images" / f"p{number}.png")
    (root / "classes.txt").write_text("\n".join(CLASSES))
    (root / "train.txt").write_text("p0\np1.png\nimages/p2.png\np3\n")
    (root / "test.txt").write_text("p4\np5\n")
    return root


def pictures() -> list[bytes]:
    rng, found = np.random.default_rng(0), []
    colours = Image.fromarray(rng.integers(0, 256, (9, 11, 3), dtype=np.uint8))
    ids = Image.fromarray(rng.integers(0, 4, (9, 11), dtype=np.uint8))
    turned = Image.Exif()
    turned[274] = 6
    for image, kind, options in (
        (colours, "JPEG", {"exif": turned}),
        (colours, "JPEG", {"progressive": True}),
        (colours, "PNG", {"exif": turned}),
        (colours, "WEBP", {}),
        (colours, "WEBP", {"lossless": True, "exif": turned}),
        (colours, "BMP", {}),
        (colours, "TIFF", {"compression": "tiff_lzw"}),
        (colours.quantize(8), "GIF", {}),
        (colours, "PPM", {}),
        (ids, "PNG", {}),
        (ids.quantize(4), "PNG", {}),
        (ids.convert("1"), "PNG", {}),
        (Image.fromarray(np.asarray(ids).astype(np.uint16)), "PNG", {}),
    ):
        stream = io.BytesIO()
        image.save(stream, kind, **options)
        found.append(stream.getvalue())
    return found


def snapshot_file(folder: Path) -> bytes:
    snapshot = Snapshot(
        step=0,
        iteration=7,
        trainer={"model": {"w": torch.randn(3)}, "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}}},
        statistics=None,
        progress={"terms": {}, "in_epoch": 1, "skipped_in_epoch": 0, "skipped": 0},
        random={"cpu": torch.get_rng_state()},
        seconds=1.5,
        settings={"seed": 1},
        classes=list(CLASSES),
        task_steps=[[0, 1, 2], [3], [4]],
        data_fingerprint="x",
        made_with={},
    )
    run = RunFolder(folder / "snapshots")
    run.create()
    return write_snapshot(run, snapshot, 1).read_bytes()


def results() -> dict[str, Any]:
    """A `results.json` of three steps."""
    names = list(CLASSES)
    steps = [
        {
            "step": step,
            "images": 20,
            "iou": dict.fromkeys(names[: step + 3], 50.0) | {"bird": None},
            "miou": {"all": 50.0, "old": 48.0, "new": None if step == 0 else 12.5, "foreground": 44.0},
            "pixel_accuracy": 80.0,
        }
        for step in range(3)
    ]
    head = {"dataset": "toy", "task": "2-1", "protocol": "overlapped", "method": "plop", "seed": 1, "split": "test"}
    return head | {"classes": names, "base_classes": 3, "domains": None, "steps": steps, "avg": 50.0}


def domain_results() -> dict[str, Any]:
    changed = results()
    changed["domains"] = [["a"], ["b"], ["c"]]
    for step in changed["steps"]:
        step["domains"] = {name: {"miou": 50.0, "iou": {}} for name in "abc"[: step["step"] + 1]}
        step["miou"] |= {"old": None, "new": None}
    return changed


def row(step: int, iteration: int) -> dict[str, Any]:
    return {"step": step, "iteration": iteration, "loss": 1.5, "lr": 0.01, "terms": {"ce": 1.5}, "diagnostics": {}}


def archives() -> list[bytes]:
    files = {"set/a.png": bytes(300), "set/b.txt": b"x" * 50, "c": b""}
    found = []
    for mode in ("w:", "w:gz", "w:xz", "w:bz2"):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode=mode) as tar:  # type: ignore[call-overload]
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        found.append(stream.getvalue())
    for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", kind) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        found.append(stream.getvalue())
    return found


def array_file(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def torch_files(state: dict[str, torch.Tensor]) -> list[bytes]:
    found = []
    for content in (state, {"state_dict": state}):
        for modern in (True, False):
            stream = io.BytesIO()
            torch.save(content, stream, _use_new_zipfile_serialization=modern)
            found.append(stream.getvalue())
    return found
