"""Which pictures a user means, and which an earlier command has left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plopcli.data.pictures import AREAS, picture_paths
from plopcli.errors import DataError


def names(*inputs: str, output: str) -> list[str]:
    return [str(path) for path in picture_paths(inputs, Path(output))]


@pytest.fixture(autouse=True)
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("photos/a.jpg", "photos/deep/b.png", "photos/predictions/a.png", "photos/predictions/b.overlay.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def test_what_lies_in_the_folder_to_write_to_is_no_input() -> None:
    pictures = ["photos/a.jpg", "photos/deep/b.png"]
    assert names("photos", output="photos/predictions") == pictures
    assert names("photos/**/*.*g", output="photos/predictions") == pictures
    assert names(str(Path("photos").absolute()), output="photos/predictions") == [
        str(Path(name).absolute()) for name in pictures
    ]
    assert names("photos/predictions/a.png", output="photos/predictions") == ["photos/predictions/a.png"]
    assert len(names("photos", output="elsewhere")) == 4


def test_beside_the_pictures_only_what_was_written_is_no_input() -> None:
    written = {"pictures": [{"picture": "photos/a.jpg", "mask": "photos/a.png", "overlay": "photos/a.overlay.png"}]}
    Path("photos", AREAS).write_text(json.dumps(written))
    for name in ("photos/a.png", "photos/a.overlay.png"):
        Path(name).touch()
    found = names("photos", output="photos")
    assert found[:2] == ["photos/a.jpg", "photos/deep/b.png"]
    assert "photos/a.png" not in found
    for content in ("no JSON", "[]", '{"pictures": [3]}'):
        Path("photos", AREAS).write_text(content)
        assert "photos/a.png" in names("photos", output="photos")


def test_a_folder_that_holds_nothing_else_has_no_pictures() -> None:
    Path("photos/a.jpg").unlink()
    Path("photos/deep/b.png").unlink()
    with pytest.raises(DataError, match="is a folder without pictures"):
        names("photos", output="photos/predictions")
