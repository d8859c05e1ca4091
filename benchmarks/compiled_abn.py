"""The compiled In-Place ABN of its authors (package inplace-abn) in our networks, to compare with."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from plopcli.models.abn import ABN, LEAKY_SLOPE, Activation, activate, batch_norms

SITE = Path("/tmp/plop-inplace-abn")


class CompiledABN(ABN):
    """`ABN` by the compiled kernels, which overwrite their input. They know no shortcut: its sum is a tensor more."""

    function: ClassVar[Any]

    def forward(self, x: Tensor, shortcut: Tensor | None = None, activation: Activation | None = None) -> Tensor:
        activation = activation or self.activation
        out: Tensor = self.function(
            x,
            self.weight,
            self.bias,
            self.running_mean,
            self.running_var,
            training=self.training,
            momentum=self.momentum,
            eps=self.eps,
            activation=activation if shortcut is None else "identity",
            activation_param=LEAKY_SLOPE,
        )
        return out if shortcut is None else activate(out + shortcut, activation, in_place=True)


def use_compiled_abn(model: nn.Module) -> None:
    """Makes every norm of ``model`` compute by the package.

    Raises:
        ImportError: It is not installed.
    """
    if str(SITE) not in sys.path:
        sys.path.append(str(SITE))
    from inplace_abn.functions import inplace_abn

    CompiledABN.function = staticmethod(inplace_abn)
    for norm in batch_norms(model):
        norm.__class__ = CompiledABN


def start_build(source: Path) -> subprocess.Popen[bytes]:
    """Builds the package from its source distribution, beside whatever else goes on; `SITE` holds it afterwards."""
    SITE.mkdir(parents=True, exist_ok=True)
    variables = {"TORCH_CUDA_ARCH_LIST": "9.0", "MAX_JOBS": "6", **_toolkit()}
    options = ["--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--target", str(SITE)]
    return subprocess.Popen(
        [sys.executable, "-m", "pip", "install", "-q", *options, str(source)],
        env=os.environ | variables,
        stdout=subprocess.DEVNULL,
        stderr=(SITE / "build.log").open("wb"),
    )


def _toolkit() -> dict[str, str]:
    """Variables that lead the build to nvcc and, where the toolkit's folders are unusual, to the CUDA runtime."""
    nvcc = shutil.which("nvcc")
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda", str(Path(nvcc).resolve().parent.parent) if nvcc else None]
    found = [Path(home) for home in homes if home and (Path(home) / "bin" / "nvcc").exists()]
    if not found:
        return {}
    # The packages that torch brings along hold the library, but no name that a linker looks for.
    packaged = Path(torch.__file__).parent.parent / "nvidia"
    libraries = [path for home in found for path in sorted(home.glob("lib*/libcudart.so*"))]
    libraries += sorted(packaged.glob("*/lib/libcudart.so*"))
    if not libraries:
        return {"CUDA_HOME": str(found[0])}
    link = SITE / "link" / "libcudart.so"
    link.parent.mkdir(exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(libraries[0])
    return {"CUDA_HOME": str(found[0]), "LIBRARY_PATH": str(link.parent)}
