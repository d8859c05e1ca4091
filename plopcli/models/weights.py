"""ImageNet weights for the backbone, from files in any of three naming schemes."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from torch import Tensor

from plopcli.errors import DataError
from plopcli.files.untrusted import read_untrusted
from plopcli.models.abn import ABN, Activation
from plopcli.models.resnet import ResNet
from plopcli.models.segmenter import Segmenter

logger = logging.getLogger(__name__)

#: Names that a message lists before it stops.
LISTED = 4


class Scheme(NamedTuple):
    """A naming scheme of weight files.

    Attributes:
        title: Description of such a file for messages.
        telltale: A name that every such file holds.
        rename: The backbone's own name of a tensor; None for a tensor that it does not use.
        norm: The `model.norm` that the weights were trained with.
        activation: The `model.activation` likewise; None where there is no choice.
    """

    title: str
    telltale: str
    rename: Callable[[str], str | None]
    norm: Literal["abn", "bn"]
    activation: Activation | None


def _from_torchvision_resnet(name: str) -> str | None:
    if name.startswith("fc."):
        return None
    block = re.fullmatch(r"layer(\d)\.(\d+)\.(.+)", name)
    if block is None:
        return f"mod1.{name}"
    stage, index, rest = int(block[1]), int(block[2]), block[3]
    for theirs, ours in (("downsample.0.", "proj_conv."), ("downsample.1.", "proj_bn.")):
        if rest.startswith(theirs):
            return f"mod{stage + 1}.block{index + 1}.{ours}{rest.removeprefix(theirs)}"
    return f"mod{stage + 1}.block{index + 1}.convs.{rest}"


def _but(*prefixes: str) -> Callable[[str], str | None]:
    return lambda name: None if name.startswith(prefixes) else name


SCHEMES = (
    Scheme("an In-Place ABN ResNet", "mod1.conv1.weight", _but("classifier."), "abn", "leaky_relu"),
    Scheme("a torchvision ResNet", "layer1.0.conv1.weight", _from_torchvision_resnet, "bn", "relu"),
    # features.18 only feeds ImageNet's classifier.
    Scheme("a torchvision MobileNetV2", "features.0.0.weight", _but("classifier.", "features.18."), "bn", None),
)


def default_weights_path(backbone: str, data_root: Path) -> Path:
    """Where `plop download weights` puts the ImageNet weights of a backbone."""
    iabn = backbone in ("resnet50", "resnet101")
    return data_root / "weights" / (f"{backbone}_iabn_sync.pth.tar" if iabn else f"{backbone}.pth")


def load_backbone_weights(model: Segmenter, path: Path) -> None:
    """Fills ``model.body`` from a file with ImageNet weights; head and classifiers are unchanged.

    Supports the In-Place ABN files of the papers (``{"state_dict": ...}`` or the bare state dict, with or without
    ``module.`` before every name) and torchvision's ResNets and MobileNetV2. The weights of their classifiers are
    ignored. Old files lack the counters ``num_batches_tracked``, which nothing is computed from.

    Raises:
        DataError: The file is missing, broken, needs code to be loaded, or does not hold exactly the tensors of this
            backbone. The model is then unchanged.
    """
    renamed, scheme = backbone_tensors(model, path)
    model.body.load_state_dict(model.body.state_dict() | renamed)
    remedies = _remedies(model, scheme, renamed)
    if remedies:
        logger.warning(
            "%s is for another norm or activation than the network has; what it was trained to compute needs %s.",
            path,
            " ".join(f"--set {remedy}" for remedy in remedies),
        )


def backbone_tensors(model: Segmenter, path: Path) -> tuple[dict[str, Tensor], Scheme]:
    """The tensors of a file as `load_backbone_weights` takes them, by the names of ``model.body``, and their scheme.

    Raises:
        DataError: As there.
    """
    tensors = _named_tensors(read_untrusted(path), path)
    scheme = next((scheme for scheme in SCHEMES if scheme.telltale in tensors), None)
    if scheme is None:
        raise DataError(
            f"{path} holds no weights of a known backbone but {_listed(tensors) or 'an empty dict'}.",
            f"Expected the ImageNet weights of {model.backbone} from In-Place ABN or torchvision.",
        )
    renamed = {ours: tensor for name, tensor in tensors.items() if (ours := scheme.rename(name)) is not None}
    _check_fit(model, renamed, f"{path} ({scheme.title})")
    return renamed, scheme


def _named_tensors(content: object, path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict by their names without ``module.``."""
    if isinstance(content, Mapping) and "model_state" in content:
        raise DataError(
            f"{path} is the checkpoint of a training run, not a file with backbone weights.",
            "--weights wants the ImageNet weights of the backbone alone; a trained model goes to --init-from (a whole "
            "scenario) or --previous (one step).",
        )
    state = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping):
        raise DataError(f"{path} holds a {type(state).__name__}, not a state dict (names and tensors).")
    strange = [str(name) for name, value in state.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if strange:
        raise DataError(f"{path} is no state dict: it holds {_listed(strange)}, which are not tensors.")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def _check_fit(model: Segmenter, tensors: Mapping[str, Tensor], source: str) -> None:
    """Raises unless ``tensors`` are those of the body, all of them and nothing else."""
    own = model.body.state_dict()
    missing = [name for name in own if name not in tensors and not name.endswith("num_batches_tracked")]
    unknown = [name for name in tensors if name not in own]
    shaped = {name: (tuple(tensors[name].shape), tuple(own[name].shape)) for name in own if name in tensors}
    wrong = [f"{name} {theirs} instead of {ours}" for name, (theirs, ours) in shaped.items() if theirs != ours]
    faults = [
        f"{len(names)} tensor{'s' if len(names) != 1 else ''} {what}: {_listed(names)}"
        for what, names in (("missing", missing), ("of the wrong shape", wrong), ("too many", unknown))
        if names
    ]
    if faults:
        raise DataError(
            f"{source} does not hold the weights of this {model.backbone}: {'; '.join(faults)}.",
            "Check model.backbone and model.width against the file, or start from random weights: "
            "--set model.pretrained=false.",
        )


def _remedies(model: Segmenter, scheme: Scheme, tensors: Mapping[str, Tensor]) -> list[str]:
    """Settings with which the network would compute what the file was trained for."""
    remedies = []
    norm = "abn" if any(isinstance(module, ABN) for module in model.body.modules()) else "bn"
    # weight and |weight| + eps differ by eps alone, unless a weight is negative.
    negative = any(t.ndim == 1 and bool((t < 0).any()) for name, t in tensors.items() if name.endswith(".weight"))
    if norm != scheme.norm and negative:
        remedies.append(f"model.norm={scheme.norm}")
    if isinstance(model.body, ResNet) and scheme.activation not in (None, model.body.activation):
        remedies.append(f"model.activation={scheme.activation}")
    return remedies


def _listed(names: Mapping[str, Tensor] | list[str]) -> str:
    some = list(names)[:LISTED]
    more = len(names) - len(some)
    return ", ".join(some) + (f" and {more} more" if more else "")
