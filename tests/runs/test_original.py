"""Checkpoints of the original implementation: read as what they are, by their tensors, and never run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from original_files import original_content, write_original

from plopcli.errors import DataError, UsageError
from plopcli.files.untrusted import read_untrusted
from plopcli.models.segmenter import build_segmenter
from plopcli.resolution.stored import restore_settings
from plopcli.runs.checkpoint import load_checkpoint, save_checkpoint
from plopcli.runs.convert import convert
from plopcli.runs.foreign import Description, adopt, caveats, load_described
from plopcli.runs.original import OriginalCheckpointError, carried_tables, read_original
from plopcli.settings.sections import ModelSettings

KEYS: dict[str, dict[str, list[int]]] = json.loads(
    (Path(__file__).parent.parent / "parity_data" / "state_dict_keys.json").read_text()
)
SMALL = ModelSettings(backbone="resnet18", width=8, head_channels=16, output_stride=8)
VOC = Description("voc", "15-1", "plop")


def weights(counts: tuple[int, ...] = (16, 1), settings: ModelSettings = SMALL) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    model = build_segmenter(settings, counts)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(0.01 * torch.randn_like(tensor))
        else:
            tensor.fill_(7)
    return dict(model.state_dict())


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)


def blank(name: str) -> dict[str, torch.Tensor]:
    """The tensors that the original was seen to have; nobody looks into them, so that none takes memory."""
    return {
        key: torch.empty(shape, dtype=torch.int64 if key.endswith("tracked") else torch.float32)
        for key, shape in KEYS[name].items()
    }


@pytest.mark.parametrize(
    ("name", "dataset", "task", "backbone", "step"),
    [
        ("resnet18-os16-classes16+1", "voc", "15-1", "resnet18", 1),
        ("resnet50-os16-classes101+10", "ade", "100-10", "resnet50", 1),
        ("resnet101-os16-classes16+1+1", "voc", "15-5s", "resnet101", 2),
    ],
)
@pytest.mark.parametrize("prefix", ["module.", ""])
def test_every_tensor_of_the_original_has_its_place(name, dataset, task, backbone, step, prefix):
    content = original_content(blank(name), prefix=prefix)
    checkpoint = adopt(content, Path("f.pth"), Description(dataset, task))
    assert list(checkpoint.model) == list(KEYS[name])
    settings = restore_settings(checkpoint.settings)
    assert (settings.model.backbone, settings.model.width, settings.model.head_channels) == (backbone, 64, 256)
    assert (settings.model.output_stride, settings.model.pooling) == (16, 32)
    assert (settings.data.dataset, settings.data.crop, checkpoint.step) == (dataset, 512, step)
    with torch.device("meta"):
        assert build_segmenter(settings.model, checkpoint.class_counts).state_dict().keys() == checkpoint.model.keys()


def test_classes_are_those_of_the_task_in_its_order():
    content = original_content(weights((16, 1, 1)))
    checkpoint = adopt(content, Path("f.pth"), Description("voc", "15-5s_b"))
    # tasks.json: [0, 12, 9, 20, 7, ...], [17], [3], ...
    assert checkpoint.classes[:3] == ["background", "dog", "chair"]
    assert checkpoint.classes[-2:] == ["sheep", "bird"]
    assert checkpoint.step == 2


def test_step_follows_from_the_classifiers_and_is_checked_against_the_task(tmp_path):
    content = original_content(weights((16, 1)))
    with pytest.raises(DataError, match=r"classifiers of 16 \+ 1 classes .*19-1 of voc has 20 \+ 1") as error:
        adopt(content, tmp_path / "f.pth", Description("voc", "19-1"))
    assert "15-1" in str(error.value.hint)
    assert adopt(original_content(weights((21,))), tmp_path, Description("voc", "joint")).step == 0
    assert adopt(original_content(weights((21,))), tmp_path, Description("voc", "15-1", "joint")).step == 0
    with pytest.raises(DataError, match="--step says 0"):
        adopt(content, tmp_path, Description("voc", "15-1", step=0))


def test_where_steps_bring_domains_the_step_has_to_be_said(tmp_path):
    content = original_content(weights((19,)))
    with pytest.raises(UsageError, match="does not tell the step") as error:
        adopt(content, tmp_path / "f.pth", Description("cityscapes-domain", "11-1"))
    assert "--step N, from 0 to 10" in str(error.value.hint)
    checkpoint = adopt(content, tmp_path, Description("cityscapes-domain", "11-1", step=4))
    assert (checkpoint.step, checkpoint.class_counts, checkpoint.classes[0]) == (4, [19], "road")
    with pytest.raises(DataError, match="--step says 11"):
        adopt(content, tmp_path, Description("cityscapes-domain", "11-1", step=11))


def test_settings_that_the_tensors_cannot_tell_are_said_by_set():
    content = original_content(weights())
    said = ("model.output_stride=8", "model.pooling=none", "model.norm=bn", "data.crop=64")
    settings = restore_settings(adopt(content, Path("f.pth"), Description("voc", "15-1", assignments=said)).settings)
    assert (settings.model.output_stride, settings.model.pooling, settings.model.norm) == (8, None, "bn")
    assert (settings.data.crop, settings.model.width) == (64, 8)
    with pytest.raises(DataError, match=r"model.width = 8, not 64 \(--set\)"):
        adopt(content, Path("f.pth"), Description("voc", "15-1", assignments=("model.width=64",)))


def test_a_bare_state_dict_and_old_files_without_counters_load(tmp_path):
    model = weights()
    for number, content in enumerate(
        (
            original_content(model)["model_state"],
            {name: tensor for name, tensor in model.items() if not name.endswith("num_batches_tracked")},
        )
    ):
        path = tmp_path / f"{number}.pth"
        torch.save(content, path, _use_new_zipfile_serialization=bool(number))
        checkpoint, _ = load_described(path, VOC)
        floats = {name: tensor for name, tensor in checkpoint.model.items() if tensor.is_floating_point()}
        assert same(floats, {name: model[name] for name in floats})
        counters = [tensor for name, tensor in checkpoint.model.items() if name not in floats]
        assert {int(counter) for counter in counters} == ({7} if number == 0 else {0})


@pytest.mark.parametrize("container", ["model_state", "state_dict", "model", None])
@pytest.mark.parametrize("prefix", ["_orig_mod.", "_orig_mod.module.", "module."])
def test_files_that_went_through_wrappers_and_other_programs_load(tmp_path, container, prefix):
    model = weights()
    state = {prefix + name: tensor for name, tensor in model.items()}
    torch.save({container: state, "epoch": 3} if container else state, tmp_path / "f.pth")
    checkpoint, _ = load_described(tmp_path / "f.pth", VOC)
    assert same(dict(checkpoint.model), model)


def test_weights_that_are_not_finite_are_told(tmp_path):
    model = weights()
    model["head.red_conv.weight"][0, 0] = torch.inf
    path = write_original(tmp_path / "f.pth", model)
    with pytest.raises(DataError, match=r"f\.pth holds values that are not finite .* head\.red_conv\.weight"):
        load_described(path, VOC)


def test_what_is_no_whole_network_is_refused(tmp_path):
    model = weights()
    head = {name: tensor for name, tensor in model.items() if not name.startswith("head.map_bn")}
    faults: dict[str, dict[str, Any]] = {
        r"5 tensors|missing: head.map_bn.weight": head,
        "other.weight": model | {"other.weight": torch.zeros(1)},
        r"cls.1.weight \(1, 3, 1, 1\)|another shape": model | {"cls.1.weight": torch.zeros(1, 3, 1, 1)},
        "classifiers cls.0": {name: t for name, t in model.items() if not name.startswith("cls.0")},
        "another network": {name: t for name, t in model.items() if ".block2." not in name},
        "no plain tensors": model | {"cls.0.bias": [1, 2]},
        "head.red_bn.weight, which are no plain": model | {"head.red_bn.weight": torch.zeros(()).expand(16)},
        r"stem \(4, 3, 7, 7\)": model | {"body.mod1.conv1.weight": torch.zeros(4, 3, 7, 7)},
        r"16 \+ 400 classes": model | {"cls.1.weight": torch.zeros(400, 16, 1, 1)},
        "no plain tensor": model | {"cls.0.bias": torch.zeros(16).to_sparse()},
        "cls.0.bias with and without module.": model | {"module.cls.0.bias": torch.zeros(16)},
        r"unknown: cls.9{76}\.\n": model | {f"cls.{'9' * 5000}.weight": torch.zeros(1, 16, 1, 1)},
        r"'\\x1b\[2J'": model | {"\x1b[2J": torch.zeros(1)},
    }
    for message, state in faults.items():
        with pytest.raises(DataError, match=message) as error:
            adopt({"model_state": state}, tmp_path / "f.pth", VOC)
        assert "f.pth" in error.value.message
    with pytest.raises(DataError, match="model_state is a list"):
        adopt({"model_state": [1]}, tmp_path / "f.pth", VOC)


# Untrusted content


def test_numpy_scalars_come_as_numbers(tmp_path):
    path = write_original(tmp_path / "f.pth", weights())
    assert b"numpy._core.multiarray" in path.read_bytes()
    assert load_described(path, VOC)[0].made_with["best_score"] == pytest.approx(0.7423)
    for value in (np.float64(0.5), np.float32(0.5), np.int64(-3), np.bool_(True), np.dtype(">f8").type(2.5)):
        for zipped in (True, False):
            torch.save({"best_score": value}, path, _use_new_zipfile_serialization=zipped)
            read = read_untrusted(path)
            assert read == {"best_score": value}
            assert type(read["best_score"]) in (float, int, bool)
    # NumPy 1 writes another name.
    torch.save({"best_score": np.float64(0.25)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert read_untrusted(path) == {"best_score": 0.25}


class Calls:
    """Pickled, it is a call of any function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (np.zeros(3), "numpy._core.multiarray._reconstruct"),
        (np.complex64(1j), r"numpy.dtype\('c8'\)"),
        (np.str_("a"), r"numpy.dtype\('U1'\)"),
        (np.datetime64("2020-01-01"), r"numpy.dtype\('M8'\)"),
        (np.dtype("O"), r"numpy.dtype\('O8'\)"),
        (Calls(np._core.multiarray.scalar, np.dtype("f8"), b"short"), r"numpy.core.multiarray.scalar"),
        (Calls(np._core.multiarray.scalar, 3, b"12345678"), r"numpy.core.multiarray.scalar"),
        (Calls(np.fromfile, "/etc/passwd"), r"numpy"),
        (Calls(np.load, "/etc/passwd"), r"numpy"),
        (Calls(eval, "1"), r"eval"),
        (Path("x"), r"pathlib"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_nothing_else_is_allowed(tmp_path, value, named):
    path = tmp_path / "f.pth"
    torch.save(original_content(weights(), best_score=value), path)
    with pytest.raises(DataError, match=f"was refused: it needs the code of {named}"):
        load_described(path, VOC)


def test_the_stand_ins_hold_for_the_reading_alone(tmp_path):
    path = write_original(tmp_path / "f.pth", weights())
    before = set(torch.serialization.get_safe_globals())
    load_described(path, VOC)
    assert set(torch.serialization.get_safe_globals()) == before
    assert not any(isinstance(allowed, tuple) and "numpy" in allowed[1] for allowed in before)


# State of the regularisers


def regulariser(name: str, model: dict[str, torch.Tensor], prefix: str = "module.") -> dict[str, Any]:
    torch.manual_seed(5)
    parameters = [n for n, t in model.items() if t.is_floating_point() and "running" not in n]
    table = {prefix + n: torch.rand_like(model[n]) for n in parameters}
    other = {prefix + n: torch.rand_like(model[n]) for n in parameters}
    return {
        "ewc": {"name": "ewc", "fisher": table, "alpha": 0.9},
        "rw": {"name": "rw", "fisher": table, "score": other, "iteration": 400, "alpha": 0.9},
        "pi": {"name": "pi", "score": table, "delta": other, "starting_model": other},
    }[name]


@pytest.mark.parametrize("prefix", ["module.", ""])
@pytest.mark.parametrize(("name", "tables"), [("ewc", ("fisher",)), ("rw", ("fisher", "score")), ("pi", ("score",))])
def test_regulariser_state_is_carried_over_raw(name, tables, prefix):
    model = weights((16,))
    state = regulariser(name, model, prefix)
    content = original_content(model, trainer_state={"regularizer": state})
    checkpoint = adopt(content, Path("f.pth"), Description("voc", "15-1", name))
    assert set(checkpoint.method["carried"]) == set(tables)
    for table in tables:
        carried = checkpoint.method["carried"][table]
        assert same(carried, {n.removeprefix("module."): t for n, t in state[table].items()})
    from plopcli.methods import get_method
    from plopcli.methods.base import StepContext

    settings = restore_settings(checkpoint.settings)
    method = get_method(name)(settings.method, StepContext(1, (16, 1)))
    method.load_carried_state(checkpoint.method, same_step=False)
    old = build_segmenter(settings.model, (16,))
    new = build_segmenter(settings.model, (16, 1))
    method.initialise(new, old)
    parameters = dict(new.named_parameters())
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(0.1)
    assert method.after_gradients(parameters)["regulariser"].item() > 0


def test_a_state_that_does_not_fit_is_left_out_and_told(tmp_path):
    model = weights((16,))
    state = regulariser("ewc", model)
    broken = state | {"fisher": {**state["fisher"], "module.cls.0.bias": torch.zeros(3)}}
    for given, method in ((state, "rw"), (broken, "ewc"), ({"name": "ewc"}, "ewc"), (state, "plop")):
        content = original_content(model, trainer_state={"regularizer": given})
        checkpoint = adopt(content, tmp_path / "f.pth", Description("voc", "15-1", method))
        assert checkpoint.method == {}
        assert checkpoint.made_with["dropped"] == "ewc"
        assert f"its state of ewc is not used by {method}" in caveats(checkpoint, restore_settings(checkpoint.settings))
    shapes = {n: t.shape for n, t in model.items()}
    assert carried_tables({"name": "ewc", "fisher": {3: torch.zeros(1)}}, "ewc", ("fisher",), shapes) is None


# There and back


@pytest.mark.parametrize("name", [None, "ewc", "rw", "pi"])
def test_there_and_back_keeps_every_bit(tmp_path, name):
    model = weights((16, 1))
    model["body.mod1.bn1.weight"][0] = float("nan")  # whatever it holds
    state = None if name is None else regulariser(name, model)
    theirs = write_original(tmp_path / "theirs.pth", model, trainer_state={"regularizer": state})
    done = convert(theirs, tmp_path / "ours.pt", "plop", Description("voc", "15-1", name or "mib"))
    ours = load_checkpoint(tmp_path / "ours.pt")
    assert ours.settings == done.checkpoint.settings
    assert ours.settings["method"]["name"] == (name or "mib")
    convert(tmp_path / "ours.pt", tmp_path / "back.pth", "original", Description())
    before, back = read_untrusted(theirs), read_untrusted(tmp_path / "back.pth")
    assert isinstance(before, dict)
    assert isinstance(back, dict)
    assert list(back) == list(before)
    assert list(back["model_state"]) == list(before["model_state"])
    for key, tensor in before["model_state"].items():
        assert tensor.numpy().tobytes() == back["model_state"][key].numpy().tobytes()
    assert (back["epoch"], back["best_score"]) == (29, pytest.approx(0.7423))
    found = back["trainer_state"]["regularizer"]
    if state is None:
        assert found is None
    else:
        assert found.keys() == state.keys()
        table = "score" if name == "pi" else "fisher"
        assert same(found[table], state[table])
    again = convert(tmp_path / "back.pth", tmp_path / "again.pt", "plop", Description("voc", "15-1", name or "mib"))
    assert again.checkpoint.method.keys() == ours.method.keys()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "again.pt",
        "again.pt.sha256",
        "back.pth",
        "ours.pt",
        "ours.pt.sha256",
        "theirs.pth",
    ]


def test_ours_there_and_back(tmp_path):
    resolved = VOC.resolved()
    ours = adopt(original_content(weights()), tmp_path / "x.pth", VOC)
    save_checkpoint(tmp_path / "ours.pt", ours)
    done = convert(tmp_path / "ours.pt", tmp_path / "theirs.pth", "original", Description())
    assert any("model.width is 8" in note for note in done.notes)
    assert any("head_channels is 16" in note for note in done.notes)
    back = convert(tmp_path / "theirs.pth", tmp_path / "back.pt", "plop", VOC).checkpoint
    assert same(dict(back.model), dict(ours.model))
    assert (back.classes, back.task_steps, back.step) == (ours.classes, ours.task_steps, ours.step)
    assert back.settings["train"] == resolved.settings.model_dump(mode="json")["train"]


def test_conversions_that_make_no_sense_are_refused(tmp_path):
    theirs = write_original(tmp_path / "theirs.pth", weights())
    out = tmp_path / "out.pt"
    with pytest.raises(UsageError, match="--dataset and --task is missing"):
        convert(theirs, out, "plop", Description())
    with pytest.raises(UsageError, match="--method is missing"):
        convert(theirs, out, "plop", Description("voc", "15-1"))
    with pytest.raises(UsageError, match=r"of the original implementation already"):
        convert(theirs, out, "original", Description())
    with pytest.raises(DataError, match="There is no checkpoint"):
        convert(tmp_path / "none", out, "plop", VOC)
    with pytest.raises(UsageError, match="is a folder"):
        convert(tmp_path, out, "plop", VOC)
    assert not out.exists()
    convert(theirs, out, "plop", VOC)
    written = out.read_bytes()
    with pytest.raises(UsageError, match="nothing is overwritten"):
        convert(theirs, out, "plop", VOC)
    with pytest.raises(UsageError, match="of plop already"):
        convert(out, tmp_path / "b", "plop", VOC)
    with pytest.raises(UsageError, match="for the direction to plop"):
        convert(out, tmp_path / "b", "original", VOC)
    assert out.read_bytes() == written
    mobile = ModelSettings(backbone="mobilenet_v2", head_channels=16)
    checkpoint = load_checkpoint(out)
    tensors = build_segmenter(mobile, (16, 1)).state_dict()
    settings = checkpoint.settings | {"model": mobile.model_dump(mode="json")}
    save_checkpoint(tmp_path / "m.pt", type(checkpoint)(**{**vars(checkpoint), "model": tensors, "settings": settings}))
    with pytest.raises(DataError, match="mobilenet_v2, which the original implementation does not have"):
        convert(tmp_path / "m.pt", tmp_path / "b", "original", Description())
    assert not (tmp_path / "b").exists()


def test_without_a_description_one_error_says_what_to_add(tmp_path):
    theirs = write_original(tmp_path / "theirs.pth", weights())
    for load in (load_checkpoint, lambda path: load_described(path, None)):
        with pytest.raises(OriginalCheckpointError, match="neither data set nor task") as error:
            load(theirs)
        assert "--dataset voc --task 15-1" in str(error.value.hint)
    with pytest.raises(UsageError, match="--task is missing"):
        load_described(theirs, Description("voc"))
    with pytest.raises(UsageError, match="There is no task"):
        load_described(theirs, Description("voc", "15-x"))


def test_what_a_file_says_beside_its_tensors_may_be_anything(tmp_path):
    found = read_original(
        original_content(weights(), epoch="x", best_score=[1], trainer_state=3) | {"optimizer_state": None}, tmp_path
    )
    assert (found.epoch, found.best_score, found.regulariser) == (None, None, {})


@pytest.mark.parametrize(
    "method",
    [{"method": "ewc"}, {"method": "pi", "carried": {"score": {"none": torch.zeros(1)}}}, {"carried": [1]}],
)
@pytest.mark.parametrize("name", ["plop", "ewc", "pi"])
def test_a_state_that_was_made_up_is_left_out_of_the_original_s_file(tmp_path, name, method):
    convert(write_original(tmp_path / "theirs.pth", weights()), tmp_path / "a.pt", "plop", replace(VOC, method=name))
    altered = replace(load_checkpoint(tmp_path / "a.pt"), method=method, made_with={"best_score": "high"})
    save_checkpoint(tmp_path / "b.pt", altered)
    convert(tmp_path / "b.pt", tmp_path / "c.pth", "original", Description())
    content = torch.load(tmp_path / "c.pth", weights_only=True)
    assert content["trainer_state"] == {"regularizer": None}
    assert content["best_score"] == 0
