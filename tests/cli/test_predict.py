"""`plop predict`: files in, masks and areas out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from trained_files import write_checkpoint

import plopcli
from plopcli.cli.app import main
from plopcli.data.pictures import output_names


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("run") / "step-1.pt")


def draw(path: Path, seed: int = 0, size: tuple[int, int] = (40, 56)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (size[0] // 8, size[1] // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    Image.fromarray(pixels).save(path)
    return path


def test_masks_areas_and_overlays(model, tmp_path, capsys):
    draw(tmp_path / "in" / "a.jpg")
    draw(tmp_path / "in" / "deep" / "b.png", 1, (64, 24))
    draw(tmp_path / "in" / ".hidden" / "c.png")
    out = tmp_path / "out"
    assert main(["predict", str(model), str(tmp_path / "in"), "--output", str(out), "--overlays", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == json.loads((out / "areas.json").read_text("utf-8"))
    assert {str(path.relative_to(out)) for path in out.rglob("*.*")} == {
        "a.png",
        "a.overlay.png",
        "deep/b.png",
        "deep/b.overlay.png",
        "areas.json",
    }
    opened = plopcli.load(model, device="cpu")
    assert [entry["name"] for entry in shown["classes"]] == list(opened.classes)
    assert shown["classes"][3]["colour"] == opened.palette[3].tolist()
    assert shown["model"]["task"] == "15-1"
    assert shown["failed"] == []
    first, second = shown["pictures"]
    assert (first["picture"], first["mask"]) == (str(tmp_path / "in" / "a.jpg"), str(out / "a.png"))
    assert (second["width"], second["height"]) == (24, 64)
    seen = opened.predict(tmp_path / "in" / "a.jpg")
    with Image.open(out / "a.png") as mask:
        assert np.array_equal(np.asarray(mask), seen.labels)
        assert mask.getpalette()[: 3 * 17] == opened.palette.ravel().tolist()
    with Image.open(out / "a.overlay.png") as overlay:
        assert np.array_equal(np.asarray(overlay), np.asarray(seen.overlay()))
    assert first["areas"] == dict(seen.areas)


def test_broken_pictures_are_named_and_the_others_done(model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "in" / "a.png")
    draw(tmp_path / "in" / "z.png")
    (tmp_path / "in" / "empty.jpg").touch()
    (tmp_path / "in" / "text.png").write_text("no picture")
    assert main(["predict", str(model), "in"]) == 3
    shown = capsys.readouterr()
    assert shown.out.split() == ["predictions/a.png", "predictions/z.png"]
    assert "skipped: Image in/empty.jpg is empty" in shown.err
    assert "skipped: Image in/text.png cannot be decoded" in shown.err
    assert "2 of 4 pictures could not be used; the others are done." in shown.err
    stored = json.loads(Path("predictions/areas.json").read_text("utf-8"))
    assert [entry["picture"] for entry in stored["failed"]] == ["in/empty.jpg", "in/text.png"]
    assert len(stored["pictures"]) == 2


def test_globs_files_and_doubles(model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("x/a.png", "y/a.png", "y/b.png"):
        draw(tmp_path / name)
    assert main(["predict", str(model), "*/a.png", "x/a.png", "--output", "out"]) == 0
    assert capsys.readouterr().out.split() == ["out/x/a.png", "out/y/a.png"]
    assert main(["predict", str(model), "none*.png"]) == 3
    assert "none*.png names no picture" in capsys.readouterr().err


def test_no_mask_takes_the_place_of_a_picture(model, tmp_path, capsys):
    source = draw(tmp_path / "a.png")
    before = source.read_bytes()
    assert main(["predict", str(model), str(source), "--output", str(tmp_path)]) == 2
    assert "is one of the pictures" in capsys.readouterr().err
    assert source.read_bytes() == before


def test_names_never_meet():
    paths = [
        Path(text)
        for text in (
            "p/a.jpg",
            "p/a.png",
            "p/A.webp",
            "p/a.jpg.png",
            "p/b.jpg",
            "p/b.overlay.jpg",
            "p/q/b.jpg",
            "p/c.d.jpg",
        )
    ]
    names = output_names(paths)
    written = [f"{name}{suffix}".lower() for name in names.values() for suffix in (".png", ".overlay.png")]
    assert len(set(written)) == len(written)
    backwards = output_names(paths[::-1])
    written = [f"{name}{suffix}".lower() for name in backwards.values() for suffix in (".png", ".overlay.png")]
    assert len(set(written)) == len(written)
    assert (names[paths[4]], names[paths[6]], names[paths[7]]) == (Path("b"), Path("q/b"), Path("c.d"))
    assert names[paths[0]] == Path("a.jpg")
    assert output_names([Path("p/a.jpg")]) == {Path("p/a.jpg"): Path("a")}


def test_device_and_step_are_handed_on(model, capsys, tmp_path):
    picture = str(draw(tmp_path / "in" / "a.png"))
    assert main(["predict", str(model), picture, "--device", "fast"]) == 2
    assert "'fast' is no device" in capsys.readouterr().err
    assert main(["predict", str(model), picture, "--step", "1"]) == 2
    assert "is a checkpoint" in capsys.readouterr().err
    assert main(["predict", str(model), picture, "--dataset", "toy", "--task", "15-1"]) == 2
    assert "which knows its data set" in capsys.readouterr().err
