"""Kills runs by SIGKILL at random moments, resumes them, and compares the end with that of an undisturbed run.

    python tests/torture.py --kills 20 --methods ft ewc plop --processes 1 2

Weights have to be equal bit by bit, the metrics file byte by byte, results and TensorBoard events without a double.
Every run is a process of its own, forked from this one, which has done the imports; several form a group as torchrun's
do. Every fourth kill waits for a file that is being written in checkpoints/.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import plopcli.engine.scenario_run
import plopcli.reporting.run_tables  # noqa: F401  imported where they are needed; here once for all runs
from plopcli.cli.app import main
from plopcli.data.toy import generate_toy
from plopcli.runs.checkpoint import load_checkpoint
from plopcli.runs.confusion import read_confusion

logging.getLogger("tensorboard").setLevel(logging.ERROR)  # a run that goes on is nothing to warn of

SETTINGS = {
    "model.width": 8,
    "model.head_channels": 16,
    "model.output_stride": 8,
    "data.crop": 48,
    "data.workers": 0,
    "train.batch": 8,
    "train.first.epochs": 2,
    "train.later.epochs": 3,
    "train.validate_every": 1,
    "output.print_every": 3,
    "output.overlays": 0,
    "output.snapshot_iterations": 2,
    "compute.gpus": 0,
}


class Ways(NamedTuple):
    """How runs are started."""

    data: Path
    method: str
    processes: int
    task: str = "15-2"


def start(
    ways: Ways, run: Path, settings: Mapping[str, object] = SETTINGS, first: Callable[[], object] = os.getpid
) -> list[int]:
    """Starts a run, or goes on with it; gives the ids of its processes, which call ``first`` before all else."""
    words = ["run-scenario", "--dataset", "toy", "--data-root", str(ways.data), "--task", ways.task, "--preset", "none"]
    words += ["--method", ways.method, "--no-pretrained", "--backbone", "resnet18", "--run", str(run), "--resume"]
    words += [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    group: list[dict[str, str]] = [{}]
    if ways.processes > 1:
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            port = str(probe.getsockname()[1])
        shared = {"WORLD_SIZE": str(ways.processes), "LOCAL_WORLD_SIZE": str(ways.processes)}
        shared |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port}
        group = [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ways.processes)]
    started = []
    for variables in group:
        if (pid := os.fork()) == 0:
            os.environ.update(variables)
            os.setsid()
            with run.with_name(f"{run.name}.out").open("a") as out:
                os.dup2(out.fileno(), sys.stdout.fileno())
                os.dup2(out.fileno(), sys.stderr.fileno())
            first()
            os._exit(main(words))
        started.append(pid)
    return started


def wait(pids: Sequence[int], until: float, moment: Path | None = None) -> list[int] | None:
    """Exit codes once all have ended; None where time is up, or where a file is being written below ``moment``."""
    codes: dict[int, int] = {}
    while True:
        for pid in pids:
            if pid not in codes:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    codes[pid] = os.waitstatus_to_exitcode(status)
        if len(codes) == len(pids):
            return [codes[pid] for pid in pids]
        if time.monotonic() > until or (moment is not None and any(moment.glob("*.part"))):
            for pid in pids:
                if pid not in codes:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
            return None
        time.sleep(0.0005 if moment is not None else 0.005)


def differences(undisturbed: Path, resumed: Path) -> list[str]:
    """What differs between two runs that should be the same."""
    found = []
    names = sorted(path.name for path in undisturbed.glob("checkpoints/*"))
    if (others := sorted(path.name for path in resumed.glob("checkpoints/*"))) != names:
        found.append(f"checkpoints/ holds {others} instead of {names}")
    for name in (name for name in names if name.endswith(".pt")):
        ours, theirs = (load_checkpoint(run / "checkpoints" / name) for run in (undisturbed, resumed))
        kinds = ("model", "method")
        found += [f"{name}: another {kind}" for kind in kinds if not _equal(getattr(ours, kind), getattr(theirs, kind))]
    if (undisturbed / "metrics.jsonl").read_bytes() != (resumed / "metrics.jsonl").read_bytes():
        found.append("metrics.jsonl differs")
    if _results(undisturbed) != _results(resumed):
        found.append("results.json differs")
    if (undisturbed / "results.csv").read_bytes() != (resumed / "results.csv").read_bytes():
        found.append("results.csv differs")
    for name in (path.name for path in undisturbed.glob("confusion/*.npz")):
        left, right = (read_confusion(run / "confusion" / name) for run in (undisturbed, resumed))
        if left.classes != right.classes or (left.counts != right.counts).any():
            found.append(f"{name} differs")
    ours, theirs = _events(undisturbed), _events(resumed)
    if ours != theirs:
        found.append(f"events: missing {list(ours - theirs)[:3]}, too many {list(theirs - ours)[:3]}")
    doubles = {line: count for line, count in _epochs(resumed).items() if count > 1}
    if doubles or _epochs(resumed).keys() != _epochs(undisturbed).keys():
        found.append(f"log.txt: {doubles or 'lacks lines'}")
    return found


def _equal(left: object, right: object) -> bool:
    if isinstance(left, torch.Tensor):
        assert isinstance(right, torch.Tensor)
        # As bytes: a NaN, which shares of no pixels are, equals nothing.
        return left.dtype == right.dtype and left.numpy().tobytes() == right.numpy().tobytes()
    if isinstance(left, dict):
        return isinstance(right, dict) and left.keys() == right.keys() and all(_equal(left[k], right[k]) for k in left)
    return left == right


def _results(run: Path) -> object:
    results = json.loads((run / "results.json").read_text())
    results.pop("sha256")  # of seconds, too
    for step in results["steps"]:
        assert step.pop("train_seconds") > 0
    return results


def _events(run: Path) -> Counter[tuple[str, int, float]]:
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    # Times and memory are those of the machine.
    tags = [tag for tag in events.Tags()["scalars"] if not re.match("(time|memory)/", tag)]
    return Counter((tag, event.step, event.value) for tag in tags for event in events.Scalars(tag))


def _epochs(run: Path) -> Counter[str]:
    """Lines of the log that stand for something computed, without times and speed."""
    lines = [line[20:].rpartition("   ")[0] or line[20:] for line in (run / "log.txt").read_text().splitlines()]
    return Counter(line for line in lines if re.search(r"step \d+ (epoch \d+|test)", line))


def torture(ways: Ways, kills: int, folder: Path, chance: random.Random) -> bool:
    """Whether every run that was killed and resumed ends as the undisturbed one."""
    name = f"{ways.method} on {ways.processes} process{'es' if ways.processes > 1 else ''}"
    undisturbed = folder / f"{ways.method}-{ways.processes}"
    began = time.monotonic()
    codes = wait(start(ways, undisturbed), time.monotonic() + 600)
    alone = time.monotonic() - began
    if codes is None or any(codes):
        print(f"{name}: the undisturbed run failed: {codes}\n{_said(undisturbed)}")
        return False
    done, rounds, writing, began = 0, 0, 0, time.monotonic()
    while done < kills:
        run = folder / f"{ways.method}-{ways.processes}-resumed-{rounds}"
        rounds += 1
        codes = None
        while codes is None:
            killing, at_writing = done < kills, done < kills and done % 4 == 3
            span = chance.uniform(0, alone / 3) if killing and not at_writing else 600.0
            codes = wait(start(ways, run), time.monotonic() + span, run / "checkpoints" if at_writing else None)
            if codes is None:
                assert killing, "it did not come to its end in 600 s"
                done, writing = done + 1, writing + at_writing
        found = [f"exit codes {codes}"] if any(codes) else differences(undisturbed, run)
        if found:
            print(f"{name}: after {done} kills: {'; '.join(found)}", flush=True)
            print(_said(run), flush=True)
            return False
    seconds = time.monotonic() - began
    print(
        f"{name}: {done} kills, {writing} of them while a file was written, over {rounds} runs; all ended as the "
        f"undisturbed one   ({alone:.1f} s undisturbed, {seconds:.0f} s tortured)",
        flush=True,
    )
    return True


def _said(run: Path) -> str:
    return run.with_name(f"{run.name}.out").read_text()[-3000:]


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="for each method and number of processes")
    parser.add_argument("--methods", nargs="+", default=["ft", "ewc", "plop"])
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--seed", type=int, default=None, help="of the moments; by default another one each time")
    parser.add_argument("--keep", type=Path, default=None, metavar="DIR", help="leave the runs there")
    return parser.parse_args(words)


def run_all(words: Sequence[str] | None = None) -> int:
    chosen = arguments(words)
    torch.set_num_threads(1)
    seed = random.SystemRandom().randrange(2**32) if chosen.seed is None else chosen.seed
    print(f"moments by seed {seed}", flush=True)
    folder = chosen.keep or Path(tempfile.mkdtemp(prefix="plop-torture-"))
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    generate_toy(folder / "data" / "toy", train=64, val=16, test=16, size=64)
    results = [
        torture(Ways(folder / "data", method, processes), chosen.kills, folder, random.Random(f"{seed} {method}"))
        for processes in chosen.processes
        for method in chosen.methods
    ]
    print(f"{'all equal' if all(results) else 'FAILED'}, {time.monotonic() - began:.0f} s", flush=True)
    if chosen.keep is None and all(results):
        shutil.rmtree(folder)
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(run_all())
