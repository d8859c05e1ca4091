"""`make iabn`: builds the package inplace-abn for the torch of this Python, with a GPU at hand or without.

Its source distribution imports torch while it is built, and with a torch for CUDA wants nvcc, names of GPU
architectures where no GPU tells them, and a linker that finds the CUDA runtime. All of this is looked for first, for a
build takes minutes. Nothing of plop needs the package: where it cannot be built, PyTorch computes the same.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import torch
import typer

from plopcli.errors import MachineError

#: What its source distribution takes for granted when it is built in an environment that is there already.
BUILD_TOOLS = ("setuptools", "setuptools-scm", "wheel", "ninja")
INSTEAD = "plop works without it: ABN is computed in PyTorch (compute.abn=auto says so in every run)."

#: Where toolkits are installed unless someone says otherwise.
_INSTALLED = Path("/usr/local")
_WRONG = re.compile(r"\berror:|no matching distribution|could not|killed", re.IGNORECASE)


def build_variables(folder: Path) -> dict[str, str]:
    """Environment variables for a build against the installed torch, after a look at whether it can succeed.

    Args:
        folder: Holds a link to the CUDA runtime for the linker, where the toolkit has none; as long as the build.

    Raises:
        MachineError: Something is missing; says what.
    """
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        raise MachineError(f"There is no C++ compiler ({compiler}).", "Install one (Debian, Ubuntu: apt install g++).")
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.exists():
        raise MachineError(f"{header} is missing.", "Install the headers of Python (Debian, Ubuntu: python3-dev).")
    # The tools of this environment, ninja among them, are found whether or not it is activated.
    variables = {"PATH": os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])}
    if torch.version.cuda is None:
        return variables
    home = _toolkit()
    _check_release(home)
    variables["CUDA_HOME"] = str(home)
    if not _holds_runtime(home):
        variables["LIBRARY_PATH"] = os.pathsep.join(
            [str(_linked_runtime(home, folder)), *filter(None, [os.environ.get("LIBRARY_PATH")])]
        )
    if "TORCH_CUDA_ARCH_LIST" not in os.environ:
        variables["TORCH_CUDA_ARCH_LIST"] = _architectures(home)
    return variables


def build(log: Path) -> None:
    """Builds and installs the package in the environment of this Python.

    Args:
        log: Gets the output of the build.

    Raises:
        MachineError: It failed; says why.
    """
    with tempfile.TemporaryDirectory(prefix="plop-iabn-") as folder, log.open("wb") as file:
        environment = os.environ | build_variables(Path(folder))
        pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check"]
        # A wheel in pip's cache may have been built for another torch.
        fresh = [
            "--no-build-isolation",
            "--no-deps",
            "--no-cache-dir",
            "--force-reinstall",
            "--no-binary",
            "inplace-abn",
        ]
        for arguments in (list(BUILD_TOOLS), [*fresh, "--verbose", _requirement()]):
            code = subprocess.run([*pip, *arguments], env=environment, stdout=file, stderr=subprocess.STDOUT).returncode
            if code:
                raise MachineError(f"The build failed: {_what_went_wrong(log)}", f"All of it: {log}")


def main() -> int:
    """Builds the package unless it is there and works; says what came of it. The exit code is 4 where it failed."""
    works, state = _state()
    if works:
        typer.echo(f"inplace-abn: {state}")
        return 0
    log = Path(sys.prefix) / "inplace-abn-build.log"
    start = time.perf_counter()
    typer.echo(f"Building inplace-abn for torch {torch.__version__}: some minutes. Output: {log}")
    try:
        build(log)
        works, state = _state()
        if not works:
            raise MachineError(f"It was built, and then: {state}", f"All of the build: {log}")
    except MachineError as error:
        typer.echo(f"inplace-abn is not there. {error.message}\n{error.hint}\n{INSTEAD}", err=True)
        return error.exit_code
    typer.echo(f"inplace-abn: {state}, built in {time.perf_counter() - start:.0f} s")
    typer.echo("Runs on one GPU in float32 or fp16 use it from now on; --set compute.abn=pytorch does without.")
    return 0


def _state() -> tuple[bool, str]:
    """Whether the package works, for people too; asked in a process of its own, which a bad build may end."""
    ask = "import sys; from plopcli.models.compiled_abn import state; s = state(); print(s.told); sys.exit(not s.works)"
    answer = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=False)
    return answer.returncode == 0, answer.stdout.strip() or f"loading it ends Python ({answer.returncode})"


def _requirement() -> str:
    """The versions of the package that plop declares, in its extra ``iabn``."""
    declared = metadata.requires("plopcli") or []
    return next(entry.partition(";")[0].strip() for entry in declared if entry.startswith("inplace-abn"))


def _toolkit() -> Path:
    """The folder of the CUDA toolkit: what CUDA_HOME names, else if possible one with the runtime to link to."""
    if given := os.environ.get("CUDA_HOME"):
        if not _holds_compiler(Path(given)):
            raise MachineError(
                f"CUDA_HOME is {given}, which holds no bin/nvcc.", "Set it to the CUDA toolkit's folder."
            )
        return Path(given)
    nvcc = shutil.which("nvcc")
    homes = [_INSTALLED / "cuda", *sorted(_INSTALLED.glob("cuda-*"), reverse=True)]
    homes += [Path(nvcc).resolve().parent.parent] if nvcc else []
    found = list(filter(_holds_compiler, homes))
    if not found:
        raise MachineError(
            f"torch {torch.__version__} is for CUDA {torch.version.cuda}, and there is no nvcc to compile for it.",
            f"Install the CUDA toolkit {_major(torch.version.cuda)}.x (no GPU is needed to build) and set CUDA_HOME to "
            "its folder.",
        )
    return next(filter(_holds_runtime, found), found[0])


def _check_release(home: Path) -> None:
    answer = subprocess.run([home / "bin" / "nvcc", "--version"], capture_output=True, text=True, check=False)
    release = re.search(r"release (\d+\.\d+)", answer.stdout)
    if release is None:
        raise MachineError(f"{home}/bin/nvcc does not run: {answer.stderr.strip()[:200]}", "Set CUDA_HOME to another.")
    if _major(release[1]) != _major(torch.version.cuda):
        raise MachineError(
            f"nvcc in {home} is of CUDA {release[1]}, and torch {torch.__version__} is for CUDA {torch.version.cuda}.",
            f"Install the CUDA toolkit {_major(torch.version.cuda)}.x and set CUDA_HOME to its folder.",
        )


def _holds_compiler(home: Path) -> bool:
    return (home / "bin" / "nvcc").exists()


def _holds_runtime(home: Path) -> bool:
    return (home / "lib64" / "libcudart.so").exists()


def _linked_runtime(home: Path, folder: Path) -> Path:
    """A folder where a linker finds the CUDA runtime: of an unusual toolkit, or of torch's own packages."""
    packaged = Path(torch.__file__).parent.parent / "nvidia"
    libraries = [*sorted(home.glob("lib*/libcudart.so*")), *sorted(home.glob("targets/*/lib/libcudart.so*"))]
    libraries += sorted(packaged.glob("*/lib/libcudart.so*"))
    if not libraries:
        raise MachineError(f"{home} has no lib64/libcudart.so to link to.", "Set CUDA_HOME to a complete CUDA toolkit.")
    (folder / "libcudart.so").symlink_to(libraries[0])
    return folder


def _architectures(home: Path) -> str:
    """The GPUs to compile for: those that are here; without any, all that torch knows, translated when first used."""
    answer = subprocess.run([home / "bin" / "nvcc", "--list-gpu-code"], capture_output=True, text=True, check=False)
    compiled = _versions(answer.stdout.split())
    present = [torch.cuda.get_device_capability(number) for number in range(torch.cuda.device_count())]
    if present and compiled.issuperset(present):
        return ";".join(f"{major}.{minor}" for major, minor in sorted(set(present)))
    common = compiled & _versions((torch._C._cuda_getArchFlags() or "").split())
    if not common:
        raise MachineError(
            f"nvcc in {home} compiles for no GPU that torch {torch.__version__} supports.",
            "Set CUDA_HOME to the toolkit of torch's CUDA, or TORCH_CUDA_ARCH_LIST to the architecture of your GPU.",
        )
    # One architecture is built in a fraction of the time of all; newer GPUs take its PTX.
    major, minor = min(common)
    return f"{major}.{minor}+PTX"


def _versions(names: Iterable[str]) -> set[tuple[int, int]]:
    """Compute capabilities from names like sm_90."""
    numbers = [match[1] for name in names if (match := re.fullmatch(r"sm_(\d+)", name))]
    return {(int(number[:-1]), int(number[-1])) for number in numbers}


def _major(version: str | None) -> str:
    return (version or "").partition(".")[0]


def _what_went_wrong(log: Path) -> str:
    """The first lines of a build's output that look like its error, or its last one."""
    lines = [line.strip() for line in log.read_text("utf-8", errors="replace").splitlines() if line.strip()]
    told = [line for line in lines if _WRONG.search(line) and len(line) < 300]
    return "\n".join(told[:3] or lines[-1:])


if __name__ == "__main__":
    sys.exit(main())
