"""docs/from-the-original.md: its commands run and mean what the original's do, its table is complete and true."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from original_files import write_original
from PIL import Image

from plopcli.cli.app import main
from plopcli.data.samples import class_facts
from plopcli.engine.memory import MemoryEstimate
from plopcli.files.untrusted import read_untrusted
from plopcli.methods import METHODS, get_method
from plopcli.models.segmenter import build_segmenter
from plopcli.resolution.stored import restore_settings
from plopcli.runs.checkpoint import load_checkpoint
from plopcli.runs.original import looks_original
from plopcli.scenarios.tasks import named_tasks
from plopcli.settings.keys import Leaf, leaves
from plopcli.settings.sections import ModelSettings, RunSettings

PAGE = Path(__file__).parents[2] / "docs" / "from-the-original.md"
TEXT = PAGE.read_text("utf-8")


def commands(text: str) -> list[str]:
    """Those of its blocks, without the comments behind them."""
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL))
    return [re.sub(r" +# .*", "", line) for line in re.findall(r"^plop .+$", blocks, re.MULTILINE)]


#: Its section on checkpoints, whose commands want files.
SECTION = TEXT.partition("## Checkpoints of the original program")[2].partition("\n## ")[0]
COMMANDS = commands(TEXT.replace(SECTION, ""))
TRAINING = [command for command in COMMANDS if command.split()[1] in ("run-scenario", "train-step")]
ROWS = re.findall(r"^\| `(--[\w-]+)` \| (.+?) \| (.*?) ?\|$", TEXT, re.MULTILINE)

#: Every option of the original's parser.
FLAGS = """
random_seed num_workers local_rank data_root dataset num_classes dont_predict_bg method strict_weights base_weights
epochs fix_bn batch_size crop_size lr lr_old momentum weight_decay lr_policy lr_decay_step lr_decay_factor lr_power
bce test_on_val val_on_trainset cross_val crop_val logdir name sample_num debug visualize print_interval val_interval
ckpt_interval date code_directory checkpoint backbone output_stride no_pretrained norm_act fusion-mode pooling test
ckpt step_ckpt step opt_level freeze loss_de loss_kd regularizer reg_importance reg_alpha reg_no_normalize
reg_iterations icarl icarl_importance icarl_disjoint icarl_bkg init_balanced unkd alpha unce task no_mask data_masking
overlap pseudo threshold step_threshold ce_on_pseudo pseudo_nb_bins classif_adaptive_factor
classif_adaptive_min_factor pseudo_soft pseudo_soft_factor pseudo_ablation pod pod_factor pod_options pod_prepro
no_pod_schedule pod_apply pod_deeplab_mask pod_deeplab_mask_factor deeplab_mask_downscale pod_interpolate_last
pod_logits pod_large_logits spp_scales nb_background_modes init_multimodal multimodal_fusion align_weight
align_weight_frequency cosine nca nca_margin kd_new kd_mask kd_mask_adaptative_factor kd_scheduling kd_bce_sig
kd_bce_sig_shape exkd_gt exkd_sum disable_background ignore_test_bg entropy_min entropy_min_mean_pixels
sample_weights_new temperature temperature_semiold temperature_apply focal_loss focal_loss_new focal_loss_gamma
ce_on_new
""".split()  # noqa: SIM905
#: Those that its README and its scripts use: none of them may be left out.
USED = """
data_root name dataset task step overlap lr batch_size epochs method no_pretrained test ckpt step_ckpt checkpoint
opt_level pod pod_factor pod_logits pod_options pseudo threshold classif_adaptive_factor init_balanced loss_kd
""".split()  # noqa: SIM905

POD = {"pod": "local", "pod_schedule": True, "pod_scales": (1, 2, 4), "pod_logits": "sum"}
PSEUDO = {"pseudo": "entropy", "threshold_floor": 0.001, "adaptive_factor": True, "estimator": "reference"}
#: What `--method` sets, by its name there: our method and its settings.
METHOD: dict[str, tuple[str, dict[str, Any]]] = {
    "LWF": ("lwf", {"kd_factor": 100.0}),
    "LWF-MC": ("lwf-mc", {"icarl_factor": 10.0, "targets": "combined"}),
    "MiB": ("mib", {"kd_factor": 10.0, "cross_entropy": "unbiased", "distillation": "unbiased", "init": "balanced"}),
    "PLOP": ("plop", {**POD, **PSEUDO, "pod_factor": 0.01, "pod_logits_factor": 0.0005, "init": "balanced"}),
}


def pod(factor: float, logits: float, **more: Any) -> tuple[str, dict[str, Any]]:
    """`--method FT --pod local --pod_factor .. --pod_logits --pod_options ..`."""
    return "plop", {**POD, "pod_factor": factor, "pod_logits_factor": logits, **more}


def original(dataset: str, task: str, method: Any, **more: Any) -> dict[str, Any]:
    """A command of the original, or a script: two processes of 12 images each."""
    return {"dataset": dataset, "task": task, "method": METHOD.get(str(method), method), "processes": 2, **more}


ADE = pod(0.001, 0.00001, **PSEUDO, init="balanced")
#: The original's commands behind those of the page, in its order.
ORIGINALS = [
    original("ade", "100-50", "LWF", step=0, lr=0.01, epochs=60, opt="O0"),
    original("ade", "50b", "MiB", step=2, lr=0.001, epochs=60, opt="O0"),
    original("voc", "15-5", "LWF-MC", step=1, lr=0.001, epochs=30, opt="O0"),
    original("voc", "15-5s", pod(0.01, 0.0005, **PSEUDO, init="balanced"), step=1, lr=0.001, epochs=30, overlap=True),
    *(original("voc", task, "PLOP", epochs=(30, 30), overlap=True, opt="O1") for task in ("15-5s", "15-5", "19-1")),
    original("voc", "10-1", "PLOP", epochs=(30, 10), overlap=True, opt="O1"),
    original("voc", "15-5s", "MiB", epochs=(30, 30), overlap=True, opt="O1"),
    *(original("ade", task, ADE, epochs=(60, 60), overlap=True, opt="O1") for task in ("100-50", "100-10", "100-5")),
    *(
        original("cityscapes-domain", task, pod(0.0001, logits, pseudo="off"), epochs=(50, 50), overlap=True, opt="O1")
        for task, logits in (("1-1", 0.001), ("11-1", 0.0001), ("11-5", 0.0001))
    ),
    original(
        "cityscapes-domain",
        "10-1",
        pod(0.01, 0.0005, pseudo="off"),
        epochs=(50, 50),
        overlap=True,
        opt="O1",
        processes=1,
    ),
    original("cityscapes-domain", "1-1", ("mib", {"kd_factor": 10.0}), epochs=(50, 50), overlap=True, opt="O1"),
]
PAIRS = list(zip(TRAINING, ORIGINALS, strict=False))


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data sets in the layout of the real ones: 24 images of every class, and of those of single steps."""
    root = tmp_path_factory.mktemp("data")
    voc = root / "voc" / "VOCdevkit" / "VOC2012"
    names = [f"{kind}{number:02d}" for kind in "ab" for number in range(24)]
    steps = [list(range(1, 16)), list(range(1, 21))]
    for name, present in zip(names, [steps[0]] * 24 + [steps[1]] * 24, strict=True):
        draw(voc / "JPEGImages" / f"{name}.jpg", voc / "SegmentationClassAug" / f"{name}.png", present)
    for listed in ("train_aug.txt", "val.txt"):
        (voc / listed).write_text("\n".join(names if listed.startswith("train") else names[-1:]) + "\n")

    ade = root / "ade" / "ADEChallengeData2016"
    steps = [[*step] for task in ("100-50", "50b") for step in named_tasks("ade")[task]]
    for number, present in enumerate(step for step in steps for _ in range(24)):
        for part in ("training", "validation") if number % 24 == 0 else ("training",):
            name = f"ADE_{number:04d}"
            draw(ade / "images" / part / f"{name}.jpg", ade / "annotations" / part / f"{name}.png", present)

    cities = root / "cityscapes"
    for city in class_facts()["cityscapes_cities"]["order"]:
        part = "val" if city in ("frankfurt", "lindau", "munster") else "train"
        images, masks = cities / "leftImg8bit" / part / city, cities / "gtFine" / part / city
        for number in range(30):
            stem = f"{city}_{number:06d}_000019"
            draw(images / f"{stem}_leftImg8bit.png", masks / f"{stem}_gtFine_labelIds.png", [7, 8, 11, 26])
    return root


def draw(image: Path, mask: Path, labels: Sequence[int]) -> None:
    """An image and a mask with a column of each label."""
    columns = np.array([0, *labels], dtype=np.uint8)[None].repeat(4, axis=0)
    for path, picture in ((mask, Image.fromarray(columns)), (image, Image.fromarray(columns).convert("RGB"))):
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)


def run(command: str, *more: str) -> int:
    return main([*shlex.split(command)[1:], *more])


def resolved(command: str, capsys: pytest.CaptureFixture[str]) -> RunSettings:
    assert run(command, "--print-config", "--json") == 0
    printed = json.loads(capsys.readouterr().out)["settings"]
    # What a file says of devices sets nothing.
    settings = restore_settings(printed)
    compute = settings.compute.model_copy(update={"gpus": printed["compute"]["gpus"]})
    return settings.model_copy(update={"compute": compute})


def test_every_training_command_has_its_original() -> None:
    assert len(ORIGINALS) == len(TRAINING) - 2, "the two that go on from a checkpoint have none"
    assert TRAINING.index("plop train-step --step 1 --previous FILE --dataset voc --task 15-1 --method plop") == len(
        PAIRS
    )


@pytest.mark.parametrize(("command", "theirs"), PAIRS, ids=[command for command, _ in PAIRS])
def test_settings_are_what_the_originals_flags_mean(
    command: str, theirs: Mapping[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    ours = resolved(command, capsys)
    name, values = theirs["method"]
    domains = theirs["dataset"].endswith("-domain")
    if domains:
        values = {**values, **get_method(name).for_domains}
    assert ours.method == get_method(name).Settings(**values)
    assert (ours.data.dataset, ours.train.batch) == (theirs["dataset"], 12 * theirs["processes"])
    assert ours.compute.gpus == theirs["processes"]
    tasks = named_tasks(theirs["dataset"])
    assert tasks.get(ours.scenario.task, "10-1") == tasks.get(theirs["task"], "10-1")
    assert ours.scenario.protocol == ("overlapped" if theirs.get("overlap") else "disjoint")
    assert ours.compute.precision == {"O0": "float32", "O1": "fp16"}[theirs.get("opt", "O0")]
    if "step" in theirs:
        recipes = {theirs["step"]: (theirs["lr"], theirs["epochs"])}
        assert f"--step {theirs['step']} " in command
    else:
        recipes = {0: (0.01, theirs["epochs"][0]), 1: (0.001, theirs["epochs"][1]), 2: (0.001, theirs["epochs"][1])}
    for step, (lr, epochs) in recipes.items():
        recipe = ours.train.recipe(step)
        assert (recipe.lr, recipe.epochs) == (lr, epochs)
        assert (recipe.momentum, recipe.weight_decay, recipe.schedule, recipe.power) == (0.9, 1e-4, "poly", 0.9)
        assert (recipe.lr_body, recipe.lr_head, recipe.lr_old, recipe.freeze_norm) == (1, 1, 1, "none")
    assert ours.seed == 42
    assert (ours.data.crop, ours.data.evaluation, ours.data.val_fraction) == (512, "crop", 0)
    network = ours.model
    assert (network.backbone, network.output_stride, network.pooling, network.pretrained) == ("resnet101", 16, 32, True)
    assert (network.norm, network.activation, network.head_channels) == ("auto", "leaky_relu", 256)
    assert ours.compute.sync_norm


@pytest.mark.parametrize("command", TRAINING)
def test_commands_run(
    command: str, data_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if TRAINING.index(command) > 0:  # of ResNet-101, it takes a second a time
        monkeypatch.setattr("plopcli.engine.scenario_run.estimate_memory", lambda *_, **__: MemoryEstimate(0, 0, 0))
    assert run(command, "--data-root", str(data_root), "--dry-run", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    if " --step " in command:
        step = int(command.split(" --step ")[1].split()[0])
        assert plan["steps"][step]["step"] == step
    batch = int(plan["batch"].split()[0])
    for step in plan["steps"]:
        assert step["iterations"] == step["epochs"] * (step["train"] // batch) > 0


def test_the_command_that_measures_a_checkpoint_wants_but_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    (command,) = [command for command in COMMANDS if command not in TRAINING]
    assert command == "plop evaluate FILE"
    assert run(command) == 3
    assert "FILE" in capsys.readouterr().err


def test_commands_take_the_original_s_checkpoints(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("plopcli.engine.scenario_run.estimate_memory", lambda *_, **__: MemoryEstimate(0, 0, 0))
    network = {"backbone": "resnet18", "width": 8, "head_channels": 16}
    for name, later in (("PLOP_5", 5), ("PLOP_0", 0), ("MIB_2", 2)):
        model = build_segmenter(ModelSettings(**network), (16, *[1] * later))
        write_original(tmp_path / f"15-5s-voc_{name}.pth", model.state_dict())
    mine = "plop convert 15-5s-voc_PLOP_5.pth runs/mine/checkpoints/step-5.pt --to plop --dataset voc --task 15-1"
    assert run(mine, "--method", "plop") == 0
    draw(tmp_path / "my-photos" / "a.png", tmp_path / "mask.png", [1, 2])
    done = commands(SECTION)
    assert len(done) == 6
    for command in done:
        more = [] if "--input" in command or "--to" in command else ["--data-root", str(data_root)]
        if command.split()[1] in ("run-scenario", "train-step"):
            more += ["--dry-run", *(f"--set=model.{key}={value}" for key, value in network.items())]
        elif "--to" not in command:
            more += ["--set", "data.crop=64"]
        assert run(command, *more) == 0, capsys.readouterr().err
    assert load_checkpoint(tmp_path / "step-0.pt").step == 0
    assert looks_original(read_untrusted(tmp_path / "theirs.pth"))


def test_every_option_has_one_row() -> None:
    assert sorted(flag.removeprefix("--") for flag, _, _ in ROWS) == sorted(FLAGS)
    assert len(ROWS) == TEXT.count("\n| `--")


def test_what_readme_and_scripts_use_is_there() -> None:
    here = {flag.removeprefix("--"): ours for flag, ours, _ in ROWS}
    assert [flag for flag in USED if here[flag].startswith("left out")] == []


def test_what_is_left_out_says_why() -> None:
    assert [flag for flag, ours, why in ROWS if ours == "left out" and len(why) < 8] == []


def named_settings() -> Iterator[tuple[str, str]]:
    """Every setting in the table, with the value that is written beside it, if any."""
    for _, ours, note in ROWS:
        for span in re.findall(r"`([^`]+)`", f"{ours} {note}"):
            if match := re.fullmatch(
                r"((?:data|scenario|model|method|train|compute|output)\.[\w.]+|seed|run)(?: = (\S+))?", span
            ):
                yield match[1], match[2] or ""


def all_leaves() -> dict[str, list[Leaf]]:
    found: dict[str, list[Leaf]] = {}
    for method in METHODS.values():
        for key, leaf in leaves(method.Settings).items():
            found.setdefault(key, []).append(leaf)
    return found


def test_every_setting_of_the_table_exists_and_takes_the_value() -> None:
    known, named = all_leaves(), list(named_settings())
    assert len(named) > 80
    wrong = [
        f"{key} = {value}"
        for key, value in named
        if not any(not value or leaf.accepts(leaf.parse(value)) for leaf in known.get(key, []))
    ]
    assert wrong == []


def test_every_option_of_ours_in_the_table_exists(capsys: pytest.CaptureFixture[str]) -> None:
    help_texts = ""
    for words in (["run-scenario", "--help"], ["train-step", "--help"], ["--help"]):
        assert main(words) == 0
        help_texts += capsys.readouterr().out
    spans = [span for _, ours, note in ROWS for span in re.findall(r"`([^`]+)`", f"{ours} {note}")]
    theirs = {f"--{flag}" for flag in FLAGS}
    options = {word for span in spans for word in span.split() if word.startswith("--")} - theirs
    assert {"--overlapped", "--val-fraction", "--epochs-later", "--previous", "--init-from", "--resume"} <= options
    assert [option for option in options if option not in help_texts] == []
