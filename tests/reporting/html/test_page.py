"""The page as a browser would read it. It is written so that an XML parser reads it too."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from written_runs import CLASSES, write_run, written_results

from plopcli.reporting.comparison import MeasuredRun, compare, read_runs, run_labels
from plopcli.reporting.gallery import Gallery, GalleryRow
from plopcli.reporting.html.charts import Series, line_chart, over_steps
from plopcli.reporting.html.page import render_page, write_page
from plopcli.reporting.run_data import RunData, gather, warnings
from plopcli.runs.confusion import Confusion, write_confusion
from plopcli.runs.diagnosis import ClassAudit, Diagnosis, StepAudit
from plopcli.runs.folder import RunFolder
from plopcli.runs.results import Results

Element = ElementTree.Element


def audit(step: int, seen: int) -> StepAudit:
    classes = {name: ClassAudit(pixels=100, accepted=80, right=60, background=10) for name in CLASSES[:seen]}
    return StepAudit(step=step, images=7, rule="entropy", used=True, base=2, classes=classes, key="k")


def gallery(images: int = 2, side: int = 12) -> Gallery:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 255, (images, 5, side, side, 3), dtype=np.uint8)
    rows = tuple(GalleryRow(f"image{n}", p[0], p[1], (p[2], p[3], p[4])) for n, p in enumerate(pictures))
    return Gallery(rows, (0, 1, 2), (("cat", (200, 10, 10)), ("owl", (0, 90, 0))))


def full_run(path: Path, method: str = "plop", **head: Any) -> Path:
    """A run with metrics, environment and confusion matrix."""
    write_run(path, written_results(method, **head))
    folder = RunFolder(path)
    rows = [
        {
            "step": step,
            "iteration": at,
            "lr": 0.1 / (at + 1),
            "loss": 1.0,
            "terms": {"classification": 3.0 / (at + 1), **({"pod": 0.1} if step else {})},
            "diagnostics": {"accepted": 0.8, "adaptive_factor": 0.7, "pod_1": 0.1, "pod_2": 0.2} if step else {},
        }
        for step in range(3)
        for at in range(20)
    ]
    folder.append_metrics(rows)
    stamp = {
        "time": "2026-11-22T14:00:00+0000",
        "versions": {"plop": "0.1.0", "torch": "2.15.0"},
        "revision": "abc-dirty",
        "machine": {"cores": 2, "gpus": ["H200"], "platform": "Linux"},
        "command": ["plop", "run-scenario"],
        "processes": 2,
        "batch_norm": "statistics NOT synchronised: 4 images in each of 2 processes",
    }
    folder.environment.write_text(json.dumps(stamp))
    write_confusion(folder.confusion(2), Confusion(list(CLASSES), np.arange(16).reshape(4, 4)))
    return path


def page(*paths: Path, diagnosis: Diagnosis | str = "no data here", pictures: Gallery | str = "no images here") -> str:
    runs = read_runs(paths)
    comparisons = compare(runs)
    labels = run_labels(comparisons)
    return render_page(comparisons, [gather(labels[run.path], run, diagnosis, pictures) for run in runs])


def parsed(text: str) -> Element:
    """The root of the page; an error where an element is not closed or a name not escaped."""
    return ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>"))


def words(root: Element) -> str:
    return " ".join(" ".join(root.itertext()).split())


def test_a_page_loads_and_runs_nothing(tmp_path: Path) -> None:
    text = page(full_run(tmp_path / "a"), full_run(tmp_path / "b", "ft"), pictures=gallery())
    root = parsed(text)
    assert not [element.tag for element in root.iter() if element.tag in ("script", "link", "iframe", "object", "base")]
    for element in root.iter():
        for name, value in element.items():
            assert not name.startswith("on")
            if name in ("src", "href", "srcset", "data", "action"):
                assert value.startswith(("data:image/", "#"))
    assert not re.search(r"url\(|@import|https?:", text)
    policies = [meta.get("content") or "" for meta in root.iter("meta") if meta.get("http-equiv")]
    assert [policy.startswith("default-src 'none'") for policy in policies] == [True]
    targets = {a.get("href", "").removeprefix("#") for a in root.iter("a")}
    assert targets == {article.get("id") for article in root.iter("article")}


def test_a_page_tells_every_class_step_and_fact(tmp_path: Path) -> None:
    diagnosis = Diagnosis(steps=[audit(1, 3), audit(2, 4)])
    root = parsed(page(full_run(tmp_path / "run"), diagnosis=diagnosis, pictures=gallery()))
    heat = next(table for table in root.iter("table") if table.get("class") == "heat")
    assert [row[0].text for row in heat.findall("tbody/tr")] == list(CLASSES)
    assert [cell.text for cell in heat.findall("thead/tr/th/span")] == ["0", "1", "2"]
    assert [cell.text for cell in heat.findall("tbody/tr[4]/td")] == [None, None, "24"]
    assert "background:" in (heat.findall("tbody/tr[1]/td")[0].get("style") or "")
    told = words(root)
    for fact in ("overlapped", "abc-dirty", "torch 2.15.0", "H200", "central crops", "seed", "estimator reference"):
        assert fact in told
    assert "Batch norm: statistics NOT synchronised" in told
    assert "Loss: classification" in told
    assert "Loss: pod" in told
    assert "adaptive factor" in told
    titles = [element.get("title") for element in root.iter()]
    assert "owl taken for dog: 25.9 %" in titles, "14 of 12 + 13 + 14 + 15 pixels"
    assert "cat: 62.5 at best, 65.0 at the end" in titles
    assert "−14.0" in told, "dog falls from 26 to 12"
    assert "old recovered" in told
    assert "60.0" in told
    assert "No diagnosis" not in told


def test_pictures_stand_in_a_row_from_the_image_to_the_last_step(tmp_path: Path) -> None:
    root = parsed(page(full_run(tmp_path / "run"), pictures=gallery(images=3)))
    rows = [element for element in root.iter("div") if element.get("class") == "row"]
    assert len(rows) == 3
    captions = [caption.text for caption in rows[0].iter("figcaption")]
    assert captions == ["image", "truth", "step 0", "step 1", "step 2"]
    kinds = [(image.get("src") or "").partition(";")[0] for image in rows[0].iter("img")]
    assert kinds == ["data:image/jpeg", *["data:image/png"] * 4]


def test_six_steps_and_pictures_stay_under_five_megabytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 255, (240, 240, 3), dtype=np.uint8) for _ in range(2)]
    labels = [rng.integers(0, 2, (240, 240, 1), dtype=np.uint8) * np.uint8(200) for _ in range(7)]
    maps = tuple(np.repeat(each, 3, axis=2) for each in labels)
    rows = tuple(GalleryRow(f"i{n}", noise[n % 2], maps[0], maps[1:]) for n in range(6))
    write_page(tmp_path / "page.html", *_parts(full_run(tmp_path / "run"), Gallery(rows, tuple(range(6)), ())))
    assert 100_000 < (tmp_path / "page.html").stat().st_size < 5_000_000, "photographs of noise are the worst case"


def _parts(path: Path, pictures: Gallery) -> tuple[Any, list[RunData]]:
    runs = read_runs([path])
    comparisons = compare(runs)
    return comparisons, [gather("plop", runs[0], "none", pictures)]


def test_names_of_others_cannot_become_markup(tmp_path: Path) -> None:
    evil = '<script>alert("x")</script>'
    text = json.dumps(written_results()).replace('"owl"', json.dumps(evil))
    path = write_run(tmp_path / "run", written_results())
    (path / "results.json").write_text(text)
    root = parsed(page(path))
    assert not list(root.iter("script"))
    assert evil in words(root)


def charts(root: Element) -> list[Element]:
    return [element for element in root.iter("svg") if element.get("class") == "chart"]


def test_charts_are_bare_and_in_the_colours_of_the_page(tmp_path: Path) -> None:
    text = page(full_run(tmp_path / "a"), full_run(tmp_path / "b", "ft"), diagnosis=Diagnosis(steps=[audit(1, 3)]))
    root = parsed(text)
    assert len(charts(root)) == 3 + 2 * (1 + 1 + 5), "mIoU, pseudo-labels, two losses, shares, parts and learning rate"
    ids = [name for element in root.iter() if (name := element.get("id"))]
    assert len(ids) == len(set(ids))
    styles = re.findall(r'style="([^"]*)"', "".join(ElementTree.tostring(chart, "unicode") for chart in charts(root)))
    assert styles
    assert not [style for style in styles if "#" in style], "the style sheet knows light and dark"
    variables = {name for style in styles for name in re.findall(r"var\(--(\w+)\)", style)}
    assert {"c0", "c1", "ink", "faint", "rule", "card"} <= variables
    defined = set(re.findall(r"--(\w+):", (root.find("head/style")).text or ""))
    assert variables <= defined
    links = {use.get("href", "").removeprefix("#") for use in root.iter("use")}
    assert links
    assert links <= set(ids)


def test_points_say_what_they_are(tmp_path: Path) -> None:
    root = parsed(page(full_run(tmp_path / "run")))
    (titles,) = [
        [title.text for title in chart.iter("title")]
        for chart in charts(root)
        if chart.get("aria-label") == "mIoU over the steps"
    ]
    assert titles[:3] == [f"all: {step['miou']['all']:.4g}" for step in written_results()["steps"]]
    assert len(titles) == 3 + 3 + 2, "there are no new classes after step 0"


@pytest.mark.parametrize(
    ("values", "marks"),
    [
        ([1.0, 100.0], ["1", "10", "100"]),
        ([2e-4, 0.5], ["10⁻⁴", "10⁻³", "0.01", "0.1", "1"]),
        ([0.0, 3.0], ["0", "1", "2", "3"]),
        ([-1.0, 1.0, 1e300], ["−1", "1"]),
    ],
)
def test_the_ordinate_fits_the_values(values: list[float], marks: list[str]) -> None:
    drawn = line_chart([Series("a", list(enumerate(values)), 0)], over_steps([0, 1, 2]), text="t").drawing
    assert drawn is not None
    told = [text.text for text in ElementTree.fromstring(drawn).iter("text")]
    assert set(marks) <= {str(text).replace("-", "−") if "⁻" not in str(text) else str(text) for text in told}


def test_without_a_number_there_is_no_chart() -> None:
    assert line_chart([Series("a", [], 0)], over_steps([]), text="t").drawing is None


def test_an_unfinished_run_is_shown_as_far_as_it_got(tmp_path: Path) -> None:
    half = written_results()
    half["steps"] = half["steps"][:1]
    path = write_run(tmp_path / "run", half)
    told = words(parsed(page(path)))
    assert "not finished: measured up to step 0" in told
    assert "Nothing could be forgotten yet" in told
    assert "There is no confusion matrix" in told
    assert "no data here" in told
    assert "no images here" in told
    assert "no metrics.jsonl" in told


def test_a_joint_run_beside_others_is_a_line_that_bounds_them(tmp_path: Path) -> None:
    joint = write_run(tmp_path / "joint", written_results("joint", steps=1))
    root = parsed(page(joint, full_run(tmp_path / "plop")))
    assert any("stroke-dasharray: 9" in (line.get("style") or "") for line in root.iter("path"))
    assert "╌ joint" in words(root)


def test_where_steps_bring_domains_these_are_the_rows(tmp_path: Path) -> None:
    results = written_results("ft", protocol="domain", dataset="cityscapes-domain", task="1-1", base_classes=None)
    results["domains"] = [["aachen"], ["bremen"], ["zurich"]]
    for step in results["steps"]:
        seen = ["aachen", "bremen", "zurich"][: step["step"] + 1]
        step["domains"] = {name: {"miou": 50.0 - step["step"]} for name in seen}
        step["miou"] = {"all": 50.0, "old": None, "new": None}
    root = parsed(page(write_run(tmp_path / "run", results)))
    heat = next(table for table in root.iter("table") if table.get("class") == "heat")
    assert [row[0].text for row in heat.findall("tbody/tr")] == ["aachen", "bremen", "zurich"]
    assert "domain-incremental" in words(root)
    assert "PLOP [1]" in words(root), "published on the same domains"


@pytest.mark.parametrize(
    ("environment", "rows", "expected"),
    [
        ({}, [], []),
        ({"revision": "abc-dirty"}, [], ["Made with source code that was edited after its revision."]),
        ({}, [{"skipped": 1.0}], ["1 iterations were skipped because their gradients overflowed in fp16."]),
        ({}, [{"skipped": 1.0, "not_finite": 1.0}], ["1 iterations were skipped because their loss or gradient"]),
    ],
)
def test_warnings(environment: dict[str, Any], rows: list[dict[str, float]], expected: list[str]) -> None:
    logged = [{"step": 0, "iteration": n, "terms": {}, "diagnostics": row} for n, row in enumerate(rows)]
    run = MeasuredRun(Path("run"), Results.model_validate(written_results()), None)
    data = RunData("run", run.path, run.results, None, [environment], logged, "none", "none", "none")
    found = [line for line in warnings(data) if "settings.toml" not in line]
    assert len(found) == len(expected)
    assert all(line.startswith(start) for line, start in zip(found, expected, strict=True))


_CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


def _shown(path: Path, width: int, shot: Path) -> str:
    """Takes a picture of a page in Chromium; gives what was said on the console, policy violations among it."""
    command = [
        str(_CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
        f"--user-data-dir={shot.with_suffix('.profile')}", "--enable-logging=stderr",
        f"--window-size={width},2400", f"--screenshot={shot}", path.as_uri(),
    ]  # fmt: skip
    ran = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    return "\n".join(line for line in ran.stderr.splitlines() if "CONSOLE" in line)


@pytest.mark.slow
@pytest.mark.skipif(_CHROMIUM is None, reason="no Chromium here")
def test_chromium_shows_the_page_without_an_error_or_a_request(tmp_path: Path) -> None:
    """The page's own policy forbids every request, and the browser says on the console what it has refused."""
    diagnosis = Diagnosis(steps=[audit(1, 3), audit(2, 4)])
    runs = full_run(tmp_path / "a"), full_run(tmp_path / "b", "ft")
    text = page(*runs, diagnosis=diagnosis, pictures=gallery())
    path = tmp_path / "page.html"
    path.write_text(text)
    for width in (1280, 400):
        assert _shown(path, width, tmp_path / f"{width}.png") == ""
        shot = np.asarray(Image.open(tmp_path / f"{width}.png").convert("RGB"))
        assert shot.shape == (2400, width, 3)
        assert len(np.unique(shot.reshape(-1, 3), axis=0)) > 100, "something is drawn"
    path.write_text(text.replace("</main>", '<img src="http://127.0.0.1:9/x.png"/></main>'))
    assert "Content Security Policy" in _shown(path, 400, tmp_path / "other.png"), "a request would have been told"
