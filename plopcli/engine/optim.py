"""Optimizer and learning-rate schedule of a step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from plopcli.errors import PlopError, UsageError
from plopcli.methods.base import Method
from plopcli.models.abn import batch_norms, freeze_statistics
from plopcli.models.segmenter import Part, Segmenter
from plopcli.settings.sections import StepRecipe

#: Parts that a recipe has factors for: ``lr_PART`` and ``decay_PART``.
PARTS = ("body", "head", "classifier", "old", "extra", "method")


def prepare_training(model: Segmenter, method: Method, recipe: StepRecipe) -> None:
    """Sets what is trained: train mode, frozen norms, parts with learning rate 0 frozen, dropout.

    Args:
        model: The network.
        method: Whose parts are trained.
        recipe: The step's.

    Raises:
        UsageError: Nothing is left to train.
    """
    for name, part in method.parts(model).items():
        for parameter in part.parameters:
            parameter.requires_grad_(_rate(recipe, name, part) > 0)
    if not any(parameter.requires_grad for parameter in (*model.parameters(), *method.parameters())):
        raise UsageError("Every part of the network has learning rate 0.", "Raise one of the recipe's lr_ factors.")
    for norm in batch_norms(model):
        norm.momentum = recipe.norm_momentum
    for norm in batch_norms(model.body):
        norm.momentum = recipe.norm_momentum_body
    if recipe.freeze_norm == "body":
        freeze_statistics(model.body, affine=recipe.freeze_norm_affine)
    elif recipe.freeze_norm == "all":
        freeze_statistics(model, affine=recipe.freeze_norm_affine)
    for module in _modules(model):
        # A frozen part would drift all the same if its running statistics moved.
        if not any(parameter.requires_grad for parameter in module.parameters()):
            freeze_statistics(module)
    model.dropout = recipe.dropout
    model.train()


def _modules(model: Segmenter) -> list[nn.Module]:
    return [model.body, model.head, *model.cls, *model.cls.extra.values()]


def learning_rates(recipe: StepRecipe) -> dict[str, float]:
    """Initial learning rate of every part that recipes know."""
    return {part: recipe.lr * getattr(recipe, f"lr_{part}") for part in PARTS}


def _rate(recipe: StepRecipe, name: str, part: Part) -> float:
    return learning_rates(recipe)[part.recipe or name] * part.lr


def build_optimizer(model: Segmenter, method: Method, recipe: StepRecipe) -> torch.optim.Optimizer:
    """The recipe's optimizer, with one parameter group per trained part of network and method.

    Raises:
        PlopError: The parts are not exactly what is trained: a parameter would get gradients and never move, or move
            twice.
    """
    parts = method.parts(model)
    trained: dict[nn.Parameter, str] = {}
    for owner, module in (("model", model), ("method", method)):
        trained |= {p: f"{owner}.{name}" for name, p in module.named_parameters() if p.requires_grad}
    grouped = Counter(p for part in parts.values() for p in part.parameters if p.requires_grad)
    _check_parts(method, trained, grouped)
    groups: list[dict[str, Any]] = [
        {
            "params": [parameter for parameter in part.parameters if parameter.requires_grad],
            "lr": _rate(recipe, name, part),
            "weight_decay": recipe.weight_decay * getattr(recipe, f"decay_{part.recipe or name}") * part.weight_decay,
            "name": name,
        }
        for name, part in parts.items()
    ]
    groups = [group for group in groups if group["params"]]
    # Fused: one pass over the weights in place of one per operation.
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.lr, betas=(recipe.momentum, 0.999), fused=True)
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.momentum > 0, fused=True)


def _check_parts(method: Method, trained: Mapping[nn.Parameter, str], grouped: Counter[nn.Parameter]) -> None:
    faults = [f"{name} gets gradients and would never move" for p, name in trained.items() if p not in grouped]
    faults += [f"{trained.get(p, 'a parameter')} is in {count} parts" for p, count in grouped.items() if count > 1]
    faults += ["a parameter is neither of the network nor of the method" for p in grouped if p not in trained]
    if faults:
        raise PlopError(
            f"What method {method.settings.name} trains is not what moves: {'; '.join(faults[:3])}"
            f"{f' and {len(faults) - 3} more' if len(faults) > 3 else ''}.",
            "Method.parts must hold every trained parameter of network and method once. A module that it replaces in "
            "the network belongs to `expand`; networks are not to be kept in attributes of a method.",
        )


def rate_factor(recipe: StepRecipe, iteration: int, iterations_per_epoch: int) -> float:
    """Factor on the initial learning rate at ``iteration`` (from 0) of a step."""
    total = recipe.epochs * iterations_per_epoch
    warm = int(recipe.warmup * total)
    rising = 1.0
    if iteration < warm:
        rising = recipe.warmup_factor + (1 - recipe.warmup_factor) * iteration / warm
    if recipe.schedule == "poly":
        return rising * float((1 - min(iteration / total, 1.0)) ** recipe.power)
    if recipe.schedule == "step":
        between = recipe.step_iterations or recipe.step_size * iterations_per_epoch
        return rising * float(recipe.gamma ** (iteration // between))
    return rising


def build_schedule(
    optimizer: torch.optim.Optimizer, recipe: StepRecipe, iterations_per_epoch: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """The schedule, to be stepped after every optimizer step."""
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda iteration: rate_factor(recipe, iteration, iterations_per_epoch)
    )
