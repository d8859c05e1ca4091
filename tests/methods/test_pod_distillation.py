from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from drawn_outputs import NEW, OLD, outputs
from parity_data import inputs
from pydantic import ValidationError

from plopcli.data.batches import Batch
from plopcli.errors import UsageError
from plopcli.losses.pod import match_logits, pod_distance
from plopcli.methods.base import StepContext
from plopcli.methods.plop import Plop, PlopSettings
from plopcli.models.segmenter import Outputs

GOLDEN = Path(__file__).parents[1] / "parity_data"
STEP = StepContext(1, (OLD, NEW))


def layers(new: Outputs, old: Outputs, **settings: Any) -> dict[str, float]:
    """The layers' shares of the POD term, and the term, as PLOP computes them."""
    method = Plop(PlopSettings(pseudo="off", **settings), STEP)
    batch = Batch(torch.zeros(2, 3, 16, 16), torch.zeros(2, 16, 16, dtype=torch.int64))
    terms = method.losses(batch, new, old)
    return {key: value.item() for key, value in {**method.diagnostics, "pod": terms["pod"]}.items()}


@pytest.mark.parity
@pytest.mark.parametrize("case", inputs.LOSS_CASES)
@pytest.mark.parametrize(
    ("name", "settings", "count"),
    [
        ("pod_plop", {}, 6),
        ("pod_10-1", {"pod_logits_factor": 0.00001}, 6),
        ("pod_no_schedule", {"pod_schedule": False, "pod_logits": "trim"}, 6),
        ("pod_spatial_no_logits", {"pod": "spatial", "pod_logits": "off"}, 5),
    ],
)
def test_pod_term(case: str, name: str, settings: dict[str, Any], count: int) -> None:
    given = inputs.loss_inputs(case)
    batch, old_classes, new_classes, _ = inputs.LOSS_CASES[case]
    method = Plop(PlopSettings(pseudo="off", **settings), StepContext(1, (old_classes, new_classes)))

    def result(prefix: str, small: str) -> Outputs:
        features = tuple(torch.from_numpy(f) for f in given[f"{prefix}features"])
        return Outputs(torch.from_numpy(given[f"{prefix}logits"]), torch.from_numpy(given[small]), features)

    labels = torch.from_numpy(given["labels"])
    terms = method.losses(
        Batch(torch.zeros(batch, 3, 1, 1), labels), result("", "new_small"), result("old_", "old_small")
    )

    assert terms["pod"].item() == pytest.approx(np.load(GOLDEN / "losses.npz")[f"{case}/{name}"], rel=1e-5)
    shares = [value for key, value in method.diagnostics.items() if key.startswith("pod_")]
    assert len(shares) == count
    torch.testing.assert_close(sum(shares), terms["pod"])


def test_settings_of_the_pod_term_change_it() -> None:
    new, old = outputs(OLD + NEW), outputs(OLD)

    def pod(**settings: Any) -> float:
        return layers(new, old, **settings)["pod"]

    both, features, logits = pod(), pod(pod_logits_factor=0), pod(pod_factor=0)
    assert both == pytest.approx(features + logits)
    assert pod(pod_logits="off") == pytest.approx(features * 6 / 5)  # five layers instead of six
    assert pod(pod_logits="trim") != both
    assert pod(pod_scales=(1, 2)) < both
    assert pod(pod_schedule=False) * math.sqrt((OLD + NEW) / NEW) == pytest.approx(both)


@pytest.mark.parametrize("mode", ["local", "global", "spatial"])
@pytest.mark.parametrize("preparation", ["pow", "none", "abs", "relu"])
def test_modes_and_preparations_hold_for_every_layer(mode: Any, preparation: Any) -> None:
    new, old = outputs(OLD + NEW), outputs(OLD)
    found = layers(new, old, pod=mode, pod_prepro=preparation)
    schedule = math.sqrt((OLD + NEW) / NEW)
    for i, (a, b) in enumerate(zip(new.features, old.features, strict=True), 1):
        distance = pod_distance(a, b, (1, 2, 4), mode, preparation).item()
        assert found[f"pod_{i}"] == pytest.approx(0.01 / 6 * schedule * distance)
    joined = match_logits(new.small, OLD, "sum")
    distance = pod_distance(joined, old.small, (1, 2, 4), mode, preparation).item()
    assert found["pod_logits"] == pytest.approx(0.0005 / 6 * schedule * distance)


@pytest.mark.parametrize(("apply", "compared"), [("all", "12345"), ("backbone", "1234"), ("head", "5")])
@pytest.mark.parametrize("logits", ["sum", "off"])
def test_pod_is_applied_to_the_chosen_maps(apply: str, compared: str, logits: str) -> None:
    new, old = outputs(OLD + NEW), outputs(OLD)
    everything = layers(new, old)
    found = layers(new, old, pod_apply=apply, pod_logits=logits)
    expected = {f"pod_{i}" for i in compared} | ({"pod_logits"} if logits == "sum" else set())
    assert found.keys() == expected | {"pod"}
    for name in expected:  # the mean runs over the compared layers
        assert found[name] == pytest.approx(everything[name] * 6 / len(expected))


def test_pod_on_large_logits_compares_the_upsampled_ones() -> None:
    new, old = outputs(OLD + NEW), outputs(OLD)
    large = layers(new, old, pod_logits_size="large", pod_factor=0)["pod"]
    distance = pod_distance(match_logits(new.logits, OLD, "sum"), old.logits).item()
    assert large == pytest.approx(0.0005 / 6 * math.sqrt((OLD + NEW) / NEW) * distance)
    assert large != pytest.approx(layers(new, old, pod_factor=0)["pod"])


def test_without_pod_no_features_are_needed() -> None:
    method = Plop(PlopSettings(pseudo="off", pod="off"), STEP)
    assert not method.uses_features
    assert not method.uses_old_model
    batch = Batch(torch.zeros(2, 3, 16, 16), torch.zeros(2, 16, 16, dtype=torch.int64))
    assert list(method.losses(batch, outputs(OLD + NEW), None)) == ["classification"]


@pytest.mark.parametrize("settings", [{}, {"pod": "global"}])
def test_maps_that_are_too_small_are_the_user_s_mistake(settings: dict[str, Any]) -> None:
    def shrunk(given: Outputs) -> Outputs:
        return given._replace(features=tuple(F.avg_pool2d(f, f.shape[-1]) for f in given.features))

    with pytest.raises(UsageError, match="1 x 1") as error:
        layers(shrunk(outputs(OLD + NEW)), shrunk(outputs(OLD)), **settings)
    assert "data.crop" in str(error.value.hint)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"pod": 1}, "local"),
        ({"pod_factor": -1}, "greater"),
        ({"pod_logits_factor": -0.1}, "greater"),
        ({"pod_logits": "both"}, "trim"),
        ({"pod_scales": ()}, "at least 1"),
        ({"pod_scales": (0, 2)}, "greater"),
        ({"pod_prepro": "square"}, "relu"),
        ({"pod_apply": "deeplab"}, "backbone"),
        ({"pod_logits_size": "big"}, "large"),
        ({"pod": "spatial", "pod_scales": (1, 2)}, "method.pod_scales belongs to method.pod = local or global"),
        ({"pod_logits": "off", "pod_logits_size": "large"}, "method.pod_logits = sum or trim"),
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        PlopSettings(**wrong)


def test_without_pod_its_settings_are_free() -> None:
    assert PlopSettings(pod="off", pod_scales=(1, 2), pod_logits="off", pod_logits_size="large").pod == "off"
