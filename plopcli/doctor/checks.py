"""The single checks of an examination: each records what it finds about one thing that a run needs."""

from __future__ import annotations

import os
import resource
import tempfile
from collections import Counter
from pathlib import Path

import torch
from rich.console import Console
from rich.filesize import decimal as size_text

from plopcli.console.log import RunLog
from plopcli.data.datasets import load_dataset
from plopcli.data.index import inspect
from plopcli.data.loading import worker_count
from plopcli.data.reading import KINDS
from plopcli.devices.precision import choose_precision
from plopcli.devices.process import batch_layout, planned_process
from plopcli.doctor.duration import cores_here
from plopcli.doctor.findings import Examination
from plopcli.doctor.rehearsal import Timing
from plopcli.engine.checks import batch_schedule, weights_digest, weights_path
from plopcli.engine.memory import estimate_memory
from plopcli.engine.run import Run
from plopcli.engine.scenario_run import ScenarioChoices
from plopcli.errors import DataError, MachineError, UsageError
from plopcli.files.disk import free_bytes
from plopcli.models.segmenter import build_segmenter
from plopcli.resolution.layers import Resolved
from plopcli.runs.folder import RunFolder
from plopcli.runs.lock import refuse_if_held

#: Bytes that an iteration leaves in the metrics file and the event file.
_PER_ITERATION = 1500
#: Memory of CUDA itself and of the workspaces of kernels, in bytes.
_CUDA_OWN = 2**30
#: Files that the main process holds open for each loader process.
_FILES_OF_A_LOADER = 4
#: Open files beside those of loader processes.
_OPEN_FILES = 256


def check_settings(found: Examination, resolved: Resolved) -> None:
    """The method, data and presets, and the warnings of the settings' layers."""
    settings = resolved.settings
    names = ", ".join(preset.name for preset in resolved.presets) or "none"
    what = f"{settings.method.name} on {settings.data.dataset} {settings.scenario.task}"
    found.ok("settings", f"{what}, seed {settings.seed}, preset {names}")
    for warning in resolved.warnings:
        found.warn("settings", warning)


def check_device(found: Examination, resolved: Resolved, choices: ScenarioChoices, console: Console) -> None:
    """Devices, precision, the batch's layout and synchronised norms."""
    settings = resolved.settings
    process = planned_process(settings.compute)
    layout = batch_layout(settings.train.batch, settings.compute, process.world)
    precision = choose_precision(settings.compute, process.device)
    name = torch.cuda.get_device_name(process.device) if process.device.type == "cuda" else f"{cores_here()} cores"
    found.ok(
        "device", f"{process.device.type} ({name}), {precision.name}, batch {layout.describe(process.device.type)}"
    )
    if process.device.type == "cpu" and torch.cuda.is_available():
        found.warn("device", "there is a GPU, which the settings leave alone", "--gpus auto")
    elif process.device.type == "cuda" and torch.cuda.device_count() > process.local_world:
        unused = torch.cuda.device_count() - process.local_world
        found.warn("device", f"{unused} GPUs of this machine are not used", f"--gpus {torch.cuda.device_count()}")
    if process.world > 1 and not settings.compute.sync_norm:
        found.warn(
            "device",
            f"batch norm sees {layout.micro} images in each of {process.world} processes",
            "--set compute.sync_norm=true lets all of them share their statistics.",
        )


def check_data(found: Examination, resolved: Resolved, choices: ScenarioChoices, console: Console) -> None:
    """The data set, and every pair in its index."""
    chosen = resolved.settings.data
    data = load_dataset(chosen.dataset, chosen.root, chosen.path, background=chosen.background)
    with RunLog(console).progress("class index", "masks") as bar:
        inspection = inspect(data, bar.update)
    counted = ", ".join(f"{len(samples)} {split}" for split, samples in data.splits.items())
    kinds = Counter(problem.kind for row, problem in inspection.problems.items() if not inspection.skipped[row])
    if kinds:
        listed = ", ".join(f"{number} x {kind}" for kind, number in kinds.most_common())
        remedies = " ".join(dict.fromkeys(KINDS[kind] for kind in kinds))
        raise DataError(
            f"{data.root}: {sum(kinds.values())} pairs are unusable: {listed}.",
            f"{remedies} `plop prepare {data.name}` lists them; --skip-bad goes on without them.",
        )
    inspection.index()
    skipped = int(inspection.skipped.sum())
    found.ok(
        "data", f"{data.root}: {counted} images, {len(data.classes)} classes" + (f", {skipped} skipped" * bool(skipped))
    )
    if not inspection.saved:
        found.warn(
            "data", f"the index cannot be written to {data.root}: masks are counted at every start", "Make it writable."
        )


def check_weights(found: Examination, resolved: Resolved, choices: ScenarioChoices, console: Console) -> None:
    """The backbone's weights."""
    settings = resolved.settings
    if choices.init_from is not None:
        return
    path = weights_path(settings)
    if path is None:
        found.warn(
            "weights", f"{settings.model.backbone} starts from random weights", "--pretrained, or --weights FILE"
        )
        return
    digest = weights_digest(settings)
    assert digest is not None, "the file is there"
    found.ok("weights", f"{path}, {size_text(path.stat().st_size)}, sha256 {digest[:16]}")


def check_folder(found: Examination, resolved: Resolved, choices: ScenarioChoices, console: Console) -> None:
    """The run's folder: writable, and no other run in it."""
    path = resolved.settings.run_folder
    refuse_if_held(path)
    existing = path
    while not existing.exists():
        existing = existing.parent
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise UsageError(
            f"{existing} cannot be written: {error.strerror}.", "Choose another folder with --run."
        ) from error
    steps = RunFolder(path).steps()
    found.ok("folder", f"{path} can be written, no other run is in it" + (f"; it holds steps {steps}" if steps else ""))


def check_memory(found: Examination, run: Run) -> None:
    """The estimate for the last step, which has the most classes, against free memory."""
    settings, scenario, process = run.settings, run.scenario, run.process
    counts, shared = scenario.class_counts(scenario.steps - 1), scenario.shares_classes and scenario.steps > 1
    half = run.precision.name != "float32"
    estimate = estimate_memory(settings, counts, run.layout.micro, half=half, shared=shared)
    if process.device.type == "cuda":
        needed, free = estimate.total + _CUDA_OWN, torch.cuda.mem_get_info(process.device)[0]
        where = "on each GPU"
    else:
        needed, free, where = estimate.total * process.local_world, free_memory(), "on this machine"
    said = f"{estimate.describe()} on each device; {size_text(free)} are free {where}"
    if needed > free:
        raise MachineError(
            f"Memory: {said}.",
            "The total batch can stay: --set compute.in_place_norm=true, --set compute.checkpointing=true, "
            "--set compute.micro_batch=N; or end what else runs here.",
        )
    if needed > 0.85 * free:
        found.warn("memory", said, "It is little to spare: --set compute.in_place_norm=true, or compute.micro_batch=N.")
    else:
        found.ok("memory", said)


def check_loading(found: Examination, run: Run) -> None:
    """Loader processes, and the files that they hold open."""
    settings, processes = run.settings, run.process.local_world
    workers = worker_count(settings.data, processes)
    if workers == 0:
        found.ok("loading", "images are loaded by the training process itself")
        return
    files = _open_file_limit()
    if files is not None and files < _OPEN_FILES + workers * _FILES_OF_A_LOADER:
        found.warn(
            "loading", f"a process may open {files} files, and {workers} loader processes need many", "ulimit -n 4096"
        )
        return
    found.ok("loading", f"{workers} loader processes each")


def check_disk(found: Examination, run: Run, steps: list[int], timings: list[Timing]) -> None:
    """Room for all checkpoints, snapshots and logs."""
    settings = run.settings
    checkpoints = [_checkpoint_bytes(run, step, timings) for step in steps]
    iterations = sum(
        settings.train.recipe(step).epochs
        * batch_schedule(settings, run.scenario, run.layout, step).iterations_per_epoch
        for step in steps
    )
    largest = max(checkpoints, default=0)
    # A snapshot is written before the oldest one goes.
    kept = (settings.output.snapshots + 1) * (timings[-1].snapshot if timings else 2 * largest)
    weights = _network_bytes(run, run.scenario.steps - 1)
    needed = sum(checkpoints) + kept + weights + iterations * _PER_ITERATION
    free = free_bytes(settings.run_folder)
    said = (
        f"{size_text(needed)} are needed under {settings.run_folder} ({len(steps)} checkpoints of up to "
        f"{size_text(largest)}, {size_text(kept)} to go on from in the middle of a step), {size_text(free)} are free"
    )
    if needed > free:
        raise MachineError(f"{said}.", f"Free {size_text(needed - free)}, or choose another disk with --run.")
    if needed > 0.8 * free:
        found.warn("disk", said, "Others who fill the disk would stop the run.")
    else:
        found.ok("disk", said)


def _checkpoint_bytes(run: Run, step: int, timings: list[Timing]) -> int:
    """Size of the checkpoint after ``step``, as measured, scaled to the classes learned since."""
    size = _network_bytes(run, step)
    if timings:
        timing = timings[min(step, len(timings) - 1)]
        return timing.checkpoint * size // _network_bytes(run, timing.step)
    return size


def _network_bytes(run: Run, step: int) -> int:
    with torch.device("meta"):
        network = build_segmenter(run.settings.model, run.scenario.class_counts(step))
    return sum(tensor.nbytes for tensor in network.state_dict().values())


def free_memory() -> int:
    """Bytes of main memory that this process may still take, on the machine or in its container."""
    free = 0
    try:
        for line in Path("/proc/meminfo").read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                free = 1024 * int(line.split()[1])
    except OSError:
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text("ascii").strip()
        if limit != "max":
            free = min(free, int(limit) - int((group / "memory.current").read_text("ascii")))
    except (OSError, ValueError):
        return free
    return max(free, 0)


def _open_file_limit() -> int | None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft
