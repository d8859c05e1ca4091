"""What one GPU does with this project, in one call of at most eight minutes; every section guards itself.

Results go to $OUT/gpu.json and gpu-profile.txt (benchmarks/results without $OUT), written anew after every finding.
On a machine without network, pydantic travels as wheels. Once, where there is a network::

    sh benchmarks/gpu_wheels.sh

and there, in the repository's root, with .whl carried along (that of inplace-abn, a source distribution, is optional)::

    python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade \\
      --target /tmp/site .whl/*.whl \\
      && PYTHONPATH=/tmp/site PYTHONUNBUFFERED=1 python3 -m benchmarks.gpu

`--tiny --device cpu` proves that the script runs.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks import gpu_checks, gpu_training
from benchmarks.gpu_session import Session, guarded
from benchmarks.report import RESULTS, Figures, table
from benchmarks.workload import compute_of
from plopcli.devices.process import this_process

NOTE = (
    "Synchronised batch norm over NCCL needs two GPUs and is not tested here; the check shared_norm runs two processes "
    "on the one GPU over gloo instead."
)
#: Every section with its budget in seconds, in the order of what matters most.
SECTIONS: dict[str, tuple[float, Callable[[Session], None]]] = {
    "ceiling": (20, gpu_training.ceiling),
    "train": (270, gpu_training.first_cases),
    "profile": (30, gpu_training.profile_best),
    "data-path": (45, gpu_training.data_path),
    "overhead": (40, gpu_training.overhead),
    "loss-layout": (15, gpu_training.loss_layout),
    "checks": (75, gpu_checks.checks),
    "more": (130, gpu_training.more_cases),
    "tests": (60, gpu_checks.tests),
    "compiled-abn": (60, gpu_training.compiled_abn),
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=SECTIONS, metavar="SECTION", help=f"of: {', '.join(SECTIONS)}")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes that only prove that it runs")
    parser.add_argument("--seconds", type=float, default=465, help="for everything; default: %(default)s")
    parser.add_argument("--results", type=Path, default=Path(os.environ.get("OUT", RESULTS)), metavar="DIR")
    parser.add_argument("--tag", help="goes into the names of the files")
    chosen = parser.parse_args(arguments)
    if chosen.device == "cuda" and not torch.cuda.is_available():
        print("No CUDA device: use --device cpu --tiny to try the script.", file=sys.stderr)
        return 4
    began = time.monotonic()
    with this_process(compute_of(chosen.device)) as process:
        session = Session(process, chosen.tiny, chosen.results, chosen.tag, began + chosen.seconds)
        session.figures["note"] = NOTE
        session.figures["tf32"] = {
            "convolutions": torch.backends.cudnn.allow_tf32,
            "matrix products": torch.backends.cuda.matmul.allow_tf32,
        }
        spent: dict[str, float | str] = {}
        for name in chosen.only or SECTIONS:
            seconds, section = SECTIONS[name]
            start = time.monotonic()
            print(f"== {name} ({start - began:.0f} s)", flush=True)
            with guarded(session, f"{name}, as a whole", seconds):
                section(session)
            spent[name] = round(time.monotonic() - start, 1)
            session.figures["seconds"] = spent
            session.write()
        if session.build is not None and session.build.poll() is None:
            session.build.kill()
    print(summary(session.figures))
    print(f"== done in {time.monotonic() - began:.0f} s; figures in {session.folder}")
    return 0


def summary(figures: Figures) -> str:
    """The findings that people want first."""
    names = ("images_per_second", "share_of_bf16_ceiling", "peak_gib", "seconds_of_first_iterations")
    rows = [
        [name, *(case.get(figure) for figure in names)] if "failed" not in case else [name, "failed", None, None, None]
        for name, case in figures.get("cases", {}).items()
    ]
    checks = figures.get("checks", {}) | {name: figures[name] for name in ("tests",) if name in figures}
    results = ", ".join(f"{name} {'passed' if check.get('passed') else 'FAILED'}" for name, check in checks.items())
    head = ["", "images/s", "of bf16 ceiling", "peak GiB", "first iterations s"]
    return f"{table(head, rows)}\nchecks: {results}\nloader: {figures.get('loader, images per second')}"


if __name__ == "__main__":
    sys.exit(main())
