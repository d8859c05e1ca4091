"""How a batch is spread, and what a machine without GPUs says."""

from __future__ import annotations

import pytest
import torch

from plopcli.devices.precision import choose_precision
from plopcli.devices.process import BatchLayout, Process, batch_layout, evaluation_batch, planned_process
from plopcli.errors import MachineError, UsageError
from plopcli.settings.sections import ComputeSettings


def test_the_layout_reads_like_a_sum() -> None:
    assert BatchLayout(24, 2, 12).describe("cuda") == "24 = 2 GPUs x 12 x 1 accumulation"
    assert BatchLayout(24, 1, 6).describe("cpu") == "24 = 1 CPU process x 6 x 4 accumulation"


def test_two_gpus_share_the_batch() -> None:
    layout = batch_layout(24, ComputeSettings(), 2)
    assert (layout.world, layout.micro, layout.accumulation) == (2, 12, 1)


@pytest.mark.parametrize(("world", "micro", "batch"), [(2, None, 25), (1, 7, 24), (2, 5, 24)])
def test_what_cannot_be_divided_is_refused(world: int, micro: int | None, batch: int) -> None:
    with pytest.raises(UsageError):
        batch_layout(batch, ComputeSettings(micro_batch=micro), world)


def test_more_gpus_than_present_is_an_error_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(MachineError, match="2 GPUs are asked for, and this machine has 0"):
        planned_process(ComputeSettings(gpus=2))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert planned_process(ComputeSettings(gpus=2)) == Process(torch.device("cuda", 0), world=2, local_world=2)


def test_processes_are_for_the_cpu() -> None:
    assert planned_process(ComputeSettings(gpus=0, processes=3)).world == 3
    with pytest.raises(UsageError, match="--processes 2 is for the CPU"):
        planned_process(ComputeSettings(gpus=1, processes=2))


def test_evaluation_batches_do_not_depend_on_the_number_of_processes() -> None:
    assert evaluation_batch(24, ComputeSettings()) == evaluation_batch(24, ComputeSettings(processes=4)) == 16
    assert evaluation_batch(8, ComputeSettings(micro_batch=2)) == 2


def test_precision_on_a_cpu() -> None:
    cpu = torch.device("cpu")
    assert choose_precision(ComputeSettings(precision="auto"), cpu).name == "float32"
    assert choose_precision(ComputeSettings(precision="bf16"), cpu).name == "bf16"
    with pytest.raises(MachineError, match="needs a GPU"):
        choose_precision(ComputeSettings(precision="fp16"), cpu)
