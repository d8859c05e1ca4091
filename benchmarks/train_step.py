"""An iteration of the training core against the work that it cannot do without, in interleaved pairs.

Candidates, each with a network of its own; they share the frozen one and the batch:

plop
    `Trainer.iterate`, as `plop` trains; its loss terms are read at the end of every timed call.
bare
    The model work alone, with the same traits: forward passes of both networks (with taps where the method uses them),
    upsampling, cross-entropy, backward pass, SGD; no pseudo-labels, no distillation, no engine.
loop
    Methods plop and ft: the same mathematics by the same loss functions in a loop written by hand, without the engine.
usual
    Where traits (precision, layout, compile, in-place norm, checkpointing) are not the usual ones: `Trainer.iterate`
    with float32, channels_last and none of them.
"""

from __future__ import annotations

import argparse
import gc
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.report import Benchmark, Figures, interleaved, medians, ratios, spread, table
from benchmarks.workload import (
    RECIPE,
    TINY_OPTIONS,
    TRAINABLE,
    Training,
    Workload,
    add_workload_options,
    build_training,
    compute_of,
    network_of,
    networks,
)
from plopcli.data.batches import Batch
from plopcli.devices.precision import choose_precision
from plopcli.devices.process import Process, this_process
from plopcli.engine.optim import build_optimizer, prepare_training
from plopcli.losses.classification import IGNORED, cross_entropy
from plopcli.losses.pod import match_logits, pod_terms
from plopcli.losses.pseudo_labels import adaptive_factor, pseudo_label
from plopcli.methods.base import Method
from plopcli.methods.plop import Plop
from plopcli.models.segmenter import Outputs
from plopcli.settings.sections import ComputeSettings

Loss = Callable[[Batch, Outputs, Outputs | None], Tensor]


def plain_loop(training: Training, loss: Loss, iterations: int = 1) -> Callable[[], float]:
    """Iterations without the engine: the passes that the method needs, ``loss``, SGD. A call gives the last loss.

    Args:
        training: Whose weights it starts from; the frozen network and the batch are the very same.
        loss: Of batch, new and old outputs.
        iterations: Of a call.
    """
    work, process, batch, old = training.work, training.process, training.batch, training.old
    model, _ = networks(work, process.device)
    model.load_state_dict(training.model.state_dict())
    bare = Method(training.method.settings, training.method.context)
    prepare_training(model, bare, RECIPE)
    optimizer = build_optimizer(model, bare, RECIPE)
    precision = choose_precision(work.compute, process.device)
    taps, uses_old = training.method.uses_features, training.method.uses_old_model
    run, run_old = model, old
    if work.compute.compile != "off":
        run = torch.compile(model, backend=work.compute.compile, dynamic=False)  # type: ignore[assignment]
        run_old = torch.compile(old, backend=work.compute.compile, dynamic=False)  # type: ignore[assignment]

    def iterate() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with precision.autocast():
            before = None
            if uses_old:
                with torch.no_grad():
                    before = run_old(batch.images, features=taps)
            value = loss(batch, run(batch.images, features=taps), before)
        precision.backward(value)
        precision.step(optimizer)
        return value

    def call() -> float:
        for _ in range(iterations):
            value = iterate()
        return value.item()  # waits for the device

    return call


def bare_loss(batch: Batch, new: Outputs, old: Outputs | None) -> Tensor:
    """Cross-entropy alone."""
    return F.cross_entropy(new.logits, batch.labels, ignore_index=IGNORED)


def loss_by_hand(method: Method) -> Loss | None:
    """The loss of ``method`` by default, written out; None where nobody has."""
    if isinstance(method, Plop):
        return _plop_by_hand(method)
    if method.settings.name == "ft":
        return lambda batch, new, old: cross_entropy(new.logits, batch.labels).mean()
    return None


def _plop_by_hand(method: Plop) -> Loss:
    context, settings = method.context, method.settings
    assert method.thresholds is not None
    thresholds = method.thresholds
    schedule = math.sqrt(context.total / context.new)
    factors = [schedule * factor for factor in (*[settings.pod_factor] * 5, settings.pod_logits_factor)]

    def loss(batch: Batch, new: Outputs, old: Outputs | None) -> Tensor:
        assert old is not None
        pseudo = pseudo_label(old.logits, batch.labels, thresholds, settings.estimator)
        weights = adaptive_factor(pseudo, settings.adaptive_without_background)
        classification = (cross_entropy(new.logits, pseudo.labels) * weights[:, None, None]).mean()
        maps = [*new.features, match_logits(new.small, context.old, "sum")]
        return classification + pod_terms(maps, [*old.features, old.small], factors, settings.pod_scales).sum()

    return loss


def measure_case(
    work: Workload,
    process: Process,
    pairs: int,
    warmup: int,
    seconds: float | None,
    iterations: int = 1,
    usual: ComputeSettings | None = None,
) -> Figures:
    """Times of all candidates for one workload, and the ratios of the first to the others.

    Args:
        work: The workload.
        process: Where it is computed.
        pairs: Timed rounds.
        warmup: Rounds before that.
        seconds: After which no further round begins.
        iterations: In a timed call.
        usual: Traits of one more candidate, where the workload's differ.
    """
    torch._dynamo.reset()
    training = build_training(work, process)
    calls: dict[str, Callable[[], object]] = {
        "plop": partial(training.iterate, iterations),
        "bare": plain_loop(training, bare_loss, iterations),
    }
    if (loss := loss_by_hand(training.method)) is not None:
        calls["loop"] = plain_loop(training, loss, iterations)
    if usual is not None and work.compute != usual:
        calls["usual"] = partial(build_training(replace(work, compute=usual), process).iterate, iterations)
    times = {
        name: [value / iterations for value in values]
        for name, values in interleaved(calls, pairs, warmup, seconds).items()
    }
    return {
        "method": work.method,
        "backbone": work.network.backbone,
        "images": work.images,
        "crop": work.crop,
        "traits": traits_of(work.compute),
        "pairs": len(times["plop"]),
        "seconds": medians(times),
        "images_per_second": work.images / medians(times)["plop"],
        **{f"plop_over_{name}": ratios(times, "plop", name) for name in calls if name != "plop"},
        "all_seconds": times,
    }


def traits_of(compute: ComputeSettings) -> dict[str, object]:
    """What of ``compute`` changes how an iteration is computed."""
    names = {"precision", "channels_last", "compile", "in_place_norm", "checkpointing"}
    return compute.model_dump(include=names)


def describe(traits: dict[str, object]) -> str:
    """Traits for people: ``bf16, contiguous, inductor``."""
    parts = [str(traits["precision"]), "channels_last" if traits["channels_last"] else "contiguous"]
    parts += [str(traits["compile"])] if traits["compile"] != "off" else []
    parts += [name.replace("_", " ") for name in ("in_place_norm", "checkpointing") if traits[name]]
    return ", ".join(parts)


def _cases(chosen: argparse.Namespace) -> Iterator[Workload]:
    lists = (
        TRAINABLE if "all" in chosen.method else chosen.method,
        chosen.precision,
        chosen.layout,
        chosen.compile,
        chosen.in_place_norm,
        chosen.checkpointing,
    )
    for method, precision, layout, compiler, in_place, checkpointing in product(*lists):
        compute = compute_of(
            chosen.device,
            precision=precision,
            channels_last=layout == "channels_last",
            compile=compiler,
            in_place_norm=in_place == "on",
            checkpointing=checkpointing == "on",
        )
        yield Workload(method, network_of(chosen), compute, chosen.images, chosen.crop)


def measure(chosen: argparse.Namespace) -> Figures:
    cases = []
    workloads = list(_cases(chosen))
    share = None if chosen.seconds is None else chosen.seconds / len(workloads)
    for work in workloads:
        with this_process(work.compute) as process:
            usual = compute_of(chosen.device)
            cases.append(measure_case(work, process, chosen.pairs, chosen.warmup, share, chosen.iterations, usual))
        gc.collect()
    return {"cases": cases}


def show(figures: Figures) -> str:
    rows = []
    for case in figures["cases"]:
        given = {name.removeprefix("plop_over_"): spread(case[name]) for name in case if name.startswith("plop_over")}
        others = [given.get(name) for name in ("bare", "loop", "usual")]
        rows.append([f"{case['method']}, {describe(case['traits'])}", case["seconds"]["plop"], *others, case["pairs"]])
    first = figures["cases"][0]
    return (
        f"{first['backbone']}, {first['images']} images of {first['crop']}; ratios: median (min to max) of the pairs\n"
        + table(["iteration", "seconds", "/ bare", "/ loop", "/ usual", "pairs"], rows)
    )


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--method", nargs="+", choices=(*TRAINABLE, "all"), default=["plop"])
    add_workload_options(parser)
    parser.add_argument("--precision", nargs="+", choices=("float32", "bf16", "fp16"), default=["float32"])
    parser.add_argument("--layout", nargs="+", choices=("channels_last", "contiguous"), default=["channels_last"])
    parser.add_argument("--compile", nargs="+", choices=("off", "aot_eager", "inductor"), default=["off"])
    for trait in ("--in-place-norm", "--checkpointing"):
        parser.add_argument(trait, nargs="+", choices=("off", "on"), default=["off"])
    parser.add_argument("--iterations", type=int, default=1, help="in a timed call, which ends by reading the losses")
    parser.add_argument("--pairs", type=int, default=8, help="timed rounds; default: %(default)s")
    parser.add_argument("--warmup", type=int, default=2, help="rounds before that; default: %(default)s")
    parser.add_argument("--seconds", type=float, help="begin no further round after that long; at least 3 are made")


BENCHMARK = Benchmark(
    "a training iteration against the bare model work and a loop written by hand; every list of options multiplies",
    options,
    measure,
    show,
    brief=("--seconds", "170"),
    tiny=(*TINY_OPTIONS, "--pairs", "3", "--warmup", "1"),
)
