"""The compiled In-Place ABN of its authors (package inplace-abn), built aside, to compare with."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from torch import nn

from plopcli.models.compiled_abn import use_compiled
from tools.build_inplace_abn import build_variables

SITE = Path("/tmp/plop-inplace-abn")


def use_compiled_abn(model: nn.Module) -> None:
    """Makes every norm of ``model`` compute by the package in training.

    Raises:
        ImportError: It is not installed.
    """
    if str(SITE) not in sys.path:
        sys.path.append(str(SITE))
    use_compiled(model)


def start_build(source: Path) -> subprocess.Popen[bytes]:
    """Builds the package from its source distribution, beside whatever else goes on; `SITE` holds it afterwards.

    Raises:
        MachineError: Something to build it with is missing.
    """
    link = SITE / "link"
    link.mkdir(parents=True, exist_ok=True)
    (link / "libcudart.so").unlink(missing_ok=True)
    options = ["--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--target", str(SITE)]
    return subprocess.Popen(
        [sys.executable, "-m", "pip", "install", "-q", *options, str(source)],
        env=os.environ | {"MAX_JOBS": "6"} | build_variables(link),
        stdout=subprocess.DEVNULL,
        stderr=(SITE / "build.log").open("wb"),
    )
