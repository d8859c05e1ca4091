"""`results.json`: what is read is what is written, whichever version wrote it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from written_runs import write_run, written_results

from plopcli.errors import DamagedFileError
from plopcli.runs.folder import RunFolder
from plopcli.runs.results import Results, write_results


def read(path: Path, content: dict[str, Any]) -> Results:
    path.mkdir(exist_ok=True)
    (path / "results.json").write_text(json.dumps(content))
    results = RunFolder(path).read_results()
    assert results is not None
    return results


def test_files_of_other_versions_survive_a_round_trip(tmp_path: Path) -> None:
    content = written_results()
    content["invented_later"] = {"a": [1, None]}
    content["steps"][1] |= {"invented_later": "x", "preparation": {"fusion": 1}}
    content["steps"][2]["miou"]["future"] = 3.5
    del content["domains"], content["base_classes"]
    results = read(tmp_path, content)
    assert results.content() == content
    write_results(results, tmp_path / "results.json")
    text = (tmp_path / "results.json").read_text()
    written = json.loads(text)
    assert len(written.pop("sha256")) == 64
    assert written == content
    write_results(results.with_step(results.steps[-1]), tmp_path / "results.json")
    again = json.loads((tmp_path / "results.json").read_text())
    assert again["steps"] == content["steps"]
    assert again["invented_later"] == content["invented_later"]
    assert set(again) - set(content) - {"sha256"} == {
        "avg_foreground", "hiou", "hiou_foreground", "forgetting", "backward_transfer"
    }  # fmt: skip


@pytest.mark.parametrize("where", ["avg", "extra", "iou"])
def test_what_is_no_json_number_is_refused(tmp_path: Path, where: str) -> None:
    content = written_results()
    (content["steps"][0]["iou"] if where == "iou" else content)["cat" if where == "iou" else where] = math.nan
    with pytest.raises(DamagedFileError, match="not JSON"):
        read(tmp_path, content)
    with pytest.raises(ValueError, match=r"finite|JSON compliant"):
        write_results(Results.model_validate(content), tmp_path / "results.json")


def test_an_added_step_takes_the_place_of_later_ones(tmp_path: Path) -> None:
    results = read(tmp_path, written_results())
    shorter = results.with_step(results.steps[1])
    assert [step.step for step in shorter.steps] == [0, 1]
    assert shorter.matrix.values.shape == (2, 3), "computed anew"
    assert results.matrix.values.shape == (3, 4)
    assert shorter.figures.avg == pytest.approx(sum(step.miou.all or 0 for step in shorter.steps) / 2)


def test_what_each_step_brought_and_whether_all_are_there(tmp_path: Path) -> None:
    results = read(tmp_path, written_results())
    assert results.learned() == [["background", "cat"], ["dog"], ["owl"]]
    assert results.is_finished()
    assert not results.with_steps(results.steps[:2]).is_finished()
    assert not results.with_steps([]).is_finished()
    assert results.with_steps([]).learned() == []


def test_domains_finish_with_their_last_step(tmp_path: Path) -> None:
    content = written_results()
    content["domains"] = [["a"], ["b"], ["c"]]
    for step in content["steps"]:
        step["domains"] = {name: {"miou": 1.0} for name in "abc"[: step["step"] + 1]}
    results = read(tmp_path, content)
    assert results.learned() == [["a"], ["b"], ["c"]]
    assert results.is_finished()
    assert not results.with_steps(results.steps[:2]).is_finished(), "all classes are known from step 0 on"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"steps": [{"step": 1}]}, "steps.0.iou"),
        ({"seed": -1}, "seed"),
        ({"steps": written_results()["steps"][::-1]}, "its steps are not in order"),
        ({"domains": [["a"]]}, "no domains of step 2"),
    ],
)
def test_a_file_that_does_not_fit_is_told(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    path = write_run(tmp_path / "run", written_results())
    (path / "results.json").write_text(json.dumps(written_results() | change))
    with pytest.raises(DamagedFileError, match=told):
        RunFolder(path).read_results()


def test_no_flipped_bit_gives_another_figure(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    write_results(Results.model_validate(written_results()), folder.results)
    content = folder.results.read_bytes()
    expected = Results.model_validate(written_results())
    noticed = 0
    for position in range(0, 8 * len(content), 31):
        flipped = bytearray(content)
        flipped[position // 8] ^= 1 << position % 8
        folder.results.write_bytes(flipped)
        try:
            read = folder.read_results()
        except DamagedFileError:
            noticed += 1
        else:
            assert read is not None
            # Of the digest's own name, or of blanks between values.
            assert {name: getattr(read, name) for name in Results.model_fields} == dict(expected)
    assert noticed > 0.7 * 8 * len(content) / 31
