"""One step of a scenario: previous model in, trained and measured model out."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plopcli.data.loading import (
    PREPARING,
    EvaluationImages,
    Plan,
    TrainingImages,
    training_batches,
)
from plopcli.devices.precision import Precision
from plopcli.devices.process import BatchLayout, Process, evaluation_batch
from plopcli.engine.checks import training_plan, weights_digest, weights_path
from plopcli.engine.optim import build_optimizer, build_schedule, prepare_training
from plopcli.engine.profiling import WARM_UP, profiled
from plopcli.engine.recording import Recorder
from plopcli.engine.trainer import Trainer
from plopcli.engine.transfer import on_device
from plopcli.errors import MachineError, PlopError
from plopcli.evaluation.measure import measure, measure_split
from plopcli.evaluation.metrics import iou, mean, percent, step_metrics
from plopcli.methods import get_method
from plopcli.methods.base import Batch, Method, StepContext, StepPass
from plopcli.models.abn import save_memory, synchronise_statistics
from plopcli.models.body import checkpoint_activations
from plopcli.models.segmenter import Outputs, Segmenter, build_segmenter
from plopcli.models.weights import load_backbone_weights
from plopcli.reporting.events import EventWriter
from plopcli.runs.checkpoint import Checkpoint, save_checkpoint
from plopcli.runs.folder import RunFolder, RunLog
from plopcli.runs.restore import build_model, place
from plopcli.scenarios.scenario import Scenario
from plopcli.settings.sections import RunSettings, StepRecipe


@dataclass(frozen=True)
class Run:
    """Everything the steps of a run share."""

    settings: RunSettings
    scenario: Scenario
    folder: RunFolder
    log: RunLog
    events: EventWriter
    process: Process
    precision: Precision
    layout: BatchLayout

    @property
    def together(self) -> bool:
        """Whether batch norm computes its statistics over all processes."""
        return self.process.world > 1 and self.settings.compute.sync_norm


def train_step(run: Run, step: int, previous: Checkpoint | None) -> dict[str, Any]:
    """Trains ``step`` from ``previous`` (None at step 0), saves its checkpoint and measures it.

    Returns:
        The step's entry of `results.json`.

    Raises:
        PlopError: Training diverged, or a file could not be read.
    """
    context = StepContext(step, run.scenario.class_counts(step), run.scenario.shares_classes)
    model, old_model = build_models(run, context, previous)
    method = get_method(run.settings.method.name)(run.settings.method, context)
    if previous is not None:
        method.load_state_dict(previous.method, same_step=False)
    method.initialise(model, old_model)

    images = TrainingImages(run.scenario.training(step), run.settings.data)
    plan = training_plan(run.settings, run.scenario, run.layout, step, run.process.rank)
    recipe = run.settings.train.recipe(step)
    _announce(run, context, plan, recipe)
    step_pass = _step_pass(run, images, plan, old_model)
    method.before_step(step_pass)

    start = time.perf_counter()
    prepare_training(model, recipe)
    skipped = _train(run, model, old_model, method, images, plan, recipe)
    seconds = time.perf_counter() - start
    _average_statistics(run, model)
    method.after_step(model, step_pass)
    _check_weights(model, step)
    save(run, step, lambda: make_checkpoint(run, step, model, method))
    entry = {**measure_step(run, step, model), "train_seconds": seconds}
    if skipped:
        entry["skipped_iterations"] = skipped
    if report := method.report():
        entry["preparation"] = report
    return entry


def build_models(run: Run, context: StepContext, previous: Checkpoint | None) -> tuple[Segmenter, Segmenter | None]:
    """The model to train, holding the previous weights and, for new classes, a fresh classifier; the frozen previous
    model.
    """
    torch.manual_seed(int(np.random.SeedSequence((run.settings.seed, context.step)).generate_state(1)[0]))
    settings = run.settings.model
    if previous is None:
        model = build_segmenter(settings, context.classes)
        if (path := weights_path(run.settings)) is not None:
            load_backbone_weights(model, path)
        return place(model, run.process.device, run.settings.compute), None
    model = build_model(previous, run.settings)
    old_model = place(copy.deepcopy(model), run.process.device, run.settings.compute)
    if not context.shared:
        model.add_classifier(context.new)
    return place(model, run.process.device, run.settings.compute), old_model.eval().requires_grad_(False)


def make_checkpoint(
    run: Run, step: int, model: Segmenter, method: Method | None, made: Mapping[str, Any] | None = None
) -> Checkpoint:
    """The checkpoint of a finished step; ``made``, by default `made_with`, is what settings leave open."""
    task, counts = run.scenario.task, run.scenario.class_counts(step)
    return Checkpoint(
        step=step,
        classes=run.scenario.class_names[: sum(counts)],
        class_counts=list(counts),
        task_name=task.name,
        task_steps=[list(learned) for learned in task.steps],
        task_groups=[list(group) for group in task.groups],
        settings=run.settings.model_dump(mode="json"),
        model={name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()},
        method=method.state_dict() if method is not None else {},
        data_fingerprint=run.scenario.fingerprint,
        made_with=made_with(run, step) if made is None else made,
    )


def save(run: Run, step: int, make: Callable[[], Checkpoint]) -> None:
    """Writes the checkpoint of ``step``; once all processes can see it, they go on."""
    path = run.folder.checkpoint(step)
    if run.process.is_main:
        save_checkpoint(path, make())
    run.process.barrier()
    # A network file system may hide a new file for some time from those who have looked for it before.
    deadline = time.monotonic() + run.settings.compute.timeout
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.5)


def made_with(run: Run, step: int) -> dict[str, Any]:
    """What settings leave open, and yet decides about the weights of ``step``."""
    made: dict[str, Any] = {
        "precision": run.precision.name,
        "norm_batch": run.layout.micro * (run.process.world if run.together else 1),
    }
    return made | ({"weights": weights_digest(run.settings)} if step == 0 else {})


def measure_step(run: Run, step: int, model: Segmenter) -> dict[str, Any]:
    """Measures the model after ``step`` on the results split: its entry of `results.json`."""
    data = run.settings.data
    split = run.scenario.evaluation(step, data.results_on)
    with run.log.progress(f"step {step}: {data.results_on}", "batches") as bar:
        confusion, domains = measure_split(
            model, split, data, _evaluation_batch(run), run.process, run.precision, bar.update
        )
    names = run.scenario.class_names[: len(confusion)]
    metrics = step_metrics(confusion, names, run.scenario.base_classes, domains)
    run.events.step(step, metrics)
    miou = metrics["miou"]
    run.log.say(
        f"  step {step} {data.results_on}: mIoU all {_one(miou['all'])}, old {_one(miou['old'])}, "
        f"new {_one(miou['new'])}   ({len(split)} images, {data.evaluation})"
    )
    return {"step": step, "checkpoint": f"checkpoints/step-{step}.pt", "images": len(split), **metrics}


def _train(
    run: Run,
    model: Segmenter,
    old_model: Segmenter | None,
    method: Method,
    images: TrainingImages,
    plan: Plan,
    recipe: StepRecipe,
) -> int:
    """The training of a step; gives the number of iterations that fp16 made skip."""
    compute = run.settings.compute
    _apply(run, model)
    if compute.compile != "off":
        torch.compiler.reset()  # what earlier steps have compiled counts against a limit, beyond which nothing is
    optimizer = build_optimizer(model, recipe)
    schedule = build_schedule(optimizer, recipe, plan.iterations_per_epoch)
    trainer = Trainer(
        model,
        old_model,
        method,
        optimizer,
        schedule,
        run.precision.fresh(),
        run.process,
        plan.accumulation,
        None if compute.compile == "off" else compute.compile,
    )
    total = recipe.epochs * plan.iterations_per_epoch
    batches = _batches(run, images, plan, total)
    every = run.settings.train.validate_every
    stops = range(every * plan.iterations_per_epoch, total, every * plan.iterations_per_epoch) if every else ()
    trace = run.folder.profile / f"step-{plan.step}-process-{run.process.rank}"
    profiled_iterations = min(run.settings.output.profile, max(0, total - WARM_UP))
    if run.settings.output.profile > profiled_iterations:
        run.log.say(f"  only {profiled_iterations} of {total} iterations can be profiled: {WARM_UP} go to warm up")
    with (
        run.log.progress(f"step {plan.step}: train") as bar,
        profiled(trace, profiled_iterations, run.process.device) as tick,
    ):

        def show(done: int, note: str) -> None:
            bar.update(done, total, note)

        recorder = Recorder(run.folder, run.events, run.log, run.process, plan, recipe.epochs, show)
        for stop in (*stops, total):
            with _machine_errors(compute.compile):
                trainer.run(batches, stop, run.settings.output.print_every, recorder.record, tick)
            if stop != total:
                _validate(run, plan.step, stop // plan.iterations_per_epoch, model)
                model.train()
    return recorder.skipped


@contextmanager
def _machine_errors(compiler: str) -> Iterator[None]:
    """Tells what the machine cannot do as such: memory that runs out, a compiler that is missing or fails."""
    try:
        yield
    except RuntimeError as error:
        line = str(error).strip().partition("\n")[0]
        if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in line:
            raise MachineError(
                f"Memory ran out in training: {line}",
                "The total batch can stay: try --set compute.in_place_norm=true, --set compute.checkpointing=true, "
                "--precision bf16, or fewer images at a time, --set compute.micro_batch=N. --dry-run estimates what is "
                "needed. Finished steps are intact; --resume goes on after them.",
            ) from error
        if compiler == "off" or not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        raise MachineError(
            f"torch.compile ({compiler}) failed: {line}",
            "Train without it (leave --compile away, or --set compute.compile=off); --debug shows its own account.",
        ) from error


def _apply(run: Run, model: Segmenter) -> None:
    """Gives the network to train the traits of `compute` that change how it computes, not what."""
    if run.together:
        synchronise_statistics(model)
    save_memory(model, run.settings.compute.in_place_norm)
    checkpoint_activations(model, run.settings.compute.checkpointing)


def _average_statistics(run: Run, model: Segmenter) -> None:
    """Where every process kept running statistics of its own, all get the mean."""
    if run.process.world > 1 and not run.together:
        run.process.average_statistics(model)


def _check_weights(model: Segmenter, step: int) -> None:
    """Keeps a model that diverged in its very last iterations from passing for a trained one."""
    bad = [name for name, tensor in model.state_dict().items() if not bool(tensor.isfinite().all())]
    if bad:
        raise PlopError(
            f"After step {step} the weights are not finite ({bad[0]} and {len(bad) - 1} more).",
            "Use a lower learning rate (--lr, --lr-later); the checkpoints of earlier steps are intact.",
        )


def _validate(run: Run, step: int, epoch: int, model: Segmenter) -> None:
    split = run.scenario.evaluation(step, "val")
    _average_statistics(run, model)
    images = EvaluationImages(split, run.settings.data)
    confusion = measure(model, images, _evaluation_batch(run), run.process, run.precision)
    value = percent(mean(iou(confusion)))
    run.events.validation(step, epoch, value)
    run.log.say(f"  step {step} epoch {epoch}: val mIoU {_one(value)}")


def _announce(run: Run, context: StepContext, plan: Plan, recipe: StepRecipe) -> None:
    run.log.say(
        f"Step {context.step} of {run.scenario.steps - 1}: {', '.join(run.scenario.learned(context.step))}   "
        f"({plan.images} images, {recipe.epochs} epochs x {plan.iterations_per_epoch} iterations, lr {recipe.lr:g})",
        "bold",
    )


def _step_pass(run: Run, images: TrainingImages, plan: Plan, old_model: Segmenter | None) -> StepPass:
    preparing = Plan(plan.images, plan.batch, plan.micro_batch, plan.seed, plan.step, PREPARING, plan.rank, plan.world)

    def batches() -> Iterator[Batch]:
        return _batches(run, images, preparing, preparing.iterations_per_epoch)

    def old_outputs(pictures: Tensor) -> Outputs:
        assert old_model is not None, "step 0 has no old model"
        with torch.no_grad(), run.precision.autocast():
            outputs: Outputs = old_model(pictures)
            return outputs

    return StepPass(batches, old_outputs, run.process.sum)


def _batches(run: Run, images: TrainingImages, plan: Plan, stop: int) -> Iterator[Batch]:
    """Micro-batches of iterations 0 to ``stop`` on the device of this process."""
    loaded = training_batches(
        images, plan, 0, stop, pin_memory=run.process.device.type == "cuda", processes=run.process.local_world
    )
    return on_device(loaded, run.process.device, channels_last=run.settings.compute.channels_last)


def _evaluation_batch(run: Run) -> int:
    return evaluation_batch(run.settings.train.batch, run.settings.compute)


def _one(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
