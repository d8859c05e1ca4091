"""The keys of the settings: every single setting by its dotted path, what it accepts, and how it is written."""

from __future__ import annotations

import json
import tomllib
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, time
from difflib import get_close_matches
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from plopcli.errors import did_you_mean
from plopcli.settings.sections import Decides, MethodSettings, RunSettings, Section

#: Changes of the recipe from a step on: a table whose entries `--set` reaches one by one.
CHANGES = "train.from_step"
#: How TOML, which has no null, and `--set` write "no value".
NOTHING = ("none", "null")

_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    Path: "a path",
    type(None): "none",
    dict: "a table",
}
_BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


@dataclass(frozen=True)
class Leaf:
    """One setting.

    Args:
        key: Its dotted path, e.g. ``train.later.lr``.
        field: Its declaration.
        decides: What depends on it.
    """

    key: str
    field: FieldInfo
    decides: Decides

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return "PLOP_" + self.key.upper().replace(".", "_")

    @property
    def description(self) -> str:
        """Its docstring."""
        return " ".join((self.field.description or "").split())

    @property
    def allowed(self) -> str:
        """What it accepts, in words."""
        return _in_words(self.field.annotation, self.field.metadata)

    @property
    def default(self) -> Any:
        """The value that holds where no layer gives one."""
        return self.field.get_default(call_default_factory=True)

    @cached_property
    def _adapter(self) -> TypeAdapter[Any]:
        # The key takes the place of an annotation where there is no other: Annotated insists on one.
        kind: Any = Annotated[(self.field.annotation, self.key, *self.field.metadata)]
        # No setting means anything at infinity, and pydantic would let it pass a lower bound.
        return TypeAdapter(kind, config=ConfigDict(allow_inf_nan=False))

    def accepts(self, value: Any) -> bool:
        """Whether ``value`` is in itself a legal value."""
        if isinstance(value, bool) and not _takes_bool(self.field.annotation):
            return False
        try:
            self._adapter.validate_python(value)
        except ValidationError:
            return False
        return True

    def convert(self, value: Any) -> Any:
        """``value`` as the setting holds it; a value that is not legal comes back as it is."""
        if isinstance(value, str) and value.lower() in NOTHING and self.accepts(None):
            return None
        return self._adapter.validate_python(value) if self.accepts(value) else value

    def parse(self, text: str) -> Any:
        """The value that ``text`` from `--set` or the environment means: TOML, else the text itself, else a list."""
        readings: list[Any] = [text]
        try:
            value = tomllib.loads(f"value = {text}")
            if list(value) == ["value"] and not isinstance(value["value"], (date, time)):
                readings.insert(0, value["value"])
        except tomllib.TOMLDecodeError:
            pass
        if "," in text:
            readings.append([part.strip() for part in text.split(",")])
        for reading in readings:
            value = self.convert(reading)
            if value is None or self.accepts(value):
                return value
        return readings[0]

    def complaint(self, value: Any) -> str:
        """What is wrong with ``value``, which the setting does not accept."""
        choices = [str(choice) for choice in _choices(self.field.annotation)]
        hint = did_you_mean(value, choices) if isinstance(value, str) else None
        return f"expected {self.allowed}." + (f" {hint}" if hint else "")


@cache
def leaves(method: type[MethodSettings]) -> dict[str, Leaf]:
    """Every setting of a run with this method, by dotted key, in the order of the TOML file."""
    return {leaf.key: leaf for leaf in _walk(RunSettings, "", method)}


def sections(keys: Mapping[str, Leaf]) -> set[str]:
    """Dotted paths of the tables that hold the settings."""
    return {".".join(parts[:depth]) for key in keys if (parts := key.split(".")) for depth in range(1, len(parts))}


def find_leaf(key: str, keys: Mapping[str, Leaf]) -> Leaf | None:
    """The setting at ``key``; below `train.from_step.N` the keys are those of `train.later`."""
    if key.startswith(CHANGES + "."):
        step, _, name = key.removeprefix(CHANGES + ".").partition(".")
        like = keys.get(f"train.later.{name}")
        return Leaf(key, like.field, like.decides) if like is not None and step.isdecimal() and int(step) >= 1 else None
    return keys.get(key)


def suggest(wrong: str, keys: Mapping[str, Leaf]) -> str:
    """What the user may have meant by the key ``wrong``: a sentence, or nothing."""
    if wrong in sections(keys):
        inside = dict.fromkeys(
            key.removeprefix(wrong + ".").split(".")[0] for key in keys if key.startswith(wrong + ".")
        )
        return f"It is a table of {', '.join(inside)}."
    if wrong.startswith(CHANGES):
        return "The keys are those of train.later, below the step from which they hold: train.from_step.2.lr."
    name = wrong.rpartition(".")[2]
    by_name: dict[str, list[str]] = {}
    for key in keys:
        by_name.setdefault(key.rpartition(".")[2], []).append(key)
    near = by_name.get(name, []) or get_close_matches(wrong, keys)
    if not near:
        near = [key for match in get_close_matches(name, by_name) for key in by_name[match]]
    return f"Did you mean {' or '.join(near[:3])}?" if near else ""


def plain_name(name: object) -> str:
    """The name of a method as we write it: ``LwF-MC`` and ``lwf_mc`` are ``lwf-mc``."""
    return str(name).strip(" \"'").lower().replace("_", "-")


def toml_value(value: Any) -> str:
    """``value`` as TOML; ``None``, which TOML lacks, as the text "none"."""
    if value is None:
        return '"none"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, Mapping):
        inside = ", ".join(f"{_toml_key(str(key))} = {toml_value(entry)}" for key, entry in value.items())
        return f"{{ {inside} }}" if inside else "{}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(toml_value(entry) for entry in value)}]"
    # JSON and TOML escape alike, DEL aside.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def _toml_key(key: str) -> str:
    bare = key and all(letter.isascii() and (letter.isalnum() or letter in "_-") for letter in key)
    return key if bare else toml_value(key)


def _walk(model: type[Section], prefix: str, method: type[MethodSettings]) -> Iterator[Leaf]:
    for name, field in model.model_fields.items():
        inner = method if prefix + name == "method" else field.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            yield from _walk(inner, f"{prefix}{name}.", method)
        else:
            marks = field.json_schema_extra
            decides: Any = marks.get("decides") if isinstance(marks, dict) else None
            yield Leaf(prefix + name, field, decides or model.decides)


def _in_words(annotation: Any, metadata: list[Any] | tuple[Any, ...] = ()) -> str:
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _in_words(inside[0], [*inside[1:], *metadata])
    if origin in (Union, types.UnionType):
        return " or ".join(_in_words(option, metadata) for option in inside)
    if origin is Literal:
        return ("one of " if len(inside) > 1 else "") + ", ".join(str(choice) for choice in inside)
    if origin is tuple and Ellipsis not in inside:
        return f"{len(inside)} values, each {_in_words(inside[0])}" + "".join(
            f", {said}" for said in metadata if isinstance(said, str)
        )
    if origin in (list, tuple):
        return f"a list{_bounds(metadata)}, each {_in_words(inside[0])}"
    word = _WORDS.get(origin or annotation, getattr(annotation, "__name__", str(annotation)))
    return word + _bounds(metadata)


def _bounds(metadata: list[Any] | tuple[Any, ...]) -> str:
    found = []
    for item in metadata:
        for part in item.metadata if isinstance(item, FieldInfo) else [item]:
            found += [f"{sign} {getattr(part, name):g}" for name, sign in _BOUNDS.items() if hasattr(part, name)]
            if hasattr(part, "min_length"):
                found.append(f"({part.min_length} or more)")
    return " " + " and ".join(found) if found else ""


def _choices(annotation: Any) -> list[Any]:
    inside = get_args(annotation)
    if get_origin(annotation) is Literal:
        return list(inside)
    return [choice for option in inside for choice in _choices(option)]


def _takes_bool(annotation: Any) -> bool:
    """Python counts true as the number 1; a settings file does not."""
    if annotation in (bool, Any, dict) or any(isinstance(choice, bool) for choice in _choices(annotation)):
        return True
    return any(_takes_bool(option) for option in get_args(annotation))
