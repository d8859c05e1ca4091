"""The settings of a run, one frozen pydantic model per part of the program.

The dotted path of a field (``train.later.lr``) is its key in the TOML file, in ``--set`` and, upper-cased with
underscores (``PLOP_TRAIN_LATER_LR``), in the environment. The settings of a method stand in the file of that method.
"""

from __future__ import annotations

import os.path
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SerializeAsAny, create_model, model_validator

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Fusion = Literal["off", "auto"] | Annotated[float, Field(ge=0, le=1)]


def _expanded(path: Path) -> Path:
    return Path(os.path.expanduser(path))  # noqa: PTH111  # pathlib's raises for unknown users


#: A path in which ``~`` is the home folder: shells expand it only where it begins a word.
UserPath = Annotated[Path, AfterValidator(_expanded)]


def _low_to_high(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] > ends[1]:
        raise ValueError("the lower end comes first")
    return ends


#: Two ends of a range. The text behind the rule is what an error says of it.
Range = Annotated[tuple[Positive, Positive], AfterValidator(_low_to_high), "the lower one first"]


#: What a setting decides: the weights of a model, and so its results; the results alone; or neither.
Decides = Literal["weights", "results", "nothing"]


def _deciding(what: Decides) -> Any:
    """The mark of a field that decides something else than most of its section."""
    return Field(json_schema_extra={"decides": what})


class Section(BaseModel):
    """Base of every settings model: frozen, unknown keys are errors, docstrings become descriptions."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True)
    #: What its settings decide, where a field bears no mark of its own; read by resume, --init-from and reports.
    decides: ClassVar[Decides] = "weights"


class DataSettings(Section):
    """Which data set, and how its images reach the network."""

    dataset: str = "voc"
    """Name of the data set (`plop datasets`)."""
    root: Annotated[UserPath, _deciding("nothing")] = Path("data")
    """Folder under which every data set has its own folder (PLOP_DATA_ROOT)."""
    path: Annotated[UserPath | None, _deciding("nothing")] = None
    """Folder of this data set, where it is not ROOT/NAME."""
    background: bool = True
    """Data set folder: whether line 1 of classes.txt is the background; if not, one is put before the classes."""
    val_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the training list that is kept apart as validation set; 0 uses the data set's own val list, if any."""
    crop: Annotated[int, Field(ge=16)] = 512
    """Side of the square crop in pixels, in training and evaluation."""
    scale: Range = (0.5, 2.0)
    """Range of the random crop's area as a share of the image's area."""
    ratio: Range = (3 / 4, 4 / 3)
    """Range of the random crop's aspect ratio."""
    flip: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Probability of a horizontal flip."""
    evaluation: Annotated[Literal["crop", "full"], _deciding("results")] = "crop"
    """`crop`: shorter side to the crop size, then a central crop; `full`: whole images, one at a time."""
    results_on: Annotated[Literal["test", "val", "train"], _deciding("results")] = "test"
    """Split that the results are measured on; make choices on val. train: all training images that are not kept apart,
    which says what was learned by heart, not what was understood."""
    workers: Annotated[Annotated[int, Field(ge=0)] | Literal["auto"], _deciding("nothing")] = "auto"
    """Processes that load images; auto: as many as cores, at most 8, and none where images are cached."""
    timeout: Annotated[Positive, _deciding("nothing")] = 300.0
    """Seconds without one loaded image after which a process that loads images counts as stuck, and the run ends."""
    cache: Annotated[bool, _deciding("nothing")] = False
    """Keep the decoded images of a step in memory (small data sets)."""


class ScenarioSettings(Section):
    """What is learned when."""

    task: str = "15-1"
    """A name (`plop tasks`), X-Y in general, or a TOML file with `steps = [[...], ...]`."""
    protocol: Literal["overlapped", "disjoint", "sequential"] = "overlapped"
    """Which images and labels a step sees."""
    other_labels: Literal["protocol", "background", "shown", "ignored"] = "protocol"
    """Training labels of classes of other steps, if not by protocol: `background`; `shown`: old classes keep theirs and
    later ones are background; `ignored`: neither count."""
    order_seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    """Shuffle what the task learns, background aside, by this seed, and deal it into steps of the task's sizes."""
    splits: UserPath | None = None
    """Folder with train-0.npy, train-1.npy, ...: positions in the sorted train list that replace the protocol's choice
    of images; labels still follow the protocol."""


class ModelSettings(Section):
    """The network."""

    backbone: str = "resnet101"
    """resnet18, resnet34, resnet50, resnet101, resnet152 or mobilenet_v2."""
    decoder: str = "deeplab_v3"
    """What turns the backbone's output into the map that is classified; installed packages may bring others."""
    pretrained: bool = True
    """Start step 0 from ImageNet weights."""
    weights: Annotated[UserPath | None, _deciding("nothing")] = None
    """File with the backbone's weights; by default the one that `plop download weights` leaves in the data root."""
    norm: Literal["auto", "abn", "bn"] = "auto"
    """`abn` scales by |weight| + eps as In-Place ABN does; `bn` is plain batch norm; auto: abn for ResNets, bn else."""
    activation: Literal["leaky_relu", "relu"] = "leaky_relu"
    """Activation of the ResNet body and of the head (leaky_relu has slope 0.01)."""
    output_stride: Literal[8, 16] = 16
    """Ratio of the input's side to that of the feature maps."""
    width: Annotated[int, Field(ge=8)] = 64
    """Channels of the first ResNet stage; the original networks have 64."""
    head_channels: Count = 256
    """Channels of the DeepLab head."""
    head_dilations: tuple[Count, Count, Count] | None = None
    """Dilations of the head's 3 x 3 convolutions; by default 6, 12, 18 (12, 24, 32 at output stride 8)."""
    pooling: Count | None = 32
    """Window of the head's image pooling in evaluation, in feature pixels; none means global."""


class StepRecipe(Section):
    """How one step is trained."""

    epochs: Count = 30
    """Passes over the step's images."""
    lr: Positive = 0.01
    """Learning rate at the start of the step."""
    lr_body: NonNegative = 1.0
    """Factor on lr for the backbone; 0 freezes it."""
    lr_head: NonNegative = 1.0
    """Factor on lr for the DeepLab head; 0 freezes it."""
    lr_classifier: NonNegative = 1.0
    """Factor on lr for the classifier of the step's own classes."""
    lr_old: NonNegative = 1.0
    """Factor on lr for the classifiers of earlier steps; 0 freezes them."""
    lr_extra: NonNegative = 1.0
    """Factor on lr for channels that are no classes, where the method has any; 0 freezes them."""
    lr_method: NonNegative = 1.0
    """Factor on lr for the method's own modules, where it has any; 0 freezes them."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """`sgd` with Nesterov momentum; `adamw` with betas (momentum, 0.999), whose weight decay is decoupled."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the step's iterations over which the learning rate rises linearly to the schedule's."""
    warmup_factor: Annotated[float, Field(ge=0, le=1)] = 0.001
    """Factor on the schedule's learning rate at the first iteration of the warm-up."""
    schedule: Literal["poly", "step", "constant"] = "poly"
    """poly: (1 - iteration / total)^power at every iteration; step: times gamma after every step_size epochs."""
    power: Positive = 0.9
    """Exponent of the poly schedule."""
    step_size: Count = 10
    """Epochs between two drops of the step schedule."""
    step_iterations: Count | None = None
    """Iterations between two drops of the step schedule, in place of step_size; none: that."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Factor of a drop of the step schedule."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Nesterov momentum."""
    weight_decay: NonNegative = 1e-4
    """L2 penalty on every trained parameter."""
    decay_body: NonNegative = 1.0
    """Factor on weight_decay for the backbone."""
    decay_head: NonNegative = 1.0
    """Factor on weight_decay for the DeepLab head."""
    decay_classifier: NonNegative = 1.0
    """Factor on weight_decay for the classifier of the step's own classes."""
    decay_old: NonNegative = 1.0
    """Factor on weight_decay for the classifiers of earlier steps."""
    decay_extra: NonNegative = 1.0
    """Factor on weight_decay for channels that are no classes."""
    decay_method: NonNegative = 1.0
    """Factor on weight_decay for the method's own modules."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the head's output that is dropped before the classifiers while training."""
    norm_momentum: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Weight of a batch's statistics in the running ones, in the head and the classifiers."""
    norm_momentum_body: Annotated[float, Field(gt=0, le=1)] = 0.1
    """The same in the backbone."""
    freeze_norm: Literal["none", "body", "all"] = "none"
    """Where batch norm uses its running statistics and leaves them alone while training."""
    freeze_norm_affine: bool = False
    """Freeze the weight and bias of those norms as well."""


class LaterRecipe(StepRecipe):
    """How a later step is trained, by default."""

    # A default stands in a field: that of a whole section would be gone as soon as one of its keys is given.
    lr: Positive = 0.001
    """Learning rate at the start of the step."""


#: There are no more classes to learn.
_MOST_CHANGES = 255


class TrainSettings(Section):
    """The recipe."""

    batch: Count = 24
    """Images per optimizer step, over all devices and accumulation."""
    first: StepRecipe = StepRecipe()
    """Recipe of step 0."""
    later: LaterRecipe = LaterRecipe()
    """Recipe of every later step."""
    from_step: dict[int, dict[str, Any]] = {}
    """Changes to `later` from a step on: `[train.from_step.3]` with any of its keys."""
    validate_every: Annotated[int, Field(ge=0), _deciding("nothing")] = 0
    """Epochs between two evaluations on the validation set while training; 0: none."""
    skip_non_finite: Annotated[int, Field(ge=0), _deciding("nothing")] = 0
    """Iterations in a row that may be skipped, and are counted, because a loss or gradient is not finite; 0: the first
    one ends the run. Looking for them makes the host wait for the device in every iteration."""

    @model_validator(mode="after")
    def _changes_are_recipes(self) -> TrainSettings:
        if len(self.from_step) > _MOST_CHANGES:
            raise ValueError(f"from_step: at most {_MOST_CHANGES} steps can change the recipe")
        for step in self.from_step:
            if step < 1:
                raise ValueError(f"from_step.{step}: step 0 is set by train.first")
            self.recipe(step)
        return self

    def recipe(self, step: int) -> StepRecipe:
        """The recipe of ``step``: first or later, with every change that starts at or before it."""
        if step == 0:
            return self.first
        recipe: dict[str, Any] = self.later.model_dump()
        for start in sorted(self.from_step):
            if start <= step:
                recipe |= self.from_step[start]
        return LaterRecipe.model_validate(recipe)


class ComputeSettings(Section):
    """Devices and precision: what may differ between machines without changing what is computed."""

    decides: ClassVar[Decides] = "nothing"

    gpus: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """GPUs of this machine to use, one process each; auto: one if there is one; 0: CPU."""
    processes: Count | None = None
    """Processes on the CPU that share the batch, where no GPU is used. Default: one."""
    micro_batch: Annotated[Count | None, _deciding("weights")] = None
    """Images per device and forward pass; the rest of the total batch is accumulated. Default: no accumulation."""
    precision: Annotated[Literal["auto", "float32", "bf16", "fp16"], _deciding("weights")] = "auto"
    """auto: bf16 where the GPU has it, else fp16; float32 on CPU."""
    channels_last: bool = True
    """Memory layout of images and weights; faster on most devices."""
    sync_norm: Annotated[bool, _deciding("weights")] = True
    """Batch norm computes its training statistics over all processes together."""
    abn: Literal["auto", "pytorch", "inplace_abn"] = "auto"
    """What computes activated batch norm, to the same results up to rounding: PyTorch, or the compiled package
    inplace_abn (`make iabn`; less memory, no bf16, no compile; not yet verified in training on GPUs). auto: inplace_abn
    on a single GPU in float32 or fp16 where it is built and a trial gives what PyTorch gives, else PyTorch."""
    in_place_norm: bool = False
    """ABN keeps its output alone for the backward pass and recovers its input: less memory, some more work."""
    checkpointing: bool = False
    """Compute the backbone's inner activations again in the backward pass: far less memory, a quarter more time."""
    compile: Literal["off", "inductor", "aot_eager"] = "off"
    """Compile the networks' training passes by torch.compile: inductor is fast after minutes of compiling, aot_eager
    only traces."""
    deterministic: bool = False
    """Deterministic algorithms alone, with a warning where there is none; slower on GPUs."""
    timeout: Positive = 600.0
    """Seconds after which a process gives up waiting for the others."""


class OutputSettings(Section):
    """What a run writes beside its checkpoints."""

    decides: ClassVar[Decides] = "nothing"

    print_every: Count = 10
    """Iterations between two lines of the metrics log."""
    overlays: Annotated[int, Field(ge=0)] = 8
    """Test images drawn after the last step."""
    tensorboard: bool = True
    """Write TensorBoard events."""
    snapshot_minutes: NonNegative = 10.0
    """Minutes between two snapshots within an epoch, from which a run that stopped goes on; 0: none by the clock. Every
    epoch ends with one, unless writing it would take more than a tenth of the time."""
    snapshot_iterations: Annotated[int, Field(ge=0)] = 0
    """Iterations between two snapshots; 0: by the clock and at ends of epochs alone."""
    snapshots: Count = 2
    """Snapshots of a step to keep, the newest ones. Where the newest is damaged, an older one is gone on from."""
    profile: Annotated[int, Field(ge=0)] = 0
    """Iterations of every step to profile, after some to warm up; a trace and a table of costs go to RUN/profile."""


class MethodSettings(Section):
    """Base of the settings of every method."""

    name: str
    """Name of the method (`plop methods`); `--method` also takes a Python file that holds one (NAME.py)."""
    fusion: Fusion = "off"
    """Share of the trained weights in their mean with the previous model's, taken after each step from step 1 on
    (endpoints weight fusion); `auto`: sqrt(new classes / all classes); `off`: the trained weights stay as they are."""


def of_unknown_method(values: Mapping[str, Any]) -> type[MethodSettings]:
    """A settings class for a method whose code is not here: what its run remembers is taken as it is."""
    fields: dict[str, Any] = {name: (Any, value) for name, value in values.items() if name != "name"}
    return create_model("UnknownMethodSettings", __base__=MethodSettings, **fields)


class RunSettings(Section):
    """Everything that decides what a run computes."""

    seed: Annotated[int, Field(ge=0)] = 42
    """Seed of initial weights, order and augmentation."""
    run: Annotated[UserPath | None, _deciding("nothing")] = None
    """Run folder; by default runs/{dataset}-{task}-{protocol}-{method}-s{seed}."""
    data: DataSettings = DataSettings()
    scenario: ScenarioSettings = ScenarioSettings()
    model: ModelSettings = ModelSettings()
    method: SerializeAsAny[MethodSettings]
    train: TrainSettings = TrainSettings()
    compute: ComputeSettings = ComputeSettings()
    output: OutputSettings = OutputSettings()

    @property
    def run_folder(self) -> Path:
        """Where this run lives."""
        if self.run is not None:
            return self.run
        scenario = self.scenario
        order = "" if scenario.order_seed is None else f"-order{scenario.order_seed}"
        task = f"{Path(scenario.task).stem}{order}"
        # Where steps bring domains there is no protocol.
        protocol = "" if self.data.dataset.endswith("-domain") else f"-{scenario.protocol}"
        return Path("runs") / f"{self.data.dataset}-{task}{protocol}-{self.method.name}-s{self.seed}"
