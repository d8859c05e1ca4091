"""What a run was computed with: versions, machine, revision. Goes into every run folder and into bug reports."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import plopcli

_PACKAGES = ("torch", "torchvision", "numpy", "pillow", "pydantic", "typer", "inplace-abn")


def versions() -> dict[str, str | None]:
    """Installed versions of what matters to results; None where a package is not installed."""
    found: dict[str, str | None] = {"plop": plopcli.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def revision() -> str | None:
    """The git revision of plop's own source tree, with `-dirty` where it was edited; None outside a checkout."""
    source = Path(plopcli.__file__).resolve().parent.parent
    if not (source / ".git").exists():
        return None
    try:
        answer = subprocess.run(
            ["git", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def machine() -> dict[str, Any]:
    """Operating system, cores, memory in GiB and CUDA devices."""
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    return {
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1) if memory else None,
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
    }


def compiled_abn() -> str:
    """Whether the package inplace-abn is built and works, for people."""
    from plopcli.models.compiled_abn import state

    return state().told


def environment_stamp() -> dict[str, Any]:
    """Everything above, with the time."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": versions(),
        "revision": revision(),
        "machine": machine(),
        "inplace_abn": compiled_abn(),
    }
