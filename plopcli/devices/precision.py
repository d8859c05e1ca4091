"""Mixed precision by `torch.amp`: where operations run in 16 bits, and the loss scaling that fp16 needs."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

import torch
from torch import Tensor, nn

from plopcli.errors import MachineError
from plopcli.settings.sections import ComputeSettings

_DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """Autocast, scaled backward and optimizer step in one precision (float32, bf16 or fp16) on a device."""

    def __init__(self, name: str, device: torch.device) -> None:
        self.name = name
        self.device = device

    @cached_property
    def scaler(self) -> torch.amp.GradScaler:
        """Created when training starts: a plan for a machine with a GPU may be made on one without."""
        return torch.amp.GradScaler(self.device.type, enabled=self.name == "fp16")

    def autocast(self) -> torch.autocast:
        """The context of every forward pass and loss."""
        return torch.autocast(self.device.type, _DTYPES[self.name], enabled=self.name != "float32")

    def backward(self, loss: Tensor) -> None:
        """Adds the (scaled) gradients of ``loss``."""
        self.scaler.scale(loss).backward()

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Divides the gradients by the loss scale, before they are read."""
        if self.scaler.is_enabled():
            self.scaler.unscale_(optimizer)

    def overflowed(self, parameters: Iterable[nn.Parameter]) -> bool:
        """Whether fp16 gradients are infinite, after `unscale`; such a step is skipped."""
        if not self.scaler.is_enabled():
            return False
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        return not bool(torch.stack([gradient.isfinite().all() for gradient in gradients]).all())

    def fresh(self) -> Precision:
        """The same precision with a new loss scale, as every step starts with."""
        return Precision(self.name, self.device)

    def skip(self) -> None:
        """Lowers the loss scale after an overflow, in place of `step`."""
        # Not by a step of the optimizer, which a fused one would take with momentum that is not initialised yet.
        self.scaler.update()

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Steps the optimizer with finite gradients; with fp16 the loss scale may rise again."""
        self.scaler.step(optimizer)
        self.scaler.update()


def choose_precision(settings: ComputeSettings, device: torch.device) -> Precision:
    """The precision asked for, or the best one of ``device``.

    Raises:
        MachineError: The device cannot compute in it.
    """
    name = settings.precision
    if name == "auto":
        if device.type != "cuda":
            name = "float32"
        else:
            name = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if name == "fp16" and device.type == "cpu":
        raise MachineError("Precision fp16 needs a GPU.", "On a CPU use --precision float32 or bf16.")
    return Precision(name, device)
