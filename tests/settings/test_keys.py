from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from plopcli.methods import METHODS
from plopcli.settings.keys import find_leaf, leaves, sections, toml_value

KEYS = leaves(METHODS["plop"].Settings)


def test_keys_are_the_paths_of_the_toml_file():
    assert list(KEYS)[:3] == ["seed", "run", "data.dataset"]
    assert {"train.later.lr", "train.from_step", "method.pod_scales"} <= set(KEYS)
    assert {"train", "train.later", "method"} <= sections(KEYS)
    assert not sections(KEYS) & set(KEYS)


def test_every_setting_describes_itself_and_accepts_its_default():
    for leaf in KEYS.values():
        assert leaf.description, leaf.key
        assert leaf.allowed, leaf.key
        if leaf.key != "method.name":
            assert leaf.accepts(leaf.default), leaf.key


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("train.batch", "a whole number >= 1"),
        ("data.val_fraction", "a number >= 0 and < 1"),
        ("data.workers", "a whole number >= 0 or auto"),
        ("data.path", "a path or none"),
        ("data.cache", "true or false"),
        ("data.scale", "2 values, each a number > 0, the lower one first"),
        ("model.output_stride", "one of 8, 16"),
        ("method.pod_scales", "a list (1 or more), each a whole number >= 1"),
    ],
)
def test_what_is_allowed_in_words(key, words):
    assert KEYS[key].allowed == words


def test_changes_from_a_step_have_the_keys_of_later_steps():
    leaf = find_leaf("train.from_step.3.lr", KEYS)
    assert leaf is not None
    assert leaf.accepts(0.1)
    assert not leaf.accepts(0)
    for wrong in ("train.from_step.0.lr", "train.from_step.x.lr", "train.from_step.3", "train.from_step.3.lrr"):
        assert find_leaf(wrong, KEYS) is None


@pytest.mark.parametrize(
    "value", [True, 3, 1e-7, 'a "b" \\ \n ü \x7f', [1, [2, 3]], {"3": {"lr": 0.1, "a b": "x"}}, {}]
)
def test_values_survive_toml(value):
    assert tomllib.loads(f"value = {toml_value(value)}")["value"] == value


def test_paths_and_nothing_in_toml():
    assert toml_value(Path("a/b")) == '"a/b"'
    assert toml_value(None) == '"none"'
