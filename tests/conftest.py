"""Data sets small enough for tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from running import TINY, run_scenario

from plopcli.data.toy import generate_toy
from plopcli.resolution.layers import Resolved, resolve_settings


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("PLOP_") and name != "PLOP_PARITY":
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def toy_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with the generated data set: 48 training, 16 validation and 23 test images of 64 pixels."""
    root = tmp_path_factory.mktemp("data")
    generate_toy(root / "toy", train=48, val=16, test=23, size=64)
    return root


@pytest.fixture(scope="session")
def city_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with Cityscapes in its own layout and names: 8 images of 128 x 64 in each of 5 cities."""
    root = tmp_path_factory.mktemp("city-data")
    rng = np.random.default_rng(0)
    colours = rng.integers(40, 215, (256, 3))
    for split, cities in (("train", ("aachen", "bremen", "zurich")), ("val", ("frankfurt", "lindau"))):
        for city in cities:
            images = root / "cityscapes" / "leftImg8bit" / split / city
            masks = root / "cityscapes" / "gtFine" / split / city
            images.mkdir(parents=True)
            masks.mkdir(parents=True)
            for number in range(8):
                stem = f"{city}_{number:06d}_000019"
                # road, sidewalk, building, vegetation, sky, car; unlabeled, ego vehicle, static
                ids = np.repeat(rng.permutation([7, 8, 11, 21, 23, 26, 0, 1, 4])[:8].astype(np.uint8), 16)
                mask = np.tile(ids, (64, 1))
                noisy = np.clip(colours[mask] + rng.integers(-20, 20, (64, 128, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(noisy).save(images / f"{stem}_leftImg8bit.png")
                Image.fromarray(mask).save(masks / f"{stem}_gtFine_labelIds.png")
                Image.fromarray(mask).save(masks / f"{stem}_gtFine_instanceIds.png")
    return root


def tiny_settings(root: Path, run: Path, **changes: object) -> Resolved:
    keys = {"data.dataset": "toy", "data.root": root, "scenario.task": "18-1", "run": run}
    keys |= TINY | {key.replace("__", "."): value for key, value in changes.items()}
    return resolve_settings({}, assignments=[f"{key}={value}" for key, value in keys.items()], environment={})


@pytest.fixture
def tiny(toy_root: Path, tmp_path: Path) -> Callable[..., Resolved]:
    """Makes settings of a run that takes seconds; keyword arguments are dotted keys with __ for the dots."""
    return lambda **changes: tiny_settings(toy_root, **{"run": tmp_path / "run", **changes})


@pytest.fixture
def quiet() -> Iterator[Console]:
    """A console that shows nothing."""
    with Path("/dev/null").open("w") as nowhere:
        yield Console(file=nowhere)


@pytest.fixture(scope="session")
def plop_run(toy_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of PLOP, with pictures and events, to look at; whoever changes it changes a copy."""
    run = tmp_path_factory.mktemp("runs") / "plop"
    settings = tiny_settings(toy_root, run, method__name="plop", output__overlays=2, output__tensorboard=True)
    run_scenario(settings, console=Console(file=StringIO()))
    return run


@pytest.fixture
def folder_data(tmp_path: Path) -> Callable[..., Path]:
    """Makes a plain-folder data set from masks: name -> list of class ids that fill its columns."""

    def make(masks: Mapping[str, Sequence[int]], classes: Sequence[str] = ("background", "cat", "dog", "bird")) -> Path:
        root = tmp_path / "own"
        (root / "images").mkdir(parents=True)
        (root / "masks").mkdir()
        (root / "classes.txt").write_text("".join(f"{name}\n" for name in classes))
        rng = np.random.default_rng(0)
        for name, columns in masks.items():
            mask = np.repeat(np.array(columns, dtype=np.uint8), 8)[None].repeat(24, axis=0)
            Image.fromarray(mask).save(root / "masks" / f"{name}.png")
            pixels = rng.integers(0, 256, (*mask.shape, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "images" / f"{name}.jpg")
        return root

    return make
