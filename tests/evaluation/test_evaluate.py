"""`plop evaluate`: other splits, whole images, test-time augmentation, and what it writes."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from running import run_everywhere, run_scenario

from plopcli.cli.app import main
from plopcli.data.datasets import load_dataset
from plopcli.data.palettes import voc_palette
from plopcli.data.reading import mask_ids, read_image, read_mask
from plopcli.errors import UsageError
from plopcli.evaluation import evaluate
from plopcli.evaluation.augmentation import Augmentation
from plopcli.evaluation.evaluate import Changes, Files
from plopcli.resolution.layers import Resolved
from plopcli.runs.checkpoint import load_checkpoint
from plopcli.runs.confusion import read_confusion
from plopcli.runs.results import Results

Make = Callable[..., Resolved]
#: A data root with genuine images: a folder `voc` in it holds VOCdevkit.
VOC = os.environ.get("PLOP_VOC")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluated")


@pytest.fixture
def finished(tiny: Make, folder: Path, quiet: Console) -> Path:
    """A finished run whose classes are learned in an order of its own, made once."""
    run = folder / "run"
    if not (run / "results.json").exists():
        changes = {"method__name": "ft", "scenario__order_seed": 3}
        run_scenario(tiny(run=run, **changes), console=quiet)
    return run


def measured(path: Path, console: Console, files: Files = evaluate.NO_FILES, **changes: Any) -> Results:
    changed = Changes(**changes)
    compute = evaluate.settings_of(path, changed).compute
    results: Results = run_everywhere(
        evaluate.evaluate_path,
        evaluate.check_evaluation,
        compute,
        console,
        path=path,
        changes=changed,
        files=files,
    )
    return results


def by_hand(run: Path, step: int, predictions: Path, split: str = "test") -> dict[str, Any]:
    """The figures of a step from files alone: checkpoint header, masks, and predictions that were saved."""
    checkpoint = load_checkpoint(run / "checkpoints" / f"step-{step}.pt")
    settings = checkpoint.settings["data"]
    data = load_dataset(settings["dataset"], Path(settings["root"]))
    seen = checkpoint.task.order[: len(checkpoint.classes)]
    base = checkpoint.class_counts[0]
    truths, answers = [], []
    for path in sorted(predictions.glob("*.png")):
        sample = next(sample for sample in data.splits[split] if sample.name == path.stem)
        truth = mask_ids(read_mask(sample.mask)).astype(np.int64)
        truth[~np.isin(truth, [*seen, 255])] = 0  # not learned yet: background
        predicted = np.asarray(Image.open(path)).astype(np.int64)
        assert predicted.shape == truth.shape == read_image(sample.image).size[::-1]
        truths.append(truth[truth != 255])
        answers.append(predicted[truth != 255])
    truth, answer = np.concatenate(truths), np.concatenate(answers)
    ious: list[float] = []
    for label in seen:
        right, either = (truth == label) & (answer == label), (truth == label) | (answer == label)
        ious.append(100 * right.sum() / (either.sum() + 1e-6) if (truth == label).any() else np.nan)
    groups = {"all": ious, "old": ious[:base], "new": ious[base:]}
    names = checkpoint.classes
    accuracies = [100 * ((truth == k) & (answer == k)).sum() / ((truth == k).sum() + 1e-6) for k in seen]
    return {
        "iou": dict(zip(names, ious, strict=True)),
        "accuracy": dict(zip(names, accuracies, strict=True)),
        "miou": {name: np.nanmean(values) if values else np.nan for name, values in groups.items()},
        "overall_accuracy": 100 * (truth == answer).mean(),
        "images": len(truths),
        "pixels": len(truth),
    }


def check_against_files(run: Path, results: Results, saved: Path, confusion: Path) -> None:
    for entry in results.steps:
        step = entry.step
        plain = by_hand(run, step, saved / f"step-{step}", results.split or "")
        assert plain["images"] == entry.images
        for name, value in plain["iou"].items():
            assert (entry.iou[name] is None) == np.isnan(value)
            assert np.isnan(value) or entry.iou[name] == pytest.approx(value, abs=1e-9)
            assert np.isnan(value) or (entry.accuracy or {})[name] == pytest.approx(plain["accuracy"][name], abs=1e-9)
        for group, value in plain["miou"].items():
            assert np.isnan(value) or getattr(entry.miou, group) == pytest.approx(value, abs=1e-9)
        assert entry.overall_accuracy == pytest.approx(plain["overall_accuracy"], abs=1e-9)
        matrix = read_confusion(confusion / f"step-{step}.npz")
        assert matrix.classes == list(plain["iou"])
        assert matrix.counts.sum() == plain["pixels"]


def test_figures_equal_those_of_the_files_that_were_saved(finished: Path, tmp_path: Path, quiet: Console) -> None:
    files = Files(tmp_path / "predicted", tmp_path / "confusion")
    results = measured(finished, quiet, files, evaluation="full")
    check_against_files(finished, results, tmp_path / "predicted", tmp_path / "confusion")
    picture = Image.open(next((tmp_path / "predicted" / "step-2").iterdir()))
    assert picture.mode == "P"
    assert np.array_equal(np.array(picture.getpalette()).reshape(-1, 3)[:21], voc_palette()[:21])


@pytest.mark.slow
@pytest.mark.skipif(VOC is None, reason="PLOP_VOC names no data root with genuine VOC images")
def test_genuine_pairs_of_voc(tiny: Make, tmp_path: Path, quiet: Console) -> None:
    run = tmp_path / "voc"
    changes = {"data__dataset": "voc", "data__root": VOC, "scenario__task": "19-1"}
    run_scenario(tiny(run=run, method__name="ft", **changes), console=quiet)
    files = Files(tmp_path / "predicted", tmp_path / "confusion")
    results = measured(run, quiet, files, evaluation="full")
    check_against_files(run, results, tmp_path / "predicted", tmp_path / "confusion")


def test_training_leaves_the_matrices_that_evaluate_writes(finished: Path, tmp_path: Path, quiet: Console) -> None:
    again = measured(finished, quiet, Files(confusion=tmp_path / "c"))
    for step in range(3):
        ours, theirs = (
            read_confusion(place / f"step-{step}.npz") for place in (finished / "confusion", tmp_path / "c")
        )
        assert np.array_equal(ours.counts, theirs.counts)
        assert ours.classes == theirs.classes == again.classes[: 19 + step]
    text = (finished / "results.json").read_text()
    stored = Results.model_validate(json.loads(text))
    assert {key: json.loads(text)[key] for key in stored.figures.content()} == stored.figures.content()
    assert stored.forgetting
    assert set(stored.forgetting.by_class or {}) == set(stored.classes)


def test_predictions_beside_central_crops_cover_whole_images(finished: Path, tmp_path: Path, quiet: Console) -> None:
    checkpoint = finished / "checkpoints" / "step-1.pt"
    plain = measured(checkpoint, quiet)
    assert measured(checkpoint, quiet, Files(predictions=tmp_path / "p")).steps == plain.steps
    by_hand(finished, 1, tmp_path / "p" / "step-1")  # sizes are those of the images
    assert len(list((tmp_path / "p" / "step-1").iterdir())) == plain.steps[0].images


def test_training_images_can_be_measured(finished: Path, quiet: Console) -> None:
    results = measured(finished / "checkpoints" / "step-0.pt", quiet, split="train")
    assert results.split == "train"
    assert (results.steps[0].images or 0) > 23


def test_two_processes_write_every_prediction_once(finished: Path, tmp_path: Path, quiet: Console) -> None:
    checkpoint = finished / "checkpoints" / "step-2.pt"
    looks = Augmentation((0.75, 1.0), flip=True)
    for name, processes in (("one", None), ("two", 2)):
        files = Files(tmp_path / name, tmp_path / f"{name}-confusion")
        results = measured(checkpoint, quiet, files, evaluation="full", processes=processes, augmentation=looks)
        assert results.augmentation
        assert results.augmentation.scales == [0.75, 1.0]
    one, two = (
        {path.name: path.read_bytes() for path in (tmp_path / name / "step-2").iterdir()} for name in ("one", "two")
    )
    assert one == two
    ours, theirs = (read_confusion(tmp_path / f"{name}-confusion" / "step-2.npz") for name in ("one", "two"))
    assert np.array_equal(ours.counts, theirs.counts)


def test_the_command_writes_csv_and_says_what_was_measured(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "figures.csv"
    words = ["evaluate", str(finished), "--scales", "1,1.25", "--flip", "--csv", str(table)]
    assert main([*words, "--confusion", str(tmp_path / "c")]) == 0
    shown = capsys.readouterr()
    assert "central crops of split test, mean probabilities over scales 1, 1.25 and mirror images" in " ".join(
        shown.out.split()
    )
    assert "Confusion matrices:" in shown.err
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["0", "1", "2"]
    assert rows[0]["new"] == ""
    matrix = read_confusion(tmp_path / "c" / "step-2.npz")
    hit, total = np.diag(matrix.counts), matrix.counts.sum(0) + matrix.counts.sum(1)
    for position, name in enumerate(matrix.classes):
        if matrix.counts[position].sum():
            iou = 100 * hit[position] / (total[position] - hit[position] + 1e-6)
            assert float(rows[2][name]) == pytest.approx(iou, abs=1e-9)
            recall = 100 * hit[position] / (matrix.counts[position].sum() + 1e-6)
            assert float(rows[2][f"accuracy {name}"]) == pytest.approx(recall, abs=1e-9)
        else:
            assert rows[2][name] == ""


def test_what_cannot_be_written_is_refused_before_anything_is_measured(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    for words in (["--csv", str(tmp_path / "no" / "x.csv")], ["--save-predictions", str(tmp_path / "taken")]):
        assert main(["evaluate", str(finished), *words]) == 2


@pytest.mark.parametrize("text", ["", "1,", "0", "-1", "1,1", "9", "nan", "a"])
def test_scales_that_are_none(text: str) -> None:
    from plopcli.evaluation.augmentation import read_scales

    with pytest.raises(UsageError):
        read_scales(text)
