"""What is trained in benchmarks: the second step of a scenario on one synthetic batch, through the training core."""

from __future__ import annotations

import argparse
import copy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from plopcli.data.batches import Batch
from plopcli.devices.precision import choose_precision
from plopcli.devices.process import Process
from plopcli.engine.optim import build_optimizer, build_schedule, prepare_training
from plopcli.engine.setup import initialise
from plopcli.engine.trainer import Trainer, read_iterations
from plopcli.losses.classification import IGNORED
from plopcli.methods import METHODS, get_method
from plopcli.methods.base import Method, StepContext, StepData
from plopcli.models.abn import save_memory
from plopcli.models.encoder import checkpoint_activations
from plopcli.models.segmenter import Outputs, Segmenter, build_segmenter
from plopcli.runs.restore import place
from plopcli.settings.sections import ComputeSettings, MethodSettings, ModelSettings, StepRecipe

#: Methods that a step can be trained with; joint training has one step only.
TRAINABLE = tuple(name for name in METHODS if name != "joint")
#: The later steps of the VOC recipe; the rate is so small that hundreds of iterations on one batch stay finite.
RECIPE = StepRecipe(lr=1e-6)
#: The network of the toy preset.
TOY_NETWORK = ModelSettings(
    backbone="resnet18", pretrained=False, width=32, output_stride=8, head_channels=128, head_dilations=(2, 4, 6)
)
TINY_NETWORK = ModelSettings(
    backbone="resnet18", pretrained=False, width=8, output_stride=8, head_channels=16, head_dilations=(1, 2, 3)
)
#: How far the new network has moved from the old one, as a share of a weight's standard deviation: were they the same,
#: distillation would have nothing to do.
_MOVED = 0.01


@dataclass(frozen=True)
class Workload:
    """An iteration to measure.

    Args:
        method: Name of the method.
        network: The network.
        compute: Device, precision and the like.
        images: Images of the batch.
        crop: Their side in pixels.
        classes: Classes of each step; the last step is trained.
    """

    method: str = "plop"
    network: ModelSettings = field(default_factory=ModelSettings)
    compute: ComputeSettings = field(default_factory=lambda: ComputeSettings(gpus=0))
    images: int = 2
    crop: int = 512
    classes: tuple[int, ...] = (16, 1)

    @property
    def context(self) -> StepContext:
        return StepContext(len(self.classes) - 1, self.classes)


@dataclass
class Training:
    """A trainer with its networks and the batch that it is given again and again."""

    work: Workload
    process: Process
    model: Segmenter
    old: Segmenter
    method: Method
    batch: Batch
    trainer: Trainer

    def iterate(self, times: int = 1) -> list[dict[str, Any]]:
        """Optimizer steps; the host waits for the device at the end."""
        return read_iterations([self.trainer.iterate([self.batch]) for _ in range(times)], self.process)


def networks(work: Workload, device: torch.device) -> tuple[Segmenter, Segmenter]:
    """The network to train, and its frozen predecessor, which differs a little."""
    torch.manual_seed(0)
    old = build_segmenter(work.network, work.classes[:-1])
    new = copy.deepcopy(old)
    with torch.no_grad():
        for parameter in new.parameters():
            if parameter.dim() > 1:
                parameter.add_(torch.randn_like(parameter), alpha=_MOVED * float(parameter.std()))
    new.add_classifier(work.classes[-1])
    place(old, device, work.compute)
    place(new, device, work.compute)
    # What the engine does to the network that it trains.
    save_memory(new, work.compute.in_place_norm)
    checkpoint_activations(new, work.compute.checkpointing)
    return new, old.eval().requires_grad_(False)


def batch_of(work: Workload, device: torch.device) -> Batch:
    """Noise, labelled with background, the new classes in the upper third, and a margin that is ignored."""
    drawn = torch.Generator().manual_seed(1)
    pictures = torch.randn(work.images, 3, work.crop, work.crop, generator=drawn)
    layout = torch.channels_last if work.compute.channels_last else torch.contiguous_format
    return Batch(pictures.to(device).to(memory_format=layout), labels_of(work).to(device))


def labels_of(work: Workload) -> Tensor:
    """Labels (B, H, W), int64. `IGNORED` cannot be a class: with more than 255 of them it is left out."""
    context = work.context
    new = [label for label in range(context.old, context.total) if label != IGNORED]
    assert new, "the only new class has the id that stands for ignored pixels"
    labels = torch.zeros(work.images, work.crop, work.crop, dtype=torch.long)
    for row in range(work.crop // 3):
        labels[:, row] = new[row % len(new)]
    labels[:, :, : max(work.crop // 64, 1)] = IGNORED
    return labels


def build_method(work: Workload, model: Segmenter, old: Segmenter, batch: Batch, process: Process) -> Method:
    """The method of the step, prepared by a pass over the one batch."""
    kind = get_method(work.method)
    settings = settings_of(work.method)
    method = kind(settings, work.context)
    method.load_carried_state(_state_of_first_step(kind, settings, work, old), same_step=False)
    initialise(method, model, old, process)
    precision = choose_precision(work.compute, process.device)

    def old_outputs(images: Tensor, features: bool = False) -> Outputs:
        with torch.no_grad(), precision.autocast():
            outputs: Outputs = old(images, features=features)
            return outputs

    one_pass = replace(StepData.empty(), batches=lambda: iter([batch]), old_outputs=old_outputs, reduce=process.sum)
    method.before_step(one_pass)
    return method


def settings_of(method: str) -> MethodSettings:
    """The method's settings by default."""
    return get_method(method).Settings(name=method)


def build_training(work: Workload, process: Process) -> Training:
    """Everything that `plop` would train this step with, but for the data."""
    model, old = networks(work, process.device)
    batch = batch_of(work, process.device)
    method = build_method(work, model, old, batch, process)
    prepare_training(model, method, RECIPE)
    optimizer = build_optimizer(model, method, RECIPE)
    schedule = build_schedule(optimizer, RECIPE, 10_000)
    compiler = None if work.compute.compile == "off" else work.compute.compile
    precision = choose_precision(work.compute, process.device)
    trainer = Trainer(model, old, method, optimizer, schedule, precision, process, compiler=compiler)
    return Training(work, process, model, old, method, batch, trainer)


def add_workload_options(parser: argparse.ArgumentParser, *, images: int = 2, crop: int = 512) -> None:
    """Options of the network, the device and the batch."""
    parser.add_argument("--backbone", default="resnet101", help="default: %(default)s")
    parser.add_argument("--width", type=int, default=64, help="channels of its first stage")
    parser.add_argument("--head", type=int, default=256, metavar="CHANNELS", help="channels of the head")
    parser.add_argument("--output-stride", type=int, choices=(8, 16), default=16)
    parser.add_argument("--images", type=int, default=images, help="of the batch; default: %(default)s")
    parser.add_argument("--crop", type=int, default=crop, help="side in pixels; default: %(default)s")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")


def network_of(chosen: argparse.Namespace) -> ModelSettings:
    """The network that the options of `add_workload_options` name."""
    width = {} if chosen.backbone.startswith("mobilenet") else {"width": chosen.width}
    return ModelSettings(
        backbone=chosen.backbone,
        pretrained=False,
        head_channels=chosen.head,
        output_stride=chosen.output_stride,
        **width,
    )


#: Options that make the network and the batch as small as they can be.
TINY_OPTIONS = ("--backbone", "resnet18", "--width", "8", "--head", "16", "--images", "2", "--crop", "64")


def compute_of(device: str, **traits: object) -> ComputeSettings:
    """Compute settings of one device; in float32 unless ``traits`` say otherwise."""
    return ComputeSettings.model_validate({"gpus": 1 if device == "cuda" else 0, "precision": "float32"} | traits)


def _state_of_first_step(
    kind: type[Method], settings: MethodSettings, work: Workload, old: Segmenter
) -> dict[str, Any]:
    """What the method would hand on from the step before: regularisers without it have no penalty to compute."""
    first = kind(settings, StepContext(0, (sum(work.classes[:-1]),)))
    twin = copy.deepcopy(old).requires_grad_(True)
    parameters = dict(twin.named_parameters())
    first.bind(twin, None, lambda tensor: tensor)
    first.initialise(twin, None)
    for _ in range(2):
        for parameter in parameters.values():
            parameter.grad = torch.randn_like(parameter)
        first.after_gradients(parameters)
        with torch.no_grad():
            for parameter in parameters.values():
                parameter.mul_(0.999)
    first.after_step(twin, StepData.empty())
    return first.carried_state()
