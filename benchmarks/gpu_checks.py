"""Sections of `python -m benchmarks.gpu` that compare what the GPU computes with what the CPU does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.evaluation import ImagesInMemory
from benchmarks.gpu_session import Session, guarded
from benchmarks.gpu_training import start_build
from benchmarks.report import Figures
from benchmarks.workload import TINY_NETWORK, TOY_NETWORK, Training, Workload, build_training, compute_of, networks
from plopcli.data.loading import LoadedBatch
from plopcli.devices.launch import launch
from plopcli.devices.precision import Precision
from plopcli.devices.process import Process
from plopcli.engine.batches import on_device
from plopcli.evaluation.measure import measure
from plopcli.losses.pseudo_labels import entropy_histogram
from plopcli.methods.plop import Plop
from plopcli.models.abn import ABN, save_memory, synchronise_statistics
from plopcli.settings.sections import DataSettings, ModelSettings

CPU = Process(torch.device("cpu"))
#: Largest difference of float32 losses, relative to the loss.
CLOSE = 1e-3


def checks(session: Session) -> None:
    """Every check; its finding says whether it passed."""
    start_build(session)
    parts: dict[str, Callable[[Session], Figures]] = {
        "losses": losses_match,
        "memory_savers": memory_savers_match,
        "fp16_overflow": overflow_is_skipped,
        "evaluation": evaluation_matches,
        "transfer": transfer_is_exact,
        "shared_norm": shared_norm,
    }
    for name, check in parts.items():
        with guarded(session, name, 40, group="checks"):
            session.note(name, check(session), group="checks")


def losses_match(session: Session) -> Figures:
    """Two float32 iterations here and on the CPU: their loss terms, and the entropies behind the thresholds."""
    found: Figures = {}
    large = ModelSettings(backbone="resnet50", pretrained=False)
    for name, network, crop in (("toy", TOY_NETWORK, 96), ("resnet50", large, 256)):
        if session.tiny:
            network, crop = TINY_NETWORK, 64
        work = Workload(network=network, compute=compute_of("cpu"), images=4, crop=crop)
        ours = build_training(replace(work, compute=compute_of(session.device.type)), session.process)
        reference = build_training(work, CPU)
        counts = [_entropies(training) for training in (ours, reference)]
        # Thresholds hang on single counts; what is compared are the losses.
        for ours_method, other in [(ours.method, reference.method)]:
            assert isinstance(ours_method, Plop)
            assert isinstance(other, Plop)
            assert ours_method.labeller is not None
            assert other.labeller is not None
            ours_method.labeller.thresholds = other.labeller.thresholds
        expected = [row["terms"] for row in (*reference.iterate(), *reference.iterate())]
        with _exact_convolutions():
            got = [row["terms"] for row in (*ours.iterate(), *ours.iterate())]
        apart = max(
            abs(got[i][term] - value) / abs(value) for i, terms in enumerate(expected) for term, value in terms.items()
        )
        found[name] = {
            "passed": apart < CLOSE,
            "largest_relative_difference": apart,
            "share_of_entropies_in_another_bin": float((counts[0] - counts[1]).abs().sum() / 2 / counts[1].sum()),
            "terms": expected[0],
        }
    return {"passed": all(part["passed"] for part in found.values()), **found}


def memory_savers_match(session: Session) -> Figures:
    """Gradients with in-place norm and with checkpointing against plain ones, on this device."""
    work = Workload(network=TINY_NETWORK if session.tiny else TOY_NETWORK, images=4, crop=64)

    def gradients(**traits: bool) -> list[Tensor]:
        training = build_training(replace(work, compute=compute_of(session.device.type, **traits)), session.process)
        with _exact_convolutions():
            training.iterate()
        return [parameter.grad for parameter in training.model.parameters() if parameter.grad is not None]

    plain = gradients()
    found: Figures = {}
    for trait in ("in_place_norm", "checkpointing"):
        other = gradients(**{trait: True})
        norm = torch.stack([gradient.norm() for gradient in plain]).norm()
        apart = torch.stack([(a - b).norm() for a, b in zip(plain, other, strict=True)]).norm()
        found[trait] = {
            "relative_difference": float(apart / norm),
            "bitwise": all(torch.equal(a, b) for a, b in zip(plain, other, strict=True)),
        }
    return {"passed": all(part["relative_difference"] < CLOSE for part in found.values()), **found}


def overflow_is_skipped(session: Session) -> Figures:
    """An fp16 iteration whose gradients overflow moves nothing, and the next one goes on with a lower scale."""
    work = Workload(network=TINY_NETWORK, compute=compute_of(session.device.type), images=4, crop=64)
    training = build_training(work, session.process)
    trainer = training.trainer
    trainer.precision = Precision("fp16", session.device)
    trainer.precision.scaler = torch.amp.GradScaler(session.device.type, init_scale=2.0**60)
    before = [parameter.detach().clone() for parameter in trainer.parameters.values()]
    first = training.iterate()[0]
    moved = any(not torch.equal(a, b) for a, b in zip(before, trainer.parameters.values(), strict=True))
    skipped, scale = "skipped" in first["diagnostics"], trainer.precision.scaler.get_scale()
    epochs_counted = trainer.schedule.last_epoch
    trainer.precision.scaler = torch.amp.GradScaler(session.device.type, init_scale=2.0)
    second = training.iterate()[0]
    goes_on = "skipped" not in second["diagnostics"] and trainer.schedule.last_epoch == 1
    return {
        "passed": skipped and not moved and scale < 2.0**60 and epochs_counted == 0 and goes_on,
        "skipped": skipped,
        "moved": moved,
        "scale": scale,
        "schedule_waited": epochs_counted == 0,
        "goes_on": goes_on,
    }


def evaluation_matches(session: Session) -> Figures:
    """Confusion matrices of the same images here and on the CPU."""
    crop = 64 if session.tiny else 128
    work = Workload(network=TINY_NETWORK if session.tiny else TOY_NETWORK, crop=crop)
    images = ImagesInMemory(8, (crop, crop), sum(work.classes), DataSettings(crop=crop, workers=0))
    counts = []
    for process in (session.process, CPU):
        model, _ = networks(replace(work, compute=compute_of(process.device.type)), process.device)
        with _exact_convolutions():
            counts.append(measure(model, images, 4, process, Precision("float32", process.device)))
    share = float(np.abs(counts[0] - counts[1]).sum() / 2 / counts[1].sum())
    return {"passed": share < CLOSE, "share_of_pixels_apart": share}


def transfer_is_exact(session: Session) -> Figures:
    """Batches from the copying stream, read while the device is busy, against those of the CPU."""
    count, size = (4, 32) if session.tiny else (40, 256)
    drawn = torch.Generator().manual_seed(0)
    loaded = [
        LoadedBatch(
            torch.randint(0, 256, (8, size, size, 3), dtype=torch.uint8, generator=drawn),
            torch.randint(0, 17, (8, size, size), dtype=torch.uint8, generator=drawn),
        )
        for _ in range(count)
    ]

    def fetched() -> Generator[LoadedBatch]:
        for pixels, labels, *_ in loaded:
            if session.device.type == "cuda":
                yield LoadedBatch(pixels.pin_memory(), labels.pin_memory())
            else:
                yield LoadedBatch(pixels.clone(), labels.clone())

    busy = torch.randn(64 if session.tiny else 4096, 64 if session.tiny else 4096, device=session.device)
    got = []
    for batch in on_device(fetched(), session.device, channels_last=True):
        # The batch is used late, and its memory is given back while copies go on.
        for _ in range(3):
            busy = (busy @ busy).tanh()
        got.append((batch.images.mul(1.0).cpu(), batch.labels.mul(1).cpu()))
    expected = [batch[:2] for batch in on_device((one for one in loaded), torch.device("cpu"), channels_last=True)]
    apart = max(float((a[0] - b[0]).abs().max()) for a, b in zip(got, expected, strict=True))
    same = all(torch.equal(a[1], b[1]) for a, b in zip(got, expected, strict=True))
    return {"passed": apart < 1e-5 and same, "largest_difference_of_pixels": apart, "labels_equal": same}


def shared_norm(session: Session) -> Figures:
    """Synchronised batch norm of two processes, on the one device and over gloo, against one process with the batch."""
    found: Figures = launch(_shared_norm, 2, session.device.type)
    return {"passed": all(apart < 1e-4 for apart in found.values()), **found}


def tests(session: Session) -> None:
    """The tests of models and losses, in this Python and with this torch."""
    folders = ["tests/losses"] if session.tiny else ["tests/models", "tests/losses"]
    root = Path(__file__).parent.parent
    # Other versions of the packages have other warnings, which are errors by default.
    command = [sys.executable, "-m", "pytest", "-m", "not slow", "-q", "-W", "default", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *folders],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=min(55, max(session.left, 1)),
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "4"},
    )
    text = (done.stdout + done.stderr).splitlines()
    session.note("tests", {"passed": done.returncode == 0, "rc": done.returncode, "tail": text[-15:]})


def _entropies(training: Training) -> Tensor:
    """Histogram of the old network's entropies, on the CPU."""
    with torch.no_grad(), _exact_convolutions():
        logits = training.old(training.batch.images).logits
    return entropy_histogram(logits, training.batch.labels, "exact", training.work.context.total).cpu()


class _exact_convolutions:  # noqa: N801
    """Convolutions in float32, not in TF32, for the time of a `with`."""

    def __enter__(self) -> None:
        self._before = torch.backends.cudnn.allow_tf32
        torch.backends.cudnn.allow_tf32 = False

    def __exit__(self, *_: object) -> None:
        torch.backends.cudnn.allow_tf32 = self._before


def _shared_norm(device_type: str) -> dict[str, float]:
    """Largest differences of output and gradients, per variant; process 0 gets those of both."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    device = torch.device(device_type)
    found: dict[str, float] = {}
    for name, in_place in (("plain", False), ("in_place", True)):
        torch.manual_seed(0)
        x, grad = torch.randn(2, 4, 8, 6, 6).unbind()
        apart = []
        results: list[list[Tensor]] = []
        for together in (False, True):
            norm = ABN(8, "leaky_relu").to(device)
            save_memory(norm, in_place)
            if together:
                synchronise_statistics(norm)
            share = slice(None) if not together else slice(2 * rank, 2 * rank + 2)
            leaf = x[share].to(device).requires_grad_()
            out = norm(leaf)
            out.backward(grad[share].to(device))
            assert norm.weight.grad is not None
            weight = norm.weight.grad.cpu()
            if together:
                dist.all_reduce(weight)
            assert leaf.grad is not None
            parts = [out.detach().cpu(), leaf.grad.cpu()]
            if not together:
                parts = [part[2 * rank : 2 * rank + 2] for part in parts]
            results.append([*parts, weight, norm.running_var.cpu()])
        apart = [float((a - b).abs().max()) for a, b in zip(*results, strict=True)]
        worst = torch.tensor(max(apart))
        dist.all_reduce(worst, dist.ReduceOp.MAX)
        found[name] = float(worst)
    dist.destroy_process_group()
    return found
