"""`plop visualize` at the command line, on networks that have learned nothing: their pictures look like any others."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from plopcli.cli.app import main
from plopcli.data.toy import TOY_CLASSES
from plopcli.models.segmenter import build_segmenter
from plopcli.resolution.layers import resolve_settings
from plopcli.runs.checkpoint import Checkpoint, save_checkpoint
from plopcli.runs.folder import RunFolder
from plopcli.scenarios.scenario import Scenario
from plopcli.visualization.drawing import Wanted
from plopcli.visualization.error_map import ERROR_PALETTE
from plopcli.visualization.predictions import Drawn
from tests.conftest import TINY

Answer = Callable[..., list[Path]]
STEPS = 3  # of 18-1


def make_run(folder: Path, root: Path, method: str, task: str = "18-1", steps: int = STEPS) -> Path:
    """A run folder with a checkpoint per step, of random networks."""
    keys = TINY | {"data.dataset": "toy", "data.root": root, "scenario.task": task, "method.name": method}
    keys |= {"run": folder, "compute.gpus": 0}
    settings = resolve_settings({}, assignments=[f"{key}={value}" for key, value in keys.items()], environment={})
    scenario = Scenario.from_settings(settings.settings)
    run = RunFolder(folder)
    run.checkpoint(0).parent.mkdir(parents=True)
    torch.manual_seed(len(method))
    for step in range(steps):
        counts = scenario.class_counts(step)
        network = build_segmenter(settings.settings.model, counts)
        groups = [list(group) for group in scenario.task.groups]
        checkpoint = Checkpoint(
            step=step,
            classes=scenario.class_names[: sum(counts)],
            class_counts=list(counts),
            task_name=task,
            task_steps=[list(learned) for learned in scenario.task.steps],
            task_groups=groups,
            settings=settings.settings.model_dump(mode="json"),
            model=network.state_dict(),
        )
        save_checkpoint(run.checkpoint(step), checkpoint)
    return folder


@pytest.fixture(scope="module")
def plop(toy_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "plop", toy_root, "plop")


@pytest.fixture(scope="module")
def ft(toy_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "ft", toy_root, "ft")


@pytest.fixture
def draw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Answer:
    """Runs the command, and gives the files that it has written."""

    def run(*words: object, code: int = 0) -> list[Path]:
        arguments = ["visualize", *map(str, words)]
        if "--output" not in arguments:
            arguments += ["--output", str(tmp_path / "out")]
        assert main(arguments) == code, capsys.readouterr().err
        printed = capsys.readouterr()
        run.said = printed.err  # type: ignore[attr-defined]
        return [Path(line) for line in printed.out.splitlines()]

    return run


def refused(capsys: pytest.CaptureFixture[str], code: int, *words: object) -> str:
    assert main(["visualize", *map(str, words)]) == code
    return capsys.readouterr().err


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def shows(path: Path, colour: np.ndarray) -> bool:
    return bool((pixels(path) == colour).all(axis=2).any())


def test_options_become_what_is_wanted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[tuple[list[Path], Wanted]] = []

    def visualize_paths(paths: list[Path], wanted: Wanted, *_: object) -> Drawn:
        asked.append((paths, wanted))
        return Drawn(files=[Path("o/a.png"), Path("o/b.png")])

    monkeypatch.setattr("plopcli.visualization.drawing.visualize_paths", visualize_paths)
    assert main(["visualize", "runs/a", "runs/b", "--input", "x.jpg", "--input", "y/", "--output", "o"]) == 0
    assert capsys.readouterr().out == "o/a.png\no/b.png\n"
    plain = Wanted(inputs=["x.jpg", "y/"], output=Path("o"))
    assert asked.pop() == ([Path("runs/a"), Path("runs/b")], plain)
    words = ["--steps", "--gif", "--errors", "--opacity", "0.3", "--no-contours", "--no-legend", "--palette", "voc"]
    assert main(["visualize", "r", *words, "--count", "3"]) == 0
    _, wanted = asked.pop()
    style = replace(plain.style, errors=True, opacity=0.3, contours=False, legend=False)
    assert wanted == Wanted(count=3, sheets=True, gif=True, palette="voc", style=style)


def test_overlays_of_a_run_go_to_its_folder(plop: Path, draw: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["visualize", str(plop), "--count", "2", "--json"]) == 0
    answered = json.loads(capsys.readouterr().out)
    files = [Path(file) for file in answered["files"]]
    assert answered["failed"] == []
    assert len(files) == 2
    assert {file.parent for file in files} == {plop / "overlays"}
    with_errors = draw(plop, "--count", 1, "--errors", "--step", 1)
    assert pixels(with_errors[0]).shape[1] == pixels(files[0]).shape[1] + 256 + 10
    assert any(shows(with_errors[0], colour) for colour in ERROR_PALETTE)
    assert pixels(draw(plop, "--count", 1, "--no-legend")[0]).shape[0] < pixels(files[0]).shape[0]


def test_options_of_drawing_change_the_pictures(plop: Path, draw: Answer, tmp_path: Path) -> None:
    own = tmp_path / "colours.txt"
    own.write_text("".join(f"{label} {label} 250 {name}\n" for label, name in enumerate(TOY_CLASSES)))
    drawn = {}
    for words in ([], ["--opacity", "1"], ["--no-contours"], ["--palette", str(own)], ["--palette", "distinct"]):
        (file,) = draw(plop, "--count", 1, *words)
        drawn[tuple(words)] = file.read_bytes()
    assert drawn[()] == drawn["--palette", "distinct"], "the generated set has no colours of its own"
    assert len(set(drawn.values())) == len(drawn) - 1


def test_models_are_compared_on_one_sheet(plop: Path, ft: Path, draw: Answer, tmp_path: Path) -> None:
    (sheet,) = draw(plop, ft, "--count", 2)
    assert sheet == tmp_path / "out" / "comparison.png"
    (three,) = draw(plop, ft, plop, "--count", 2)
    (errors,) = draw(plop, ft, "--count", 2, "--errors", "--output", tmp_path / "errors")
    assert pixels(three).shape[1] == pixels(errors).shape[1] - 256 - 10


def test_a_comparison_of_many_images_goes_on_on_another_sheet(
    plop: Path, ft: Path, draw: Answer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plopcli.visualization.drawing._ROWS", 2)
    files = draw(plop, ft, "--count", 3)
    assert [file.name for file in files] == ["comparison-1.png", "comparison-2.png"]
    assert pixels(files[0]).shape[0] > pixels(files[1]).shape[0]


def test_runs_over_their_steps(plop: Path, ft: Path, draw: Answer, tmp_path: Path) -> None:
    files = draw(plop, ft, "--steps", "--gif", "--count", 2)
    names = [file.name for file in files]
    assert len(names) == 4
    assert all(name.endswith(("-steps.png", ".gif")) for name in names)
    with Image.open(files[1]) as gif:
        assert (gif.format, gif.n_frames, gif.info["loop"]) == ("GIF", STEPS, 0)
    assert files[1].stat().st_size < 2_000_000
    (alone,) = draw(plop, "--steps", "--count", 1, "--output", tmp_path / "alone")
    assert pixels(files[0]).shape[0] > pixels(alone).shape[0] + 256, "a line per run"


def test_steps_that_not_all_runs_have_are_left_out(plop: Path, toy_root: Path, draw: Answer, tmp_path: Path) -> None:
    shorter = make_run(tmp_path / "shorter", toy_root, "mib", steps=2)
    (gif,) = draw(plop, shorter, "--gif", "--count", 1)
    assert "steps that all runs have: 0, 1" in draw.said  # type: ignore[attr-defined]
    with Image.open(gif) as opened:
        assert opened.n_frames == 2


def test_what_does_not_go_together_is_refused(
    plop: Path, toy_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = plop / "checkpoints" / "step-1.pt"
    assert "need all steps of a run" in refused(capsys, 2, checkpoint, "--steps")
    assert "Leave --step away" in refused(capsys, 2, plop, "--gif", "--step", 1)
    assert "Leave --dataset" in refused(capsys, 2, plop, "--gif", "--dataset", "toy", "--task", "18-1")
    assert "--errors needs ground truth" in refused(capsys, 2, plop, "--errors", "--input", "x.jpg")
    assert "opacity" in refused(capsys, 2, plop, "--opacity", 1.5)
    assert "There is no palette neon" in refused(capsys, 3, plop, "--palette", "neon", "--count", 1)
    other = make_run(tmp_path / "other", toy_root, "ft", task="15-5", steps=2)
    assert "learned other classes" in refused(capsys, 2, plop, other, "--steps", "--output", tmp_path / "o")
    assert "names no picture" in refused(capsys, 3, plop, "--input", tmp_path / "none.jpg")
    photo = tmp_path / "photo.png"
    Image.new("RGB", (40, 40), (200, 0, 0)).save(photo)
    assert "would take its place" in refused(capsys, 2, plop, "--input", photo, "--output", tmp_path)
    assert set(np.unique(pixels(photo).reshape(-1, 3), axis=0)[0]) == {200, 0}, "it is as it was"


def test_pictures_of_all_kinds_come_out_right_and_broken_ones_are_named(
    plop: Path, draw: Answer, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    for folder in ("a", "b"):
        (own / folder).mkdir(parents=True)
        Image.new("RGB", (60, 50), (200, 30, 30)).save(own / folder / "cat.png")
    ramp = np.tile(np.linspace(0, 255, 48, dtype=np.uint8), (40, 1))
    Image.fromarray(ramp).save(own / "grey.png")
    Image.fromarray(ramp.astype(np.uint16) * 257).save(own / "sixteen.png")
    Image.new("RGBA", (48, 40), (255, 0, 0, 0)).save(own / "clear.png")
    Image.new("CMYK", (48, 40), (0, 255, 255, 0)).save(own / "cmyk.jpg")
    Image.new("RGB", (16, 16), (10, 10, 10)).save(own / "tiny.png")
    Image.new("RGB", (20, 90), (250, 250, 250)).save(own / "portrait.png")
    Image.new("RGB", (1600, 1200), (90, 120, 90)).save(own / "big.jpg")
    turned = Image.Exif()
    turned[274] = 6
    Image.new("RGB", (40, 80), (0, 0, 200)).save(own / "phone.jpg", exif=turned)
    (own / "broken.jpg").write_bytes((own / "big.jpg").read_bytes()[:900])
    (own / "text.png").write_text("no picture")

    files = draw(plop, "--input", own, "--no-legend", "--opacity", 0, "--no-contours", code=3)
    said = draw.said  # type: ignore[attr-defined]
    assert "broken.jpg cannot be decoded" in said
    assert "text.png cannot be decoded" in said
    assert "2 pictures could not be drawn; the others are done." in said
    out = tmp_path / "out"
    assert {str(file.relative_to(out)) for file in files} == {
        *("a/cat.png", "b/cat.png", "grey.png", "sixteen.png", "clear.png", "cmyk.png", "tiny.png", "portrait.png"),
        *("big.png", "phone.png"),
    }

    def photo(name: str, height: int, width: int) -> np.ndarray:
        """The photograph of a drawing, without its edge: below title and caption, at the left."""
        drawing = pixels(out / f"{name}.png")
        return drawing[-14 - height + 1 : -15, 15 : 14 + width - 1]

    np.testing.assert_array_equal(photo("sixteen", 240, 288), photo("grey", 240, 288))
    assert photo("grey", 240, 288)[:, 0].max() < 10 < 245 < photo("grey", 240, 288)[:, -1].min()
    assert photo("clear", 240, 288).min() == 255, "what is transparent is as white as paper"
    assert np.abs(photo("cmyk", 240, 288).astype(int) - (254, 0, 0)).max() < 6
    assert pixels(out / "tiny.png").shape[1] == 3 * 256 + 2 * 10 + 2 * 14
    assert pixels(out / "big.png").shape[1] == 3 * 512 + 2 * 10 + 2 * 14, "no larger than can be looked at"
    assert pixels(out / "phone.png").shape[1] == 3 * 320 + 2 * 10 + 2 * 14, "as it is to be shown: lying"


def test_when_no_picture_is_left_there_is_no_sheet(plop: Path, ft: Path, draw: Answer, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_text("no picture")
    for words in ([plop, ft], [plop, "--steps", "--gif"]):
        assert draw(*words, "--input", tmp_path / "broken.jpg", code=3) == []
        assert "1 picture could not be drawn" in draw.said  # type: ignore[attr-defined]
