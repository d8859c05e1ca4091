"""Optimizer and learning-rate schedule of a step."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from plopcli.errors import UsageError
from plopcli.models.abn import freeze_statistics
from plopcli.models.segmenter import Segmenter
from plopcli.settings.sections import StepRecipe


def parts(model: Segmenter) -> dict[str, list[nn.Parameter]]:
    """Parameters by part: body, head, classifier (the newest), old (earlier classifiers)."""

    def of(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
        return [parameter for module in modules for parameter in module.parameters()]

    return {
        "body": of([model.body]),
        "head": of([model.head]),
        "classifier": of([model.cls[-1]]),
        "old": of(list(model.cls)[:-1]),
    }


def prepare_training(model: Segmenter, recipe: StepRecipe) -> None:
    """Sets what of ``model`` is trained: train mode, frozen norms, parts with learning rate 0 frozen.

    Raises:
        UsageError: Nothing is left to train.
    """
    factors = learning_rates(recipe)
    for part, parameters in parts(model).items():
        for parameter in parameters:
            parameter.requires_grad_(factors[part] > 0)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UsageError("Every part of the network has learning rate 0.", "Raise one of the recipe's lr_ factors.")
    if recipe.freeze_norm == "body":
        freeze_statistics(model.body, affine=recipe.freeze_norm_affine)
    elif recipe.freeze_norm == "all":
        freeze_statistics(model, affine=recipe.freeze_norm_affine)
    for part in ("body", "head"):
        # A frozen part would drift all the same if its running statistics moved.
        if factors[part] == 0:
            freeze_statistics(getattr(model, part))
    model.train()


def learning_rates(recipe: StepRecipe) -> dict[str, float]:
    """Initial learning rate of every part."""
    return {
        "body": recipe.lr * recipe.lr_body,
        "head": recipe.lr * recipe.lr_head,
        "classifier": recipe.lr * recipe.lr_classifier,
        "old": recipe.lr * recipe.lr_old,
    }


def build_optimizer(model: Segmenter, recipe: StepRecipe) -> torch.optim.SGD:
    """SGD with Nesterov momentum, one parameter group per trained part, weight decay on everything."""
    rates = learning_rates(recipe)
    groups = [
        {"params": [p for p in parameters if p.requires_grad], "lr": rates[part], "name": part}
        for part, parameters in parts(model).items()
    ]
    return torch.optim.SGD(
        [group for group in groups if group["params"]],
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.momentum > 0,
        weight_decay=recipe.weight_decay,
        fused=True,  # one pass over the weights in place of one per operation
    )


def rate_factor(recipe: StepRecipe, iteration: int, iterations_per_epoch: int) -> float:
    """Factor on the initial learning rate at ``iteration`` (from 0) of a step."""
    if recipe.schedule == "poly":
        done = iteration / (recipe.epochs * iterations_per_epoch)
        return float((1 - min(done, 1.0)) ** recipe.power)
    if recipe.schedule == "step":
        between = recipe.step_iterations or recipe.step_size * iterations_per_epoch
        return float(recipe.gamma ** (iteration // between))
    return 1.0


def build_schedule(
    optimizer: torch.optim.Optimizer, recipe: StepRecipe, iterations_per_epoch: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """The schedule, to be stepped after every optimizer step."""
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda iteration: rate_factor(recipe, iteration, iterations_per_epoch)
    )
