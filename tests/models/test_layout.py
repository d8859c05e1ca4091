"""The memory layout that a network gets."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from plopcli.models.layout import is_channels_last, memory_layout
from plopcli.models.segmenter import build_segmenter
from plopcli.runs.restore import place
from plopcli.settings.sections import ComputeSettings, ModelSettings

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("backbone", "width", "sound"),
    [
        ("resnet18", 8, False),
        ("resnet18", 15, False),
        ("resnet18", 16, True),
        ("resnet50", 8, True),
        ("mobilenet_v2", 64, True),
    ],
)
def test_networks_of_few_channels_are_not_channels_last_on_cpus(backbone: str, width: int, sound: bool) -> None:
    settings = ModelSettings(backbone=backbone, width=width, head_channels=8, pretrained=False)
    model = build_segmenter(settings, (3,))
    assert memory_layout(model, GPU, True) is torch.channels_last
    assert memory_layout(model, CPU, False) is torch.contiguous_format
    assert is_channels_last(place(model, CPU, ComputeSettings())) == sound
    assert not is_channels_last(place(model, CPU, ComputeSettings(channels_last=False)))


# Where the layout is not heeded this dies of a signal, on processors with AVX-512.
LARGE_MAPS = """
import torch
from plopcli.data.transforms import normalise
from plopcli.models.layout import is_channels_last
from plopcli.models.segmenter import build_segmenter
from plopcli.runs.restore import place
from plopcli.settings.sections import ComputeSettings, ModelSettings

settings = ModelSettings(backbone="resnet18", width=8, head_channels=8, pretrained=False)
model = place(build_segmenter(settings, (3,)), torch.device("cpu"), ComputeSettings())
images = normalise(torch.zeros(4, 256, 256, 3, dtype=torch.uint8), channels_last=is_channels_last(model))
for _ in range(10):
    model.train()(images).logits.sum().backward()
"""


def test_large_crops_train_on_few_channels() -> None:
    ended = subprocess.run([sys.executable, "-c", LARGE_MAPS], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
