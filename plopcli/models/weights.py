"""ImageNet weights for the backbone, from files in any of four naming schemes."""

from __future__ import annotations

import logging
import re
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from plopcli.errors import DataError
from plopcli.files.untrusted import read_untrusted
from plopcli.models.abn import ABN, Activation
from plopcli.models.resnet import ResNet
from plopcli.models.segmenter import Segmenter

logger = logging.getLogger(__name__)

#: Names that a message lists before it stops.
LISTED = 4
#: What wrappers of modules put into names.
_WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"})
#: A counter of `torch.optim.swa_utils.AveragedModel`.
_AVERAGED = "n_averaged"
#: Networks that only follow the one that learned, in files of contrastive pretraining.
_FOLLOWER = re.compile(r"(^|\.)(encoder_k|momentum_encoder|backbone_k)\.")
#: Mappings within mappings that are looked into.
_DEEPEST = 3


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


def _from_hugging_face_resnet(name: str) -> str | None:
    if name.startswith("classifier."):
        return None
    name = re.sub(r"^embedder\.embedder\.", "stem.", name)
    block = re.fullmatch(r"encoder\.stages\.(\d)\.layers\.(\d+)\.(?:layer\.(\d)|(shortcut))\.(.+)", name)
    if block is not None:
        kind, _, rest = block[5].partition(".")
        place = f"layer{int(block[1]) + 1}.{block[2]}"
        if block[4]:
            name = f"{place}.downsample.{0 if kind == 'convolution' else 1}.{rest}"
        else:
            name = f"{place}.{'conv' if kind == 'convolution' else 'bn'}{int(block[3]) + 1}.{rest}"
    name = name.replace("stem.convolution.", "conv1.").replace("stem.normalization.", "bn1.")
    return _from_torchvision_resnet(name)


SCHEMES = (
    Scheme("an In-Place ABN ResNet", "mod1.conv1.weight", _but("classifier."), "abn", "leaky_relu"),
    Scheme("a torchvision ResNet", "layer1.0.conv1.weight", _from_torchvision_resnet, "bn", "relu"),
    Scheme("a Hugging Face ResNet", "embedder.embedder.convolution.weight", _from_hugging_face_resnet, "bn", "relu"),
    # features.18 only feeds ImageNet's classifier.
    Scheme("a torchvision MobileNetV2", "features.0.0.weight", _but("classifier.", "features.18."), "bn", None),
)


def default_weights_path(backbone: str, data_root: Path) -> Path:
    """Where `plop download weights` puts the ImageNet weights of a backbone."""
    iabn = backbone in ("resnet50", "resnet101")
    return data_root / "weights" / (f"{backbone}_iabn_sync.pth.tar" if iabn else f"{backbone}.pth")


def load_backbone_weights(model: Segmenter, path: Path) -> None:
    """Fills ``model.body`` from a file with ImageNet weights; head and classifiers are unchanged.

    Known are the In-Place ABN files of the papers, torchvision's ResNets (timm's and MMSegmentation's have their names)
    and MobileNetV2, and the ResNets of Hugging Face: as `torch.save` files or safetensors, bare or in a container
    (``state_dict``, ``model``, ``model_ema``, ...), below any prefix (``module.``, ``model.backbone.``, ...). The
    weights of their classifiers and of other parts are left out. Old files lack the counters ``num_batches_tracked``;
    nothing is computed from these, so they may be missing.

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
    tensors, scheme = _backbone_part(_read(path), path, model.backbone)
    renamed = {ours: tensor for name, tensor in tensors.items() if (ours := scheme.rename(name)) is not None}
    _check_fit(model, renamed, f"{path} ({scheme.title})")
    check_finite(renamed, path)
    return renamed, scheme


def check_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuses weights that are not finite.

    Raises:
        DataError: Names the first of them.
    """
    bad = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    if bad:
        raise DataError(
            f"{path} holds values that are not finite (NaN or infinite) in {len(bad)} "
            f"tensor{'s' if len(bad) > 1 else ''}: {_listed(bad)}.",
            "The model that was saved had diverged, or the file is damaged: take an earlier one.",
        )


def unwrapped(name: str) -> str:
    """The name of a tensor without what DDP, FSDP, DeepSpeed, `torch.compile` and checkpointing put into it.

    >>> unwrapped("module.layer1._orig_mod.0.conv1.weight")
    'layer1.0.conv1.weight'
    """
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _read(path: Path) -> object:
    """What a file holds: one of `torch.save`, or of safetensors."""
    if path.suffix != ".safetensors":
        return read_untrusted(path)
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise DataError(f"There is no file {path}.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    except SafetensorError as error:
        raise DataError(f"{path} is no safetensors file, or it is damaged: {error}.") from error


def _backbone_part(content: object, path: Path, backbone: str) -> tuple[dict[str, Tensor], Scheme]:
    """The tensors whose names are those of a scheme, in any container and below any prefix, and the scheme."""
    if not isinstance(content, Mapping):
        raise DataError(f"{path} holds a {type(content).__name__}, not a state dict (names and tensors).")
    states = _state_dicts(content)
    if "format" in content or any(_is_of_a_run(content, state) for _, state in states):
        raise DataError(
            f"{path} is the checkpoint of a training run, not a file with backbone weights.",
            "--weights wants the ImageNet weights of the backbone alone; a trained model goes to --init-from (a whole "
            "scenario) or --previous (one step).",
        )
    for container, state in states:
        prefixes = _prefixes(state)
        if len(prefixes) > 1:
            raise DataError(
                f"{path} holds several backbones, below {_listed([prefix or 'no prefix' for prefix, _ in prefixes])}.",
                "Save the one that is meant by itself: torch.save(backbone.state_dict(), PATH).",
            )
        for prefix, scheme in prefixes:
            if container or prefix:
                logger.info("%s: the backbone is %s%s of it.", path, container, prefix)
            below = {n.removeprefix(prefix): tensor for n, tensor in state.items() if n.startswith(prefix)}
            return below, scheme
    names = [name for _, state in states for name in state] or [str(name) for name in content]
    raise DataError(
        f"{path} holds no weights of a known backbone but {_listed(names) or 'an empty dict'}.",
        f"Expected the ImageNet weights of {backbone} from In-Place ABN, torchvision, timm or Hugging Face.",
    )


def _is_of_a_run(content: Mapping[Any, Any], state: Mapping[str, Tensor]) -> bool:
    """Whether this is a network with classifiers, or what a training run left of one, here or in the original's way."""
    ours = "model_state" in content and any(name.endswith(SCHEMES[0].telltale) for name in state)
    return ours or any(name.startswith("cls.0.") for name in state)


def _state_dicts(content: Mapping[Any, Any]) -> list[tuple[str, dict[str, Tensor]]]:
    """Place and tensors, by unwrapped names, of a mapping and of those in it: averaged ones first, as timm does."""
    found: list[tuple[str, dict[str, Tensor]]] = []
    waiting: deque[tuple[str, Mapping[Any, Any], int]] = deque([("", content, 0)])
    seen: set[int] = set()
    while waiting:
        place, mapping, depth = waiting.popleft()
        if id(mapping) in seen:
            continue
        seen.add(id(mapping))
        named = {key: value for key, value in mapping.items() if isinstance(key, str)}
        tensors = {unwrapped(key): value for key, value in named.items() if isinstance(value, Tensor)}
        tensors.pop(_AVERAGED, None)
        if tensors:
            found.append((place, tensors))
        if depth < _DEEPEST:
            inner = [key for key, value in named.items() if isinstance(value, Mapping)]
            inner.sort(key=lambda key: ("ema" not in key, "state_dict" not in key))
            waiting.extend((f"{place}{key}.", named[key], depth + 1) for key in inner)
    return found


def _prefixes(state: Mapping[str, Tensor]) -> list[tuple[str, Scheme]]:
    """Below which prefixes of a state dict known backbones lie; those that only follow another one do not count."""
    found = [
        (name.removesuffix(scheme.telltale), scheme)
        for scheme in SCHEMES
        for name in state
        if name == scheme.telltale or name.endswith(f".{scheme.telltale}")
    ]
    return [(prefix, scheme) for prefix, scheme in found if not _FOLLOWER.search(prefix)] or found


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
