"""Setting one key changes that key alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from plopcli.errors import UsageError
from plopcli.methods import METHODS
from plopcli.reporting.differences import all_settings
from plopcli.resolution.layers import resolve_settings
from plopcli.settings.keys import CHANGES, Leaf, leaves
from plopcli.settings.sections import RunSettings, Section

#: Keys that other settings follow by their very meaning.
FOLLOWED = ("method.name",)


def _others(leaf: Leaf) -> Iterator[Any]:
    """Values that ``leaf`` accepts beside its default."""
    known: list[Any] = [*_literals(leaf.field.annotation), 0, 1, 2, 3, 0.25, 0.5, True, False, "elsewhere", 64, 16]
    known += [[0.25, 0.5], [1, 2, 3], [1], None]
    return (value for value in known if leaf.accepts(value) and leaf.convert(value) != leaf.default)


def _literals(annotation: Any) -> list[Any]:
    inside = getattr(annotation, "__args__", ())
    return [value for part in inside for value in (_literals(part) if hasattr(part, "__args__") else [part])]


@pytest.mark.parametrize("preset", ["none", "auto"])
@pytest.mark.parametrize("method", list(METHODS))
def test_setting_one_key_changes_that_key_alone(method: str, preset: str) -> None:
    flags = {"method.name": method}
    plain = all_settings(resolve_settings(flags, environment={}, preset=preset).settings)
    changed = []
    for key, leaf in leaves(METHODS[method].Settings).items():
        if key in (*FOLLOWED, CHANGES, "data.dataset", "scenario.task"):
            continue
        for value in _others(leaf):
            try:
                settings = resolve_settings(flags | {key: value}, environment={}, preset=preset).settings
            except UsageError:  # a rule between settings
                continue
            after = all_settings(settings)
            if after[key] != plain[key]:
                assert {other for other in after if after[other] != plain[other]} == {key}
                changed.append(key)
                break
    assert len(changed) >= len(plain) - 8, set(plain) - set(changed)


@pytest.mark.parametrize("method", ["plop", "plop-ewf"])
@pytest.mark.parametrize("given", [{}, {"train.later.epochs": 3}])
def test_later_steps_keep_their_rate(method: str, given: dict[str, int]) -> None:
    settings = resolve_settings({"method.name": method} | given, environment={}, preset="none").settings
    assert (settings.train.first.lr, settings.train.later.lr) == (0.01, 0.001)


def _sections(kind: type[Section]) -> Iterator[tuple[str, Any]]:
    for name, field in kind.model_fields.items():
        if isinstance(field.default, Section):
            yield name, field.default
            yield from _sections(type(field.default))


def test_the_defaults_of_a_section_are_those_of_its_fields() -> None:
    found = dict(_sections(RunSettings))
    assert {"data", "later", "output"} <= set(found)
    for name, default in found.items():
        assert default == type(default)(), name


def test_home_in_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    keys = [key for key, leaf in leaves(METHODS["plop"].Settings).items() if "a path" in leaf.allowed]
    assert len(keys) >= 5
    for key in keys:
        value: Any = resolve_settings({key: "~/x"}, environment={}, preset="none").settings
        for part in key.split("."):
            value = getattr(value, part)
        assert value == Path("/home/me/x"), key


@pytest.mark.parametrize("key", ["data.scale", "data.ratio"])
def test_ranges_go_from_low_to_high(key: str) -> None:
    with pytest.raises(UsageError, match="the lower one first"):
        resolve_settings({key: "2,0.5"}, environment={})
    assert resolve_settings({key: "0.5,0.5"}, environment={}).overridden == ()


def test_a_settings_file_with_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "notepad.toml"
    file.write_bytes(b"\xef\xbb\xbf[train]\r\nbatch = 5\r\n")
    assert resolve_settings({}, config=file, environment={}).settings.train.batch == 5
