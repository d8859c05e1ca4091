"""The audit against a recomputation pixel by pixel, on real runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from running import run_scenario

from plopcli.console.log import RunLog
from plopcli.errors import DamagedFileError, UsageError
from plopcli.evaluation import pseudo_label_audit
from plopcli.evaluation.evaluate import Changes, scenario_of
from plopcli.evaluation.pseudo_label_audit import LongAuditError, audit_run
from plopcli.files.digest import digest_path
from plopcli.losses.pseudo_labels import exact_entropy
from plopcli.reporting.gallery import make_gallery
from plopcli.resolution.layers import Resolved
from plopcli.runs.diagnosis import read_diagnosis
from plopcli.runs.folder import RunFolder
from plopcli.runs.learned import learned_colours
from plopcli.runs.restore import build_model, load

Make = Callable[..., Resolved]


@pytest.fixture
def folder(tiny: Make, tmp_path: Path, quiet: Console) -> RunFolder:
    """A run of PLOP over three steps."""
    run_scenario(tiny(method__name="plop", method__estimator="exact"), console=quiet)
    return RunFolder(tmp_path / "run")


def test_an_audit_counts_what_a_plain_recomputation_counts(folder: RunFolder, quiet: Console, tmp_path: Path) -> None:
    found = audit_run(folder, Changes(), RunLog(quiet))
    assert [audit.step for audit in found.steps] == [1, 2]
    expected = _plain(folder, 2)
    audit = found.steps[1]
    assert list(audit.classes) == list(expected)
    hidden = np.array([list(each.model_dump().values()) for each in audit.classes.values()])
    plain = np.array(list(expected.values()))
    assert (hidden[:, 0] == plain[:, 0]).all()
    # A batch and single images differ in the last bits: a pixel on the threshold may fall on either side.
    assert np.abs(hidden - plain).max() <= 5
    assert hidden[:, 1].sum() > 100
    assert (audit.rule, audit.used, audit.base) == ("entropy", True, 19)
    assert audit.accepted == hidden[:, 1].sum() / hidden[:, 0].sum()
    assert audit.right == hidden[:, 2].sum() / hidden[:, 1].sum()
    assert audit.old_recovered == hidden[1:, 2].sum() / hidden[1:, 0].sum()
    young = hidden[19:]
    assert audit.young_recovered == (young[:, 2].sum() / young[:, 0].sum() if young[:, 0].sum() else None)
    assert found.steps[0].young_recovered is None
    assert audit.background_accepted == hidden[0, 1] / hidden[0, 0]
    told = json.loads(folder.diagnosis.read_text())
    assert told["steps"][1]["accepted"] == audit.accepted, "for programs that read the file"

    _it_is_kept(folder, quiet)
    _its_gallery_is_what_the_models_predict(folder)
    _it_is_told_when_it_takes_long(folder, quiet)


def _it_is_kept(folder: RunFolder, quiet: Console) -> None:
    """Nothing is computed twice, and what depends on a changed checkpoint is."""
    before = read_diagnosis(folder.diagnosis)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pseudo_label_audit, "build_model", None)
        assert audit_run(folder, Changes(), RunLog(quiet)) == before
        shutil.copy(folder.checkpoint(1), folder.checkpoint(2))
        shutil.copy(digest_path(folder.checkpoint(1)), digest_path(folder.checkpoint(2)))
        with pytest.raises(TypeError):
            audit_run(folder, Changes(), RunLog(quiet))
    folder.checkpoint(2).unlink()
    assert audit_run(folder, Changes(), RunLog(quiet)).steps == before.steps[:1]


def _its_gallery_is_what_the_models_predict(folder: RunFolder) -> None:
    gallery = make_gallery(folder, Changes(), 3)
    assert gallery.steps == (0, 1)
    assert [row.name for row in make_gallery(folder, Changes(), 3).rows] == [row.name for row in gallery.rows]
    checkpoint, settings = load(folder.checkpoint(1))
    scenario = scenario_of(checkpoint, settings)
    samples = {sample.name: sample for sample in scenario.data.splits["test"]}
    colours = learned_colours(checkpoint)
    shown = set()
    for row in gallery.rows:
        ids = np.asarray(Image.open(samples[row.name].mask))
        truth = scenario.evaluation(1, "test").table[ids]
        assert (row.truth[truth != 255] == colours[truth[truth != 255]]).all()
        assert {picture.shape for picture in row.predictions} == {row.image.shape}
        shown |= set(np.unique(truth).tolist())
    assert 19 in shown, "the class of the later step is among what is shown"
    assert shown & set(range(1, 19))


def _it_is_told_when_it_takes_long(folder: RunFolder, quiet: Console) -> None:
    folder.diagnosis.unlink()
    with pytest.raises(LongAuditError, match=r"about .* minutes"):
        audit_run(folder, Changes(batch=1), RunLog(quiet), patience=0.0)
    folder.diagnosis.write_text("{}x")
    with pytest.raises(DamagedFileError, match=r"diagnosis\.json"):
        audit_run(folder, Changes(), RunLog(quiet))


def test_methods_without_pseudo_labels_are_audited_by_what_the_old_model_says(
    tiny: Make, tmp_path: Path, quiet: Console
) -> None:
    run_scenario(tiny(method__name="mib", scenario__task="19-1"), console=quiet)
    (audit,) = audit_run(RunFolder(tmp_path / "run"), Changes(), RunLog(quiet)).steps
    assert (audit.rule, audit.used, audit.accepted) == ("argmax", False, 1.0)
    (tmp_path / "run" / "checkpoints" / "step-0.pt").unlink()
    with pytest.raises(UsageError, match="follow each other"):
        audit_run(RunFolder(tmp_path / "run"), Changes(), RunLog(quiet))


def _plain(folder: RunFolder, step: int) -> dict[str, tuple[int, ...]]:
    """Hidden, accepted, right and background pixels by true class; the exact rule written out once more."""
    old, settings = load(folder.checkpoint(step - 1))
    new, _ = load(folder.checkpoint(step))
    model = build_model(old, settings)
    scenario = scenario_of(new, settings)
    order, known, seen = list(scenario.task.order), len(old.classes), len(new.classes)
    thresholds: Any = new.method["thresholds"]
    counts = np.zeros((4, seen), dtype=np.int64)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    for sample in scenario.training(step).samples:
        image = Image.open(sample.image).convert("RGB").resize((48, 48), Image.Resampling.BILINEAR)
        ids = np.asarray(Image.open(sample.mask).resize((48, 48), Image.Resampling.NEAREST))
        truth = np.array([[order.index(each) if each in order[:seen] else 0 for each in row] for row in ids])
        hidden = (truth < known) & (ids != 255)
        pixels = (torch.from_numpy(np.asarray(image).copy()) / 255 - mean) / deviation
        with torch.no_grad():
            probabilities = model(pixels.permute(2, 0, 1)[None]).logits.softmax(1)
        predicted = probabilities.argmax(1)[0]
        accepted = (exact_entropy(probabilities)[0] < thresholds[predicted]).numpy() & hidden
        guess = predicted.numpy()
        for row, mask in enumerate((hidden, accepted, accepted & (guess == truth), accepted & (guess == 0))):
            counts[row] += np.bincount(truth[mask], minlength=seen)
    return {name: tuple(column) for name, column in zip(new.classes, counts.T.tolist(), strict=True)}
