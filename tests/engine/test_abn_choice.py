"""Which implementation of ABN a run gets, what is refused, and where it is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from running import run_scenario

from plopcli.devices.precision import Precision
from plopcli.devices.process import Process
from plopcli.engine import abn_choice
from plopcli.engine.abn_choice import choose_abn
from plopcli.engine.scenario_run import plan_scenario
from plopcli.errors import MachineError, UsageError
from plopcli.models import compiled_abn
from plopcli.models.abn import activate
from plopcli.reporting.run_tables import step_table
from plopcli.resolution.layers import Resolved
from plopcli.runs.results import Results

Make = Callable[..., Resolved]

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def precision(name: str) -> Precision:
    made = Precision("float32", CPU)
    made.name = name
    return made


@pytest.fixture
def works(monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.device, torch.dtype]]:
    """As if the package were built and worked anywhere; gives what was tried."""
    tried: list[tuple[torch.device, torch.dtype]] = []
    monkeypatch.setattr(abn_choice, "problem", lambda *on: tried.append(on))
    monkeypatch.setattr(abn_choice, "loading_problem", lambda: None)
    return tried


@pytest.mark.parametrize(
    ("device", "world", "bits", "changes", "wanted", "told"),
    [
        (CPU, 1, "float32", {}, "pytorch", "inplace_abn is for GPUs"),
        (GPU, 1, "float32", {}, "inplace_abn", "a trial on this GPU gave the same"),
        (GPU, 1, "fp16", {}, "inplace_abn", "less memory"),
        (GPU, 1, "bf16", {}, "pytorch", "no bfloat16"),
        (GPU, 2, "fp16", {}, "pytorch", "several processes"),
        (GPU, 1, "fp16", {"compute__compile": "inductor"}, "pytorch", "torch.compile"),
        (GPU, 1, "fp16", {"compute__in_place_norm": "true"}, "pytorch", "compute.in_place_norm"),
        (GPU, 1, "fp16", {"model__activation": "relu"}, "pytorch", "ReLU"),
        (GPU, 1, "fp16", {"model__norm": "bn", "model__activation": "relu"}, "plain", "plain batch norm and relu"),
        (GPU, 1, "fp16", {"compute__abn": "pytorch"}, "pytorch", "ABN in PyTorch"),
        (GPU, 1, "fp16", {"compute__abn": "inplace_abn"}, "inplace_abn", "compiled inplace_abn"),
        (GPU, 2, "fp16", {"compute__abn": "inplace_abn"}, "inplace_abn", "compiled inplace_abn"),
        (CPU, 1, "float32", {"compute__abn": "inplace_abn"}, "inplace_abn", "compiled inplace_abn"),
        (
            CPU,
            2,
            "float32",
            {"compute__abn": "inplace_abn", "compute__sync_norm": "false"},
            "inplace_abn",
            "compiled inplace_abn",
        ),
    ],
)
def test_the_best_that_works(tiny: Make, works, device, world, bits, changes, wanted, told) -> None:
    settings = tiny(method__name="ft", **changes).settings
    choice = choose_abn(settings, Process(device, world=world), precision(bits))
    assert choice.implementation == wanted
    assert told in choice.describe()
    # Several GPU processes are tried in each of them, not by whoever starts them.
    assert bool(works) == (wanted == "inplace_abn" and not (device is GPU and world > 1))
    if works:
        assert works == [(device, torch.float16 if bits == "fp16" else torch.float32)]


@pytest.mark.parametrize("where", [CPU, GPU])
def test_what_does_not_work_is_left_out_by_auto_and_refused_when_asked_for(tiny: Make, monkeypatch, where) -> None:
    monkeypatch.setattr(abn_choice, "problem", lambda *on: "it is not built here")
    choice = choose_abn(tiny(method__name="ft").settings, Process(where), precision("float32"))
    assert choice.implementation == "pytorch"
    assert ("not built" in choice.reason) == (where is GPU)
    asked = tiny(method__name="ft", compute__abn="inplace_abn").settings
    with pytest.raises(MachineError, match=r"not built here[\s\S]*make iabn[\s\S]*compute\.abn=auto"):
        choose_abn(asked, Process(where), precision("float32"))


@pytest.mark.parametrize(
    ("device", "world", "bits", "changes", "why"),
    [
        (GPU, 1, "bf16", {}, r"no bfloat16[\s\S]*--precision fp16 or float32"),
        (CPU, 1, "bf16", {}, r"autocast on the CPU[\s\S]*--precision float32"),
        (CPU, 1, "float32", {"compute__compile": "aot_eager"}, r"torch\.compile[\s\S]*leave --compile away"),
        (CPU, 1, "float32", {"compute__in_place_norm": "true"}, r"in_place_norm[\s\S]*one of the two"),
        (CPU, 1, "float32", {"model__activation": "relu"}, r"ReLU[\s\S]*model\.activation=leaky_relu"),
        (CPU, 1, "float32", {"model__norm": "bn"}, r"plain batch norm[\s\S]*model\.norm=abn"),
        (CPU, 2, "float32", {}, r"synchronise[\s\S]*one process, or set compute\.sync_norm=false"),
        (
            CPU,
            2,
            "bf16",
            {"compute__compile": "inductor"},
            r"autocast.*torch\.compile.*synchronise[\s\S]*--precision float32.*--compile.*sync_norm",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_every_remedy(tiny: Make, works, device, world, bits, changes, why) -> None:
    settings = tiny(method__name="ft", compute__abn="inplace_abn", **changes).settings
    with pytest.raises(UsageError, match=why):
        choose_abn(settings, Process(device, world=world), precision(bits))
    assert not works


@pytest.mark.parametrize(
    ("changes", "error"),
    [({"compute__precision": "bf16"}, UsageError), ({"compute__compile": "aot_eager"}, UsageError), ({}, MachineError)],
)
def test_a_run_is_refused_before_anything_is_written(
    tiny: Make, tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch, changes, error
) -> None:
    monkeypatch.setattr(compiled_abn, "loading_problem", lambda: "it is not built here")
    with pytest.raises(error, match=r"compute\.abn = inplace_abn cannot be used"):
        run_scenario(tiny(method__name="ft", compute__abn="inplace_abn", **changes), console=quiet)
    assert not (tmp_path / "run").exists()


def test_a_run_tells_what_computes_its_norms(tiny: Make, tmp_path: Path, quiet: Console) -> None:
    run_scenario(tiny(method__name="ft"), console=quiet)
    run = tmp_path / "run"
    sentence = "ABN in PyTorch (auto: inplace_abn is for GPUs), statistics over the 8 images of a forward pass"
    assert f"batch norm: {sentence}" in (run / "log.txt").read_text()
    stamp = json.loads((run / "environment.json").read_text())
    assert stamp["abn"] == {"implementation": "pytorch", "reason": "auto: inplace_abn is for GPUs"}
    assert stamp["inplace_abn"] == compiled_abn.state().told
    results = Results.model_validate(json.loads((run / "results.json").read_text()))
    assert results.batch_norm == sentence
    assert sentence in str(step_table(results).caption)


def _losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.skipif(compiled_abn.loading_problem() is not None, reason="inplace-abn is not built: `make iabn`")
def test_a_run_by_the_package_learns_the_same(tiny: Make, tmp_path: Path, quiet: Console, processes: int) -> None:
    changes: dict[str, Any] = {"method__name": "plop"}
    changes |= {"compute__gpus": 0, "compute__processes": processes, "compute__sync_norm": processes == 1}
    for abn in ("pytorch", "inplace_abn"):
        run_scenario(tiny(run=tmp_path / abn, compute__abn=abn, **changes), console=quiet)
    ours, theirs = _losses(tmp_path / "pytorch"), _losses(tmp_path / "inplace_abn")
    assert theirs[:2] == pytest.approx(ours[:2], rel=1e-3)
    assert theirs != ours, "the package has not computed anything"
    log = (tmp_path / "inplace_abn" / "log.txt").read_text()
    assert "batch norm: ABN by the compiled inplace_abn 1." in log
    assert ("NOT synchronised" in log) == (processes == 2)


def test_the_choice_reaches_the_trained_network(
    tiny: Make, tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch, works
) -> None:
    """The package's part is played by torch's kernels: a run calls them in training, and computes the same."""
    calls: list[bool] = []

    def kernel(x, weight, bias, running_mean, running_var, rule, activation):
        calls.append(rule.training)
        scale = weight.abs() + rule.eps
        statistics = (running_mean, running_var)
        out = torch.nn.functional.batch_norm(x, *statistics, scale, bias, rule.training, rule.momentum, rule.eps)
        return activate(out, activation, in_place=False)

    monkeypatch.setattr(compiled_abn, "_kernel", lambda: kernel)
    # The stamp of a run tries the package where it is built.
    monkeypatch.setattr(compiled_abn, "installed_version", lambda: None)
    for abn in ("pytorch", "inplace_abn"):
        changes = {"compute__abn": abn, "train__later__freeze_norm": "all"}
        run_scenario(tiny(run=tmp_path / abn, method__name="plop", **changes), console=quiet)
        assert bool(calls) == (abn == "inplace_abn")
    assert set(calls) == {True, False}, "batches' statistics in step 0, frozen norms in step 1"
    assert _losses(tmp_path / "inplace_abn") == pytest.approx(_losses(tmp_path / "pytorch"), rel=1e-5)


def test_a_dry_run_needs_no_package_and_tells_its_memory(tiny: Make) -> None:
    plans = {abn: plan_scenario(tiny(method__name="ft", compute__abn=abn)) for abn in ("pytorch", "inplace_abn")}
    assert plans["inplace_abn"]["memory_bytes"]["activations"] < plans["pytorch"]["memory_bytes"]["activations"]
    assert "compiled inplace_abn" in plans["inplace_abn"]["norms"]
    with pytest.raises(UsageError, match="refuses autocast"):
        plan_scenario(tiny(method__name="ft", compute__abn="inplace_abn", compute__precision="bf16"))
