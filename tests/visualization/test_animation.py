from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plopcli.data.palettes import class_colours
from plopcli.visualization.animation import FRAME_MS, LAST_FRAME_MS, write_gif


def frames_of(path: Path) -> list[np.ndarray]:
    with Image.open(path) as gif:
        frames = []
        for number in range(gif.n_frames):
            gif.seek(number)
            frames.append(np.asarray(gif.convert("RGB")))
        return frames


def scene(number: int) -> Image.Image:
    """A noisy photograph, and beside it a label map of which one more stripe is filled in each frame."""
    noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    labels = np.zeros((60, 60), dtype=np.uint8)
    for stripe in range(number + 1):
        labels[:, 5 * stripe : 5 * stripe + 5] = stripe + 1
    return Image.fromarray(np.hstack([noise, class_colours(21)[labels]]))


def test_a_frame_per_picture_in_order_for_ever(tmp_path: Path) -> None:
    pictures = [scene(number) for number in range(6)]
    write_gif(pictures, tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as gif:
        assert (gif.n_frames, gif.size, gif.info["loop"]) == (6, (120, 60), 0)
        durations = []
        for number in range(6):
            gif.seek(number)
            durations.append(gif.info["duration"])
    assert durations == [FRAME_MS] * 5 + [LAST_FRAME_MS]
    for frame, picture in zip(frames_of(tmp_path / "a.gif"), pictures, strict=True):
        np.testing.assert_array_equal(frame[:, 60:], np.asarray(picture)[:, 60:], "colours of classes are exact")
        assert np.abs(frame[:, :60].astype(int) - np.asarray(picture)[:, :60]).mean() < 25, "noise of all colours"


def test_what_does_not_move_does_not_flicker(tmp_path: Path) -> None:
    write_gif([scene(number) for number in range(4)], tmp_path / "a.gif")
    first, *others = frames_of(tmp_path / "a.gif")
    for frame in others:
        np.testing.assert_array_equal(frame[:, :60], first[:, :60])


@pytest.mark.parametrize("count", [1, 3])
def test_few_colours_stay_as_they_are(tmp_path: Path, count: int) -> None:
    pictures = [Image.new("RGB", (9, 7), (number, 200, 3)) for number in range(count)]
    write_gif(pictures, tmp_path / "a.gif")
    for frame, picture in zip(frames_of(tmp_path / "a.gif"), pictures, strict=True):
        np.testing.assert_array_equal(frame, np.asarray(picture))
