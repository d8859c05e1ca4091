"""Whatever a foreign file holds, it is read, or refused as an error of ours: never a traceback, never a hang.

Valid files are damaged by a generator whose seed the failure names. ``PLOP_FUZZ=10000 pytest tests/security`` (or
`make fuzz`) tries as many for every reader; the default is for every day.
"""

from __future__ import annotations

import os
import random
import warnings
from pathlib import Path
from typing import Any

import pytest
from targets import Target, targets

from plopcli.errors import PlopError

COUNT = int(os.environ.get("PLOP_FUZZ", "200"))
NAMES = (
    *("task", "settings", "list", "classes", "voc list", "palette", "picture", "split file", "mat", "index cache"),
    *("results", "metrics", "confusion", "environment", "lock", "checkpoint", "checkpoint content", "snapshot"),
    *("backbone weights", "exported weights", "archive"),
)
#: Readers that take more than some milliseconds a file: fewer of them every day.
SLOW = {"settings": 4, "checkpoint content": 4, "checkpoint": 2, "exported weights": 4}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def readers(place: Path) -> dict[str, Target]:
    return targets(place)


def test_every_reader_is_tried(readers):
    assert tuple(readers) == NAMES


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", NAMES)
def test_damaged_files_are_read_or_refused(name: str, readers: dict[str, Target], place: Path) -> None:
    target = readers[name]
    path = place / target.place
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.read_bytes() if path.exists() else None
    refused = 0
    count = COUNT if "PLOP_FUZZ" in os.environ else COUNT // SLOW.get(name, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed in range(count):
            content = target.mutate(random.Random(f"{name} {seed}"))
            path.write_bytes(content)
            refused += _refused(target, path, f"{name}, seed {seed}", content)
    if before is None:
        path.unlink()
    else:
        path.write_bytes(before)
    assert name in ("index cache", "environment", "lock", "metrics", "snapshot") or refused > count / 20


def _refused(target: Target, path: Path, what: str, content: bytes) -> bool:
    try:
        target.read(path)
    except PlopError as error:
        assert error.message  # noqa: PT017
        return True
    except (Exception, RecursionError) as error:
        if keep := os.environ.get("PLOP_FUZZ_KEEP"):
            Path(keep, f"{what}.bin".replace(" ", "-")).write_bytes(content)
        raise AssertionError(
            f"{what}: {type(error).__name__}: {error}; the file begins with {content[:300]!r}"
        ) from error
    return False


def test_the_harness_sees_a_reader_that_fails(tmp_path: Path) -> None:
    def fails(_: Path) -> Any:
        raise KeyError("x")

    with pytest.raises(AssertionError, match="probe: KeyError"):
        _refused(Target(lambda _: b"", fails, "a"), tmp_path / "a", "probe", b"")
