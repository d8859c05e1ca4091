"""What `make iabn` looks for, and what it says when something is missing. No test compiles anything."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from plopcli.errors import MachineError
from tools import build_inplace_abn as iabn

NVCC = """#!/bin/sh
case "$1" in
--version) echo "Cuda compilation tools, release {release}, V{release}.88" ;;
--list-gpu-code) echo "{codes}" ;;
esac
"""


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine with a C++ compiler, a torch for CUDA 13.2, and neither toolkit nor GPU."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "c++").write_text("#!/bin/sh\n")
    (tools / "c++").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    for name in ("CXX", "CUDA_HOME", "TORCH_CUDA_ARCH_LIST", "LIBRARY_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(iabn, "_INSTALLED", tmp_path / "local")
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.setattr(torch._C, "_cuda_getArchFlags", lambda: "sm_75 sm_90 sm_120 compute_120", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


@pytest.fixture
def toolkit(tmp_path: Path) -> Callable[..., Path]:
    def make(name: str = "cuda", release: str = "13.0", codes: str = "sm_75 sm_90", libraries: str = "lib64") -> Path:
        home = tmp_path / "local" / name
        (home / "bin").mkdir(parents=True)
        (home / "bin" / "nvcc").write_text(NVCC.format(release=release, codes=codes))
        (home / "bin" / "nvcc").chmod(0o755)
        if libraries:
            (home / libraries).mkdir(parents=True)
            (home / libraries / "libcudart.so").touch()
        return home

    return make


def test_without_a_gpu_one_architecture_serves_all(toolkit, tmp_path) -> None:
    home = toolkit()
    variables = iabn.build_variables(tmp_path)
    assert variables["CUDA_HOME"] == str(home)
    assert variables["TORCH_CUDA_ARCH_LIST"] == "7.5+PTX"
    assert "LIBRARY_PATH" not in variables
    assert variables["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent), "ninja of the environment"


@pytest.mark.parametrize(
    ("present", "wanted"), [([(9, 0)], "9.0"), ([(9, 0), (7, 5)], "7.5;9.0"), ([(12, 0)], "7.5+PTX")]
)
def test_gpus_that_are_here_are_compiled_for(toolkit, tmp_path, monkeypatch, present, wanted) -> None:
    toolkit()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(present))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda number: present[number])
    assert iabn.build_variables(tmp_path)["TORCH_CUDA_ARCH_LIST"] == wanted


def test_the_user_has_the_last_word(toolkit, tmp_path, monkeypatch) -> None:
    toolkit()
    other = toolkit("elsewhere")
    monkeypatch.setenv("CUDA_HOME", str(other))
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.9")
    variables = iabn.build_variables(tmp_path)
    assert variables["CUDA_HOME"] == str(other)
    assert "TORCH_CUDA_ARCH_LIST" not in variables


def test_a_toolkit_with_its_runtime_is_preferred(toolkit, tmp_path) -> None:
    toolkit("cuda", libraries="")
    complete = toolkit("cuda-13.0")
    assert iabn.build_variables(tmp_path)["CUDA_HOME"] == str(complete)


def test_an_unusual_toolkit_is_linked_to(toolkit, tmp_path) -> None:
    home = toolkit(libraries="targets/x86_64-linux/lib")
    folder = tmp_path / "link"
    folder.mkdir()
    variables = iabn.build_variables(folder)
    assert variables["LIBRARY_PATH"] == str(folder)
    assert (folder / "libcudart.so").resolve() == (home / "targets/x86_64-linux/lib/libcudart.so").resolve()


def test_a_torch_for_the_cpu_needs_no_toolkit(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert iabn.build_variables(tmp_path).keys() == {"PATH"}


def test_what_is_missing_is_named(toolkit, tmp_path, monkeypatch) -> None:
    def refused(pattern: str) -> None:
        with pytest.raises(MachineError, match=pattern):
            iabn.build_variables(tmp_path)

    refused(r"for CUDA 13\.2, and there is no nvcc[\s\S]*toolkit 13\.x \(no GPU is needed")
    old = toolkit("cuda-12.4", release="12.4")
    refused(r"of CUDA 12\.4, and torch .* is for CUDA 13\.2[\s\S]*13\.x")
    toolkit(codes="sm_50 sm_60")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "local" / "cuda"))
    refused("compiles for no GPU that torch")
    monkeypatch.setenv("CUDA_HOME", str(old / "bin"))
    refused("holds no bin/nvcc")
    monkeypatch.setenv("CXX", "no-such-compiler")
    refused(r"no C\+\+ compiler \(no-such-compiler\)")


def test_a_package_that_works_is_left_alone(monkeypatch, capsys) -> None:
    monkeypatch.setattr(iabn, "_state", lambda: (True, "1.1.0, works on the CPU"))
    monkeypatch.setattr(iabn, "build", lambda log: pytest.fail("built again"))
    assert iabn.main() == 0
    assert "works on the CPU" in capsys.readouterr().out


def test_a_package_that_does_not_work_once_built_is_a_failure(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(iabn, "_state", lambda: (False, "1.1.0, not usable: it does not load"))
    monkeypatch.setattr(iabn.sys, "prefix", str(tmp_path))
    monkeypatch.setattr(iabn, "build", lambda log: None)
    assert iabn.main() == 4
    assert "not usable: it does not load" in capsys.readouterr().err
