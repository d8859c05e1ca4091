"""Measuring the model of a run, after a step and within one."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from plopcli.data.loading import EvaluationImages
from plopcli.engine.pictures import show_step
from plopcli.engine.run import Run
from plopcli.evaluation.measure import measure, measure_split
from plopcli.metrics.segmentation import iou, mean, percent, step_metrics
from plopcli.models.segmenter import Segmenter
from plopcli.runs.confusion import Confusion, write_confusion
from plopcli.runs.results import StepResults


def measure_step(run: Run, step: int, model: Segmenter, trained: Mapping[str, Any]) -> StepResults:
    """Measures the model after ``step`` on the results split.

    Args:
        run: The run.
        step: The step.
        model: Its model.
        trained: What the results say about its training.
    """
    data = run.settings.data
    split = run.scenario.evaluation(step, data.results_on)
    began = time.monotonic()
    with run.log.progress(f"step {step}: {data.results_on}", "batches") as bar:
        confusion, domains = measure_split(
            model, split, data, run.evaluation_batch, run.process, run.precision, bar.update
        )
    run.status.time_left.measured(len(split), time.monotonic() - began)
    names = run.scenario.class_names[: len(confusion)]
    if run.process.is_main:
        # Before the results, which say that the step is measured.
        write_confusion(run.folder.confusion(step), Confusion(names, confusion, domains or {}))
    metrics = step_metrics(confusion, names, run.scenario.base_classes, domains)
    results = StepResults(step=step, checkpoint=f"checkpoints/step-{step}.pt", images=len(split), **metrics, **trained)
    run.events.step(results)
    with run.log.pictures("The step's pictures for TensorBoard"):
        show_step(run, step, model, confusion, names)
    run.log.say(
        f"  step {step} {data.results_on}: mIoU all {_one(results.miou.all)}, old {_one(results.miou.old)}, "
        f"new {_one(results.miou.new)}   ({len(split)} images, {data.evaluation})"
    )
    return results


def validate(run: Run, step: int, epoch: int, iteration: int, model: Segmenter) -> None:
    """Measures the model on the validation set after ``epoch`` epochs of ``step``, and leaves it in train mode.

    ``iteration`` is how many iterations of the step are done.
    """
    split = run.scenario.evaluation(step, "val")
    if run.process.world > 1 and not run.syncs_norm:
        run.process.average_statistics(model)
    images = EvaluationImages(split, run.settings.data)
    began = time.monotonic()
    confusion = measure(model, images, run.evaluation_batch, run.process, run.precision)
    run.status.time_left.measured(len(split), time.monotonic() - began)
    value = percent(mean(iou(confusion)))
    run.events.validation(step, iteration, value)
    run.log.say(f"  step {step} epoch {epoch}: val mIoU {_one(value)}")
    model.train()


def _one(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
