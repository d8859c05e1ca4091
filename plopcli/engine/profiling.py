"""Where the time of training goes: torch's profiler over some iterations of a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from plopcli.files.atomic import write_atomic

#: Iterations before the first that is profiled: the first of a process are many times slower than the rest.
WARM_UP = 3
_ROWS = 25


@contextmanager
def profiled(path: Path, iterations: int, device: torch.device) -> Iterator[Callable[[], None]]:
    """Profiles training; the function it gives is to be called after every iteration.

    Args:
        path: Where the results go, without suffix: a trace for Perfetto or chrome://tracing (``.json``) and a table of
            the largest costs (``.txt``).
        iterations: How many to profile, after `WARM_UP`; 0 profiles none.
        device: Whose time sorts the table.
    """
    if iterations == 0:
        yield lambda: None
        return
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    path.parent.mkdir(parents=True, exist_ok=True)

    def write(done: profile) -> None:
        done.export_chrome_trace(str(path.with_suffix(".json")))
        own_time = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
        table = done.key_averages().table(sort_by=own_time, row_limit=_ROWS, max_name_column_width=60)
        write_atomic(path.with_suffix(".txt"), table, durable=False)

    waiting = schedule(wait=max(WARM_UP - 1, 0), warmup=1, active=iterations, repeat=1)
    with profile(activities=activities, schedule=waiting, on_trace_ready=write, profile_memory=True) as profiler:
        yield profiler.step
