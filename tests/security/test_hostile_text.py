"""Text and figures from elsewhere, in every place where they are read, drawn, printed or opened by other programs."""

from __future__ import annotations

import csv
import io
import json
import os
import threading
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from valid_files import results, row

from plopcli.cli.app import main
from plopcli.console.log import RunLog
from plopcli.data.samples import read_lines
from plopcli.errors import DataError, PlopError, StoppedError, UsageError
from plopcli.files.lock import holder_of
from plopcli.files.plain import parse_json
from plopcli.files.spreadsheet import csv_text
from plopcli.reporting.formats import as_csv
from plopcli.resolution.layers import read_toml
from plopcli.runs.checkpoint import load_checkpoint
from plopcli.runs.confusion import Confusion, read_confusion, write_confusion
from plopcli.runs.diagnosis import read_diagnosis
from plopcli.runs.folder import RunFolder
from plopcli.runs.results import Results, write_csv
from plopcli.scenarios.tasks import resolve_task
from plopcli.visualization.confusion import confusion_picture
from plopcli.visualization.curves import plot_comparison, plot_miou, plot_training
from plopcli.visualization.layout import page

FORMULAS = ("=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", " =1", "\uff1d1")
NAMES = ["$x$ $\\frac$", "$", "a_b^c $\\sum_{", "\x1b]0;a\x07\x9b2J", "two\nlines", "\udcff", "é" * 5000]


def test_text_in_csv_is_no_formula(tmp_path: Path) -> None:
    read = list(csv.reader(io.StringIO(csv_text([[*FORMULAS, "cat", "a-b", -1.5, None]]))))
    assert read == [[*(f"'{text}" for text in FORMULAS), "cat", "a-b", "-1.5", ""]]
    held = json.loads(json.dumps(results()).replace('"cat"', json.dumps(FORMULAS[0])))
    write_csv(Results.model_validate(held), tmp_path / "results.csv")
    head = next(csv.reader(io.StringIO((tmp_path / "results.csv").read_text("utf-8"))))
    assert f"'{FORMULAS[0]}" in head
    assert not [cell for cell in head if cell.startswith(("=", "+", "-", "@"))]
    assert as_csv([]).startswith("dataset,")


def test_names_are_drawn_as_they_are(tmp_path: Path) -> None:
    size = len(NAMES)
    assert confusion_picture(np.eye(size, dtype=np.int64), NAMES).shape[2] == 3
    held = results() | {"classes": NAMES, "dataset": NAMES[0]}
    for step in held["steps"]:
        step["iou"] = dict.fromkeys(NAMES[: step["step"] + 3], 50.0)
    measured = Results.model_validate(held)
    plot_miou(measured, tmp_path / "miou.png")
    plot_comparison([(name, measured) for name in NAMES], tmp_path / "comparison.png")
    plot_training([row(0, 0) | {"terms": dict.fromkeys(NAMES, 1.0)}], tmp_path / "training.png")
    for name in ("miou", "comparison", "training"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert max(picture.size) < 4000

    swatch = Image.new("RGB", (16, 16))
    drawn = page(Image.new("RGB", (50, 50)), [[(swatch, name) for name in NAMES]], NAMES[0])
    assert max(drawn.size) < 4000


@pytest.mark.parametrize("error", [ValueError("$x"), MemoryError(), DataError("a.png is broken."), RecursionError()])
def test_a_picture_never_ends_a_run(tmp_path: Path, error: Exception) -> None:
    log = RunLog(Console(file=io.StringIO()), tmp_path / "log.txt")
    with log.pictures("Curves"):
        raise error
    assert "Curves could not be drawn: " in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize("error", [StoppedError(15, "Stopped."), KeyboardInterrupt(), OSError(28, "No space left")])
def test_what_is_no_fault_of_a_picture_does(error: BaseException) -> None:
    with pytest.raises(type(error)), RunLog(Console(file=io.StringIO())).pictures("Curves"):
        raise error


READERS: dict[str, Callable[[Path], Any]] = {
    "settings": read_toml,
    "task": lambda path: resolve_task(str(path), ("background", "cat"), "toy", background=True),
    "list": read_lines,
    "results": lambda path: RunFolder(path.parent).read_results(),
    "metrics": lambda path: RunFolder(path.parent).read_metrics(),
    "environment": lambda path: RunFolder(path.parent).read_environment(),
    "diagnosis": read_diagnosis,
    "confusion": read_confusion,
    "checkpoint": load_checkpoint,
    "lock": holder_of,
    "log": lambda path: RunFolder(path.parent).refuse_links(),
}
PLACES = {"results": "results.json", "metrics": "metrics.jsonl", "environment": "environment.json", "log": "log.txt"}
PASSED_OVER = ("task", "lock")


@pytest.mark.parametrize("name", READERS)
def test_nobody_waits_for_a_named_pipe(tmp_path: Path, name: str) -> None:
    path = tmp_path / PLACES.get(name, "a.toml")
    os.mkfifo(path)
    said: list[BaseException | None] = []

    def read() -> None:
        try:
            READERS[name](path)
        except PlopError as error:
            said.append(error)
        else:
            said.append(None)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    (error,) = said
    assert name in PASSED_OVER or isinstance(error, PlopError)


def test_settings_through_the_pipe_of_a_shell_are_read(capfd: pytest.CaptureFixture[str]) -> None:
    ours, theirs = os.pipe()
    os.write(theirs, b"[train]\nbatch = 5\n")
    os.close(theirs)
    assert main(["run-scenario", "--config", f"/dev/fd/{ours}", "--print-config"]) == 0
    os.close(ours)
    assert "batch = 5" in capfd.readouterr().out


def test_endless_and_large_texts(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a file"):
        read_toml(Path("/dev/zero"))
    (tmp_path / "a.toml").write_bytes(b"".join(b"k%d = 1\n" % number for number in range(200_000)))
    with pytest.raises(UsageError, match="larger than any such file"):
        read_toml(tmp_path / "a.toml")


def bounded(work: Callable[[], object]) -> None:
    """Python's own memory, which these readers use, and processor time."""
    tracemalloc.start()
    start = time.process_time()
    try:
        with pytest.raises((PlopError, ValueError)):
            work()
        assert tracemalloc.get_traced_memory()[1] < 256 << 20
    finally:
        tracemalloc.stop()
    assert time.process_time() - start < 10


@pytest.mark.parametrize("text", [b"[" * 5_000_000, b"[" + b"[]," * 3_000_000 + b"[]]", b'{"a":' * 100_000])
def test_json_that_grows(tmp_path: Path, text: bytes) -> None:
    bounded(lambda: parse_json(text))
    (tmp_path / "results.json").write_bytes(text)
    bounded(lambda: RunFolder(tmp_path).read_results())
    (tmp_path / "diagnosis.json").write_bytes(text)
    bounded(lambda: read_diagnosis(tmp_path / "diagnosis.json"))


def test_a_matrix_that_inflates_or_names_without_end(tmp_path: Path) -> None:
    path = tmp_path / "step-0.npz"
    write_confusion(path, Confusion(["a", "b"], np.eye(2, dtype=np.int64)))
    assert read_confusion(path).classes == ["a", "b"]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("counts.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, {"descr": "<i8", "fortran_order": False, "shape": (5000, 5000)})
        for _ in range(200):
            member.write(bytes(10**6))
    bounded(lambda: read_confusion(path))
    np.savez_compressed(path, counts=np.eye(2, dtype=np.int64), classes=np.zeros(10_000_000, dtype="<U1"))
    bounded(lambda: read_confusion(path))
