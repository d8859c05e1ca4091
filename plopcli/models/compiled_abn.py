"""ABN by the compiled kernels of its authors: the optional package inplace-abn, which `make iabn` builds.

It computes what `ABN` does and overwrites its input with its output, all that it keeps for the backward pass. It does
not support bfloat16, ReLU, torch.compile and, on the CPU, autocast and statistics over several processes.
`plopcli.engine.abn_choice` decides where it is used.
"""

from __future__ import annotations

import importlib.util
from importlib import metadata
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from plopcli.errors import first_line
from plopcli.models.abn import ABN, LEAKY_SLOPE, Activation, NormKernel, batch_norms
from plopcli.models.batch_norm import NormRule

PACKAGE = "inplace_abn"

#: What `trial` compares with, as a share of the largest value.
_TOLERANCES = {torch.float32: 1e-4, torch.float16: 2e-2}


def use_compiled(module: nn.Module, enabled: bool = True) -> None:
    """Makes the norms in ``module``, a network of `ABN` without ReLU, use the package in passes with a backward pass.

    Passes without one are unchanged: an evaluation gives the same bits however the network was trained. The package
    does not support residual sums, which take one more map.

    Raises:
        ImportError: The package is missing, or was built for another torch (also OSError).
    """
    function: NormKernel | None = _kernel() if enabled else None
    for norm in batch_norms(module):
        assert not enabled or (isinstance(norm, ABN) and norm.activation != "relu"), f"{norm} is not for {PACKAGE}"
        norm.kernel = function


def installed_version() -> str | None:
    """The version of the package; None where it is not installed."""
    try:
        return metadata.version("inplace-abn") if importlib.util.find_spec(PACKAGE) is not None else None
    except metadata.PackageNotFoundError:
        return None


def loading_problem() -> str | None:
    """Why the package cannot be loaded; None where it can."""
    if importlib.util.find_spec(PACKAGE) is None:
        return "it is not built here"
    try:
        _kernel()
    except (ImportError, OSError) as error:
        # A torch that was exchanged after the build has other symbols, or none of the libraries that it linked to.
        return f"it does not load, perhaps built for another torch ({first_line(error)})"
    return None


def problem(device: torch.device, dtype: torch.dtype = torch.float32) -> str | None:
    """Why the package cannot be used on a device; None where it loads, and computes what `ABN` does.

    Runs a small norm forward and backward, with weights of either sign, on maps of ``dtype``, float32 or float16. No
    random number is drawn.
    """
    if (found := loading_problem()) is not None:
        return found
    plain, compiled = _Trial(device, dtype), _Trial(device, dtype)
    use_compiled(compiled.norm)
    try:
        pairs = list(zip(compiled.run(), plain.run(), strict=True))
        errors = [float((a.float() - b.float()).abs().max() / b.float().abs().max()) for a, b in pairs]
    except Exception as error:  # whatever a foreign binary fails with, it is not to be used
        return f"it fails on {device} ({type(error).__name__}: {first_line(error)})"
    # Written so that NaN is a difference too.
    if not all(error <= _TOLERANCES[dtype] for error in errors):
        return f"it computes something else on {device} (off by {max(errors):.1g} of the largest value)"
    return None


class PackageState(NamedTuple):
    """Whether the package works, and a line about it."""

    works: bool
    told: str


def state() -> PackageState:
    """Whether the package is installed and works: on the GPU if there is one, else on the CPU."""
    version = installed_version()
    if version is None:
        return PackageState(False, "not built (make iabn); ABN is computed in PyTorch")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if (found := problem(device)) is not None:
        return PackageState(False, f"{version}, not usable: {found}; ABN is computed in PyTorch")
    return PackageState(True, f"{version}, works on the {'GPU' if device.type == 'cuda' else 'CPU'}")


class _Trial:
    """A norm and maps without random numbers, so that no generator advances."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.norm = ABN(4, "leaky_relu").to(device).train()
        with torch.no_grad():
            self.norm.weight.copy_(torch.linspace(-1, 1, 4))
            self.norm.bias.copy_(torch.linspace(-0.5, 0.5, 4))
        waves = torch.arange(2 * 2 * 4 * 5 * 3, dtype=torch.float64).mul(1.7).sin().to(device, dtype)
        self.x, self.grad = waves.view(2, 2, 4, 5, 3)

    @torch.enable_grad()
    def run(self) -> list[Tensor]:
        """Output, gradients of input, weight and bias, and running variance."""
        x = self.x.clone().requires_grad_()
        # Times one, because what is overwritten may not be an input of the user's own.
        out = self.norm(x * 1)
        gradients = torch.autograd.grad(out, [x, self.norm.weight, self.norm.bias], self.grad)
        return [out.detach(), *gradients, self.norm.running_var]


def _kernel() -> NormKernel:
    """The package's function as a `NormKernel`."""
    from inplace_abn.functions import InPlaceABN

    def compiled_norm(
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        rule: NormRule,
        activation: Activation,
    ) -> Tensor:
        # Its layers take the group that existed when it was imported, and would compute alone without a word; its
        # backward pass would wait for the others even where the running statistics are used.
        group: Any = rule.group.group if rule.group is not None and rule.training else None
        out: Tensor = InPlaceABN.apply(
            x,
            weight,
            bias,
            running_mean,
            running_var,
            rule.training,
            rule.momentum,
            rule.eps,
            activation,
            LEAKY_SLOPE,
            group,
        )
        return out

    return compiled_norm
