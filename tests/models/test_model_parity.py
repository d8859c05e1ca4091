"""Golden outputs of the original implementation: every case of models.npz, also of a folder named by PLOP_PARITY."""

from __future__ import annotations

import copy
import os
import re
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from parity_data import inputs

from plopcli.models.segmenter import Segmenter, build_segmenter
from plopcli.settings.sections import ModelSettings

OURS = Path(__file__).parents[1] / "parity_data"
GIVEN = Path(os.environ.get("PLOP_PARITY") or OURS) / "models.npz"
FILE = GIVEN if GIVEN.exists() else OURS / "models.npz"
NORMS = {"abn": "bn", "iabn": "abn"}  # the original's names: abn scales by the plain weight

pytestmark = pytest.mark.parity


@cache
def golden() -> dict[str, np.ndarray]:
    if not FILE.exists():
        return {}
    with np.load(FILE) as file:
        return dict(file)


CASES = sorted({tuple(key.split("/")[:2]) for key in golden()})


# Drawing the weights takes longer than running the network: the tests of one case follow each other and share them.
@lru_cache(maxsize=1)
def build(case: str) -> tuple[Segmenter, int, int]:
    """The model of a case, to be copied before use, and the height and width of its images."""
    name = re.fullmatch(r"(\w+)-(abn|iabn)-os(\d+)-(\d+)x(\d+)-(\d+(?:\+\d+)*)(-signed)?", case)
    assert name, f"{case} is no name of a case"
    backbone, norm, stride, height, width, classes, signed = name.groups()
    settings = ModelSettings(backbone=backbone, norm=NORMS[norm], output_stride=int(stride))
    with torch.device("meta"):
        model = build_segmenter(settings, [int(count) for count in classes.split("+")])
    state = {key: torch.zeros(value.shape, dtype=value.dtype) for key, value in model.state_dict().items()}
    drawn = inputs.weights({key: tuple(v.shape) for key, v in state.items()}, "model/signed/" if signed else "model/")
    model.load_state_dict(state | {key: torch.from_numpy(value) for key, value in drawn.items()}, assign=True)
    return model, int(height), int(width)


def run(case: str, mode: str, dtype: torch.dtype) -> dict[str, np.ndarray]:
    """Everything that the golden file may hold for a case."""
    drawn, height, width = build(case)
    model = copy.deepcopy(drawn).to(dtype).train(mode == "train")
    batch = len(golden()[f"{case}/{mode}/logits_small"])
    images = torch.from_numpy(inputs.model_input(batch, height, width)).to(dtype)
    with torch.no_grad():
        out = model(images, features=True)
    found = {"logits_small": out.small, "logits_corner": out.logits[:, :, :4, :4]}
    found["logits_mean_std"] = torch.stack([out.logits.mean(), out.logits.std()])
    for i, feature in enumerate(out.features):
        found[f"attention{i}_shape"] = torch.tensor(feature.shape)
        found[f"attention{i}_mean_std"] = torch.stack([feature.mean(), feature.std()])
        found[f"attention{i}_head"] = feature.flatten()[:64]
    return {key: value.double().numpy() for key, value in found.items()}


def compare(case: str, mode: str, dtype: torch.dtype, tolerance: float) -> None:
    found = run(case, mode, dtype)
    prefix = f"{case}/{mode}/"
    keys = [key.removeprefix(prefix) for key in golden() if key.startswith(prefix)]
    errors = {}
    for key in keys:
        wanted = golden()[prefix + key].astype(np.float64)
        assert found[key].shape == wanted.shape
        errors[key] = np.abs(found[key] - wanted).max() / np.abs(wanted).max()
    assert keys
    assert {key: error for key, error in errors.items() if not error <= tolerance} == {}


def test_golden_file_is_there():
    assert CASES, f"no cases in {FILE}"


@pytest.mark.parametrize(
    ("case", "mode", "dtype"),
    [
        (case, mode, dtype)
        for case, mode in CASES
        for dtype in (torch.float64, torch.float32)
        if mode == "eval" or dtype == torch.float64
    ],
)
def test_golden_values(case, mode, dtype):
    # The original's compiled norm holds slope and eps as float32 numbers; a large map is stored as float32.
    loose = case.endswith("-signed") or golden()[f"{case}/{mode}/logits_small"].dtype == np.float32
    double = 1e-5 if loose else 1e-6
    compare(case, mode, dtype, double if dtype == torch.float64 else 1e-4)
