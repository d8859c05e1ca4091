"""The Python API: opening models, and what they say about pictures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from original_files import write_original
from PIL import Image
from trained_files import write_checkpoint

import plopcli
from plopcli.errors import DataError, MachineError, UsageError
from plopcli.evaluation.predict import class_map, predict, scaled
from plopcli.exporting.export import ExportOptions, export
from plopcli.models.classifiers import PLAIN
from plopcli.runs.checkpoint import load_checkpoint
from plopcli.runs.learned import learned_colours
from plopcli.runs.restore import build_model, load


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    for step in (0, 1):
        write_checkpoint(folder / "checkpoints" / f"step-{step}.pt", step)
    return folder


@pytest.fixture(scope="module")
def model(run) -> plopcli.SegmentationModel:
    return plopcli.load(run, device="cpu")


def picture(height: int = 50, width: int = 80, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (
        rng.integers(0, 256, (-(-height // 10), -(-width // 10), 3), np.uint8)
        .repeat(10, 0)
        .repeat(10, 1)[:height, :width]
    )


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, plopcli; dir(plopcli); assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert {"load", "Prediction", "SegmentationModel"} <= set(dir(plopcli))
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        _ = plopcli.laod


def test_it_knows_what_it_has_learned(run, model):
    assert (len(model.classes), model.classes[0]) == (17, "background")
    assert model.palette.shape == (17, 3)
    assert np.array_equal(model.palette, learned_colours(load_checkpoint(model.source))[:17])
    assert model.source == run / "checkpoints" / "step-1.pt"
    assert (model.info["dataset"], model.info["step"], model.info["shorter_side"]) == ("toy", 1, 64)
    assert "toy 15-1 after step 1, 17 classes" in repr(model)
    assert len(plopcli.load(run, step=0).classes) == 16
    assert len(plopcli.load(str(run / "checkpoints" / "step-0.pt")).classes) == 16


def test_a_picture_is_a_file_an_image_or_an_array(model, tmp_path):
    pixels = picture()
    image = Image.fromarray(pixels)
    image.save(tmp_path / "a.png")
    first, *others = (model.predict(form) for form in (pixels, image, tmp_path / "a.png", str(tmp_path / "a.png")))
    assert first.labels.shape == (50, 80)
    assert first.labels.dtype == np.uint8
    assert len(np.unique(first.labels)) > 1
    for other in others:
        assert np.array_equal(other.labels, first.labels)
    checkpoint, settings = load(model.source)
    from plopcli.devices.precision import Precision

    cpu = torch.device("cpu")
    expected = predict(build_model(checkpoint, settings), image, 64, cpu, Precision("float32", cpu))
    assert np.array_equal(first.labels, expected)
    grey = model.predict(pixels[..., 0])
    assert np.array_equal(grey.labels, model.predict(Image.fromarray(pixels[..., 0])).labels)


@pytest.mark.parametrize("array", [np.zeros((4, 4, 3)), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)])
def test_other_arrays_are_refused(model, array):
    with pytest.raises(UsageError, match="is no picture"):
        model.predict(array)


def test_areas_mask_and_overlay(model):
    pixels = picture()
    seen = model.predict(pixels)
    assert sum(seen.areas.values()) == pytest.approx(1)
    assert list(seen.areas.values()) == sorted(seen.areas.values(), reverse=True)
    for name, share in seen.areas.items():
        assert share == (seen.labels == model.classes.index(name)).mean()
    mask = seen.mask()
    assert mask.mode == "P"
    assert np.array_equal(np.asarray(mask), seen.labels)
    assert np.array_equal(np.asarray(mask.convert("RGB")), model.palette[seen.labels])
    assert np.array_equal(seen.image, pixels)
    half, none = np.asarray(seen.overlay()), np.asarray(seen.overlay(opacity=0))
    assert half.shape == pixels.shape
    assert not np.array_equal(half, none)


def test_many_pictures_in_batches_equal_single_ones(run, monkeypatch):
    model = plopcli.load(run, device="cpu")
    sizes: list[int] = []
    forward = model._forward
    monkeypatch.setattr(model, "_forward", lambda pixels: (sizes.append(len(pixels)), forward(pixels))[1])
    pictures = [picture(seed=seed) for seed in range(4)] + [picture(60, 40, seed=5), picture(60, 40, seed=6)]
    many = list(model.predict_many(iter(pictures), batch=3))
    assert sizes == [3, 1, 2]
    for pixels, seen in zip(pictures, many, strict=True):
        assert np.array_equal(seen.image, pixels)
        assert (seen.labels == model.predict(pixels).labels).mean() > 0.999
    with pytest.raises(UsageError, match="batch of 0"):
        next(model.predict_many(pictures, batch=0))


def test_photographs_are_turned_as_the_camera_says(model, tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(picture(40, 60)).save(tmp_path / "turned.png", exif=exif)
    seen = model.predict(tmp_path / "turned.png")
    assert seen.labels.shape == (60, 40)
    assert np.array_equal(seen.image, np.rot90(picture(40, 60), -1))


def test_checkpoints_of_the_original_need_dataset_and_task(run, tmp_path):
    ours = run / "checkpoints" / "step-1.pt"
    path = write_original(tmp_path / "theirs.pth", load_checkpoint(ours).model)
    with pytest.raises(DataError, match="original implementation"):
        plopcli.load(path)
    model = plopcli.load(path, dataset="toy", task="15-1", device="cpu")
    assert model.classes == plopcli.load(ours).classes
    assert model.info["method"] == "unknown"
    with pytest.raises(UsageError, match="which knows its data set"):
        plopcli.load(ours, dataset="toy", task="15-1")


def test_a_safetensors_export_predicts_the_same(run, model, tmp_path):
    path = export(run, tmp_path / "m.safetensors", ExportOptions(check=None)).path
    exported = plopcli.load(path, device="cpu")
    assert (exported.predict(picture()).labels == model.predict(picture()).labels).mean() > 0.97


def test_what_is_no_model_is_named(run, tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        plopcli.load(tmp_path / "none")
    with pytest.raises(DataError, match=r"holds no checkpoints/step-N\.pt"):
        plopcli.load(tmp_path)
    with pytest.raises(UsageError, match="has no step 7"):
        plopcli.load(run, step=7)
    with pytest.raises(UsageError, match="'fast' is no device"):
        plopcli.load(run, device="fast")
    if not torch.cuda.is_available():
        with pytest.raises(MachineError, match="cuda:3 is asked for"):
            plopcli.load(run, device="cuda:3")
    script = export(run, tmp_path / "m.ts", ExportOptions(check=None)).path
    with pytest.raises(UsageError, match="a program, which plop does not run"):
        plopcli.load(script)


@pytest.mark.parametrize("size", [(7, 9), (33, 47), (61, 40)])
def test_strips_of_a_large_picture_equal_the_whole(size, monkeypatch):
    logits = torch.randn(1, 5, 8, 11)
    whole = F.interpolate(logits, size=size, mode="bilinear", align_corners=False).argmax(1)[0].numpy()
    assert np.array_equal(class_map(logits, PLAIN, *size), whole)
    monkeypatch.setattr("plopcli.evaluation.predict._STRIP", 5 * size[1] * 4)
    assert (class_map(logits, PLAIN, *size) == whole).mean() > 0.999


def test_a_sliver_is_seen_in_bounds(model):
    assert scaled(Image.new("RGB", (320, 20)), 80).shape == (80, 1280, 3)
    assert scaled(Image.new("RGB", (2, 900)), 80).shape == (1280, 3, 3)
    assert scaled(Image.new("RGB", (9000, 1)), 80).shape == (1, 1280, 3)
    assert model.predict(picture(900, 2)).labels.shape == (900, 2)
