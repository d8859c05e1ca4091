"""Sections of `python -m benchmarks.gpu` that measure speed and memory."""

from __future__ import annotations

import gc
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import compiled_abn as authors_abn
from benchmarks.data_path import STEP, TASK, draw_files
from benchmarks.gpu_session import Session, guarded, timed
from benchmarks.report import Figures
from benchmarks.train_step import measure_case
from benchmarks.workload import Training, Workload, build_training
from plopcli.data.batches import Batch
from plopcli.data.loading import BatchSchedule, TrainingImages, training_batches
from plopcli.data.samples import StepSplit
from plopcli.engine.batches import on_device
from plopcli.errors import MachineError
from plopcli.losses.classification import cross_entropy
from plopcli.scenarios.protocols import training_table
from plopcli.settings.sections import DataSettings

#: Work of a PLOP iteration in step 1 per image of 512 pixels with ResNet-101: forward pass of the old network, forward
#: and backward pass of the new one. Where an iteration runs eagerly, its work is counted, too.
TFLOP_PER_IMAGE = 0.54
GIB = 2**30
_WINDOWS = 5
#: How often fp16 may halve its scale, twice each time, before it is measured all the same.
_MOST_SKIPPED = 20
#: Source distribution of inplace-abn, carried along; without it that section says so.
_CARRIED = Path(".whl")

Prepare = Callable[[Training], None]


def ceiling(session: Session) -> None:
    """The rates to compare with: a large bf16 matrix product, and a copy within the device."""
    side, items = (256, 2**20) if session.tiny else (8192, 2**30)
    a, b = (torch.randn(side, side, device=session.device, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    timed(session, lambda: torch.mm(a, b, out=out), 1, 5)
    seconds = statistics.median(timed(session, lambda: torch.mm(a, b, out=out), 5, 20))
    source = torch.randn(items, device=session.device)
    target = torch.empty_like(source)
    copy = statistics.median(timed(session, lambda: target.copy_(source), 5, 5))
    session.note(
        "ceiling",
        {"bf16_tflops": 2 * side**3 / seconds / 1e12, "copy_tb_per_second": 2 * source.nbytes / copy / 1e12},
    )


def first_cases(session: Session) -> None:
    """What matters most: bf16 eager and compiled, the other precisions, less memory, fine-tuning."""
    compiler = "aot_eager" if session.tiny else "inductor"
    run_case(session, "plop bf16", session.workload(precision="bf16"))
    run_case(session, f"plop bf16 {compiler}", session.workload(precision="bf16", compile=compiler), seconds=160)
    run_case(session, "plop float32", session.workload())
    if session.device.type == "cuda":
        run_case(session, "plop fp16", session.workload(precision="fp16"))
    run_case(session, "plop bf16 in place", session.workload(precision="bf16", in_place_norm=True))
    run_case(session, "plop bf16 checkpointing", session.workload(precision="bf16", checkpointing=True))
    run_case(session, "ft bf16", session.workload("ft", precision="bf16"))
    run_case(session, "mib bf16", session.workload("mib", precision="bf16"))


def more_cases(session: Session) -> None:
    """The rest of the matrix, as far as time allows."""
    compiler = "aot_eager" if session.tiny else "inductor"
    run_case(session, "plop bf16 contiguous", session.workload(precision="bf16", channels_last=False))
    run_case(
        session,
        "plop bf16 in place, checkpointing",
        session.workload(precision="bf16", in_place_norm=True, checkpointing=True),
    )
    run_case(session, "plop float32 in place", session.workload(in_place_norm=True))
    run_case(session, "plop float32 contiguous", session.workload(channels_last=False))
    if session.device.type == "cuda":
        run_case(session, "plop fp16 contiguous", session.workload(precision="fp16", channels_last=False))
    run_case(session, f"plop float32 {compiler}", session.workload(compile=compiler), seconds=100)
    run_case(session, f"ft bf16 {compiler}", session.workload("ft", precision="bf16", compile=compiler), seconds=100)
    if session.device.type == "cuda":
        run_case(session, f"plop fp16 {compiler}", session.workload(precision="fp16", compile=compiler), seconds=100)


def compiled_abn(session: Session) -> None:
    """The authors' own In-Place ABN, where its build has succeeded."""
    build = session.build
    if build is None:
        session.note("compiled ABN", {"failed": "no source distribution of inplace-abn in .whl, or no GPU"})
        return
    try:
        code = build.wait(max(min(session.left - 20, 60), 1))
    except subprocess.TimeoutExpired:
        build.kill()
        code = -1
    if code:
        log = (authors_abn.SITE / "build.log").read_text("utf-8", errors="replace")
        session.note("compiled ABN", {"failed": f"its build ended with {code}", "log": log[-1500:]})
        return

    def prepare(training: Training) -> None:
        authors_abn.use_compiled_abn(training.model)

    # It knows no bf16.
    for precision, layout in (("fp16", False), ("fp16", True), ("float32", False)):
        work = session.workload(precision=precision, channels_last=layout)
        name = f"plop {precision} authors' in-place ABN{'' if layout else ', contiguous'}"
        run_case(session, name, work, prepare=prepare)


def start_build(session: Session) -> None:
    """Builds inplace-abn beside the next sections, if its source has been carried along."""
    sources = sorted(_CARRIED.glob("inplace*abn-*.tar.gz"))
    if sources and session.device.type == "cuda":
        try:
            session.build = authors_abn.start_build(sources[-1])
        except MachineError as error:
            session.note("build of the compiled ABN", {"failed": str(error)})


def run_case(session: Session, name: str, work: Workload, seconds: float = 40, prepare: Prepare | None = None) -> None:
    """Speed and memory of one workload, as a finding in ``cases``."""
    with guarded(session, name, seconds, group="cases"):
        session.note(name, _case(session, work, prepare), group="cases")
    gc.collect()
    if session.device.type == "cuda":
        torch.cuda.empty_cache()


def _case(session: Session, work: Workload, prepare: Prepare | None) -> Figures:
    cuda = session.device.type == "cuda"
    base = torch.cuda.memory_allocated() if cuda else 0
    start = time.perf_counter()
    training = build_training(work, session.process)
    if prepare is not None:
        prepare(training)
    built = time.perf_counter()
    # Counting works only where torch dispatches operation by operation.
    counter = FlopCounterMode(display=False) if work.compute.compile == "off" else None
    if counter is None:
        first = training.iterate()
    else:
        with counter:
            first = training.iterate()
    for _ in range(_MOST_SKIPPED):
        if "skipped" not in training.iterate(2)[-1]["diagnostics"]:
            break
    warm = time.perf_counter()
    if cuda:
        torch.cuda.reset_peak_memory_stats()

    def call() -> None:
        training.trainer.iterate([training.batch])

    once = min(timed(session, call, 2, 1))
    iterations = 1 if session.tiny else max(2, min(20, round(1.0 / once)))
    times = timed(session, call, _WINDOWS, iterations)
    last = training.iterate()
    speed = work.images / statistics.median(times)
    figures: Figures = {
        "images_per_second": speed,
        "spread": [work.images / max(times), work.images / min(times)],
        "iterations_per_window": iterations,
        "seconds_to_build": built - start,
        "seconds_of_first_iterations": warm - built,
        "first_terms": first[0]["terms"],
        "last_loss": last[0]["loss"],
        "skipped": "skipped" in last[0]["diagnostics"],
    }
    if counter is not None:
        figures["counted_tflop_per_image"] = counter.get_total_flops() / work.images / 1e12
    rate = session.figures.get("ceiling", {}).get("bf16_tflops")
    if work.method == "plop" and not session.tiny:
        figures["tflops"] = TFLOP_PER_IMAGE * speed
        figures["share_of_bf16_ceiling"] = TFLOP_PER_IMAGE * speed / rate if rate else None
    if cuda:
        figures["peak_gib"] = (torch.cuda.max_memory_allocated() - base) / GIB
        figures["reserved_gib"] = torch.cuda.memory_reserved() / GIB
    if work.method == "plop" and prepare is None and speed > session.best_speed:
        session.best, session.best_speed = training, speed
    return figures


def overhead(session: Session) -> None:
    """PLOP against the bare model work and a loop by hand, in bf16, in windows of several iterations."""
    work = session.workload(precision="bf16")
    figures = measure_case(work, session.process, 5, 2, 25, iterations=1 if session.tiny else 5)
    session.note("overhead", {name: value for name, value in figures.items() if name != "all_seconds"})


def profile_best(session: Session) -> None:
    """Where the time of the fastest configuration goes: the ten largest operations and kernels."""
    training = session.best
    if training is None:
        training = build_training(session.workload(precision="bf16"), session.process)
    training.iterate(3)
    cuda = session.device.type == "cuda"
    iterations = 2 if session.tiny else 5
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    session.wait()
    with profile(activities=activities) as profiler:
        start = time.perf_counter()
        for _ in range(iterations):
            training.trainer.iterate([training.batch])
        session.wait()
        wall = time.perf_counter() - start
    events = profiler.key_averages()
    own = "self_device_time_total" if cuda else "self_cpu_time_total"
    per_iteration = 1000 * iterations
    rows: dict[str, list[Figures]] = {"operations": [], "kernels": []}
    for event in sorted(events, key=lambda event: -float(getattr(event, own))):
        if getattr(event, "is_user_annotation", False):
            continue  # the name of a stretch of time, which holds what counts already
        kind = "kernels" if event.device_type == torch.profiler.DeviceType.CUDA else "operations"
        milliseconds = getattr(event, own) / per_iteration
        rows[kind].append({"name": event.key[:160], "milliseconds": milliseconds, "calls": event.count / iterations})
    busy = sum(row["milliseconds"] for row in rows["kernels" if cuda else "operations"])
    session.note(
        "profile",
        {
            "traits": training.work.compute.model_dump(mode="json", exclude={"timeout"}),
            "milliseconds_of_an_iteration": 1000 * wall / iterations,
            "milliseconds_of_kernels": busy,
            **{kind: found[:10] for kind, found in rows.items()},
        },
    )
    text = events.table(sort_by=own, row_limit=30, max_name_column_width=80)
    (session.folder / "gpu-profile.txt").write_text(text, "utf-8")
    print(
        "\n".join(f"{row['milliseconds']:9.2f} ms  {row['name'][:90]}" for row in rows["operations"][:10]), flush=True
    )


def loss_layout(session: Session) -> None:
    """Softmax and cross-entropy of channels_last logits as they are, and seen as rows of classes."""
    work = session.workload()
    shape = (work.images, 21, work.crop, work.crop)
    labels = torch.randint(0, 21, (shape[0], *shape[2:]), device=session.device)
    found: Figures = {}
    for layout in (torch.channels_last, torch.contiguous_format):
        logits = torch.randn(shape, device=session.device).to(memory_format=layout).requires_grad_()

        def rows(logits: Tensor = logits) -> Tensor:
            return logits.permute(0, 2, 3, 1).flatten(0, 2)

        def gradient(loss: Tensor, logits: Tensor = logits) -> object:
            return torch.autograd.grad(loss.mean(), logits)

        calls: dict[str, Callable[[], object]] = {
            "softmax": lambda z=logits: z.detach().softmax(1),  # type: ignore[misc]
            "softmax of rows": lambda r=rows: r().detach().softmax(1),  # type: ignore[misc]
            "cross-entropy and gradient": lambda z=logits, g=gradient: g(cross_entropy(z, labels)),  # type: ignore[misc]
            "the same of rows": lambda r=rows, g=gradient: g(  # type: ignore[misc]
                torch.nn.functional.cross_entropy(r(), labels.flatten(), ignore_index=255, reduction="none")
            ),
        }
        times = {}
        for name, call in calls.items():
            timed(session, call, 1, 2)
            times[name] = 1000 * statistics.median(timed(session, call, 5, 3))
        found[str(layout).removeprefix("torch.")] = times
    session.note("loss layout, ms", found)


def data_path(session: Session) -> None:
    """Images per second of our loader, with as many workers as it chooses and with 16; and training from it."""
    work = session.workload(precision="bf16")
    count, iterations = (8, 6) if session.tiny else (192, 150)
    with tempfile.TemporaryDirectory() as folder:
        samples = draw_files(Path(folder), count)
        split = StepSplit(tuple(samples), training_table(TASK, STEP, "overlapped"))
        plan = BatchSchedule(count, work.images, work.images, seed=1, step=STEP)
        found: Figures = {}
        for workers in ("auto", 16) if not session.tiny else (1,):
            settings = DataSettings(crop=work.crop, workers=workers)
            speed = _loading_speed(session, TrainingImages(split, settings), plan, iterations)
            found[f"workers {workers}"] = speed
            session.note("loader, images per second", found)
        if session.best is not None:
            found["training from files"] = _training_speed(session, session.best, split, plan, iterations // 3)
            found["training from memory"] = session.best_speed
    session.note("loader, images per second", found)


def _loading_speed(session: Session, images: TrainingImages, plan: BatchSchedule, iterations: int) -> float:
    skipped = iterations // 5
    start = time.perf_counter()
    for done, _ in enumerate(_batches(session, images, plan, skipped + iterations), start=1):
        if done == skipped:
            session.wait()
            start = time.perf_counter()
    session.wait()
    return iterations * plan.batch / (time.perf_counter() - start)


def _training_speed(
    session: Session, training: Training, split: StepSplit, plan: BatchSchedule, iterations: int
) -> float:
    images = TrainingImages(split, DataSettings(crop=training.work.crop, workers=1 if session.tiny else "auto"))
    skipped = 2 if session.tiny else 8
    start = time.perf_counter()
    batches = _batches(session, images, plan, skipped + iterations, training.work.compute.channels_last)
    for done, batch in enumerate(batches, start=1):
        training.trainer.iterate([batch])
        if done == skipped:
            session.wait()
            start = time.perf_counter()
    session.wait()
    return iterations * plan.batch / (time.perf_counter() - start)


def _batches(
    session: Session, images: TrainingImages, plan: BatchSchedule, stop: int, channels_last: bool = True
) -> Iterator[Batch]:
    loaded = training_batches(images, plan, 0, stop, pin_memory=session.device.type == "cuda")
    return on_device(loaded, session.device, channels_last=channels_last)
