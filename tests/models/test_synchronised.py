"""Statistics over two real processes against one process that sees the whole batch."""

from __future__ import annotations

import copy
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import start_processes
from torch.nn.parallel import DistributedDataParallel

from plopcli.models.abn import NORMS, BatchNormActivation, freeze_statistics, save_memory, synchronise_statistics
from plopcli.models.batch_norm import StatisticsGroup
from plopcli.models.encoder import checkpoint_activations
from plopcli.models.segmenter import build_segmenter
from plopcli.settings.sections import ModelSettings


class Case(NamedTuple):
    norm: str
    activation: str
    channels_last: bool
    in_place: bool
    shares: tuple[int, int]
    side: int = 5

    def __str__(self) -> str:
        layout = "channels-last" if self.channels_last else "contiguous"
        kind = "in-place" if self.in_place else "plain"
        return f"{self.norm}-{self.activation}-{layout}-{kind}-{self.shares[0]}+{self.shares[1]}-side{self.side}"

    def build(self) -> BatchNormActivation:
        torch.manual_seed(1)
        norm = NORMS[self.norm](6, self.activation).double()
        with torch.no_grad():
            norm.weight.copy_(torch.linspace(-1, 1, 6))
            norm.bias.normal_()
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
        return norm

    def batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Maps with a large mean, and the gradient of the output."""
        torch.manual_seed(2)
        maps, grad = 100 + 3 * torch.randn(2, sum(self.shares), 6, self.side, self.side, dtype=torch.float64)
        # Each share has a mean of its own.
        maps[: self.shares[0]] += 20
        return maps, grad - 100

    def run(self, norm: BatchNormActivation, maps: torch.Tensor, grad: torch.Tensor) -> dict[str, Any]:
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        x = maps.contiguous(memory_format=layout).requires_grad_()
        out = norm(x)
        out.backward(grad)
        assert out.stride() == x.stride()
        results = {"out": out.detach(), "x": x.grad, "weight": norm.weight.grad, "bias": norm.bias.grad}
        return results | {name: buffer.clone() for name, buffer in norm.named_buffers()}


CASES = [
    *(
        Case(norm, activation, last, False, (3, 1))
        for norm in ("abn", "bn")
        for activation in ("leaky_relu", "identity")
        for last in (False, True)
    ),
    *(Case("abn", activation, last, True, (1, 3)) for activation in ("leaky_relu", "identity") for last in (0, 1)),
    Case("bn", "relu", False, False, (2, 2)),
    Case("abn", "leaky_relu", False, False, (1, 1), side=1),
    Case("abn", "leaky_relu", False, True, (1, 1), side=1),
]

NETWORKS = {"plain": (False, False), "checkpointed": (False, True), "in-place": (True, False), "both": (True, True)}


def share(tensor: torch.Tensor, shares: tuple[int, int], rank: int) -> torch.Tensor:
    return tensor.split(list(shares))[rank]


def network() -> nn.Module:
    torch.manual_seed(3)
    settings = ModelSettings(backbone="resnet18", width=8, head_channels=8)
    return build_segmenter(settings, (3,)).double().train()


def images() -> torch.Tensor:
    torch.manual_seed(4)
    return torch.randn(2, 3, 64, 64, dtype=torch.float64)


def losses(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """One loss per image."""
    out = model(batch, features=True)
    return torch.stack([t.square().mean((1, 2, 3)) for t in (out.logits, *out.features)]).sum(0)


def train(model: nn.Module, batch: torch.Tensor) -> dict[str, Any]:
    """Two iterations, with the mean over the batch as the loss."""
    wrapped = DistributedDataParallel(model) if dist.is_initialized() else model
    seen = []
    for _ in range(2):
        loss = losses(wrapped, batch).mean()
        loss.backward()
        seen.append(loss.detach())
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {"losses": torch.stack(seen)} | gradients | dict(model.named_buffers())


def half_precision() -> tuple[torch.Tensor, torch.Tensor]:
    """Maps whose squares leave no digits for the variance, and the gradient of the output."""
    torch.manual_seed(5)
    maps, grad = torch.randn(2, 2, 6, 32, 32).bfloat16()
    return 300 + 4 * maps, grad


def alone(rank: int) -> None:
    """Norms that must not wait for the other process, run here only; others that would, were they trained."""
    if rank == 1:
        return
    model = network()
    synchronise_statistics(model)
    model.eval()(images()[:1])
    freeze_statistics(model)
    losses(model.train(), images()[:1]).sum().backward()


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    results: dict[str, Any] = {}
    for case in CASES:
        norm = case.build()
        norm.in_place = case.in_place
        synchronise_statistics(norm)
        results[str(case)] = case.run(norm, *(share(tensor, case.shares, rank) for tensor in case.batch()))
    for name, (in_place, checkpointing) in NETWORKS.items():
        model = network()
        synchronise_statistics(model, dist.group.WORLD)
        save_memory(model, in_place)
        checkpoint_activations(model, checkpointing)
        results[name] = train(model, images()[rank : rank + 1])
    alone(rank)
    # A model that is copied goes on with the same processes, and none of them is in its state.
    model = copy.deepcopy(model)
    results["copied"] = losses(model, images()[rank : rank + 1]).detach()
    results["state"] = list(model.state_dict())
    for in_place in (False, True):
        norm = CASES[0].build().float()
        norm.in_place = in_place
        synchronise_statistics(norm)
        maps = [tensor[rank : rank + 1] for tensor in half_precision()]
        results[f"half {in_place}"] = CASES[0].run(norm, *maps)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes computed, on one share each."""
    folder: Path = tmp_path_factory.mktemp("processes")
    start_processes(work, (str(folder),), nprocs=2, start_method="spawn")
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def close(found: torch.Tensor, wanted: torch.Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_two_processes_compute_what_one_does(results: list[dict[str, Any]], case: Case) -> None:
    whole = case.run(case.build(), *case.batch())
    found = [result[str(case)] for result in results]
    for name, wanted in whole.items():
        if name in ("out", "x"):
            close(torch.cat([f[name] for f in found]), wanted)
        elif name in ("weight", "bias"):
            close(found[0][name] + found[1][name], wanted)
        else:
            for f in found:
                close(f[name], wanted)


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_network_learns_from_one_image_per_process(results: list[dict[str, Any]], kind: str) -> None:
    whole = train(network(), images())
    close((results[0][kind]["losses"] + results[1][kind]["losses"]) / 2, whole.pop("losses"))
    for result in results:
        for name, wanted in whole.items():
            # An inverted map loses a few of the 16 digits.
            close(result[kind][name], wanted, 1e-7 if kind in ("in-place", "both") and "." in name else 1e-10)
    assert {int(value) for name, value in results[0][kind].items() if name.endswith("num_batches_tracked")} == {2}


def test_copies_share_the_processes_and_state_has_none(results: list[dict[str, Any]]) -> None:
    model = network()
    train(model, images())
    close(torch.cat([result["copied"] for result in results]), losses(model, images()).detach(), 1e-7)
    assert results[0]["state"] == list(model.state_dict())


@pytest.mark.parametrize("in_place", [False, True])
def test_half_precision_takes_its_statistics_in_single(results: list[dict[str, Any]], in_place: bool) -> None:
    whole = CASES[0].run(CASES[0].build(), *(tensor.double() for tensor in half_precision()))
    found = [result[f"half {in_place}"] for result in results]
    for name in ("out", "x"):
        maps = torch.cat([f[name] for f in found])
        assert maps.dtype == torch.bfloat16
        assert (maps - whole[name]).abs().max() < 0.02 * whole[name].abs().max()
    for name in ("weight", "bias"):
        total = found[0][name] + found[1][name]
        assert (total - whole[name]).abs().max() < 0.02 * whole[name].abs().max()
    for f in found:
        for name in ("running_mean", "running_var"):
            torch.testing.assert_close(f[name], whole[name].float(), rtol=1e-5, atol=1e-5)


def test_one_process_has_nothing_to_share(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        assert StatisticsGroup(None).size == 1
        model = network()
        synchronise_statistics(model)
    finally:
        dist.destroy_process_group()
    assert {norm.group for norm in model.modules() if isinstance(norm, BatchNormActivation)} == {None}
