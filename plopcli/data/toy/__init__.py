"""The generated data set: drawn from a seed, needs no download, runs on a laptop."""

from __future__ import annotations

from plopcli.data.toy.difficulty import Difficulty
from plopcli.data.toy.tree import TOY_CLASSES, VOC_FOLDER, ToyParameters, generate_toy, read_toy_parameters

__all__ = ["TOY_CLASSES", "VOC_FOLDER", "Difficulty", "ToyParameters", "generate_toy", "read_toy_parameters"]
