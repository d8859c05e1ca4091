"""Layers of settings: command line over environment over ``--config`` file over presets over defaults.

Every value remembers its origin. Whatever is wrong in any layer is collected and reported at once, with the dotted
key, the value, where it came from and what is allowed.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from plopcli.errors import UsageError, unknown_name
from plopcli.files.plain import read_text
from plopcli.resolution.presets import choose_presets
from plopcli.settings.keys import CHANGES, Leaf, find_leaf, leaves, plain_name, sections, suggest, toml_value
from plopcli.settings.presets import AUTOMATIC, NO_PRESET, Preset
from plopcli.settings.sections import MethodSettings, RunSettings, dealt_as_then, of_unknown_method

DEFAULT_METHOD = "plop"
DEFAULT = "default"
#: Variables of ours that are no settings: the folder of golden values, tracebacks, where to download from.
OTHER_VARIABLES = ("PLOP_PARITY", "PLOP_DEBUG", "PLOP_MIRROR")


class Given(NamedTuple):
    """A value, and the origin to name with it."""

    value: Any
    origin: str


class Assignment(NamedTuple):
    """What a layer says about one key; ``text`` values still have to be parsed."""

    key: str
    value: Any
    origin: str
    text: bool = False


Layer = dict[str, Given]


@dataclass(frozen=True)
class Resolved:
    """The settings of a run and where they come from.

    Args:
        settings: The validated settings.
        origins: For every dotted key the origin of its value: ``--lr``, ``--set``, ``environment PLOP_TRAIN_BATCH``,
            ``FILE.toml``, ``preset voc`` or ``default``.
        overridden: One line for every value that a higher layer replaced with a different one.
        presets: The presets that apply, in order.
        warnings: One line for whatever was ignored.
        notes: One line for every setting of the method that is another because steps bring domains.
    """

    settings: RunSettings
    origins: dict[str, str]
    overridden: tuple[str, ...] = ()
    presets: tuple[Preset, ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def resolve_settings(
    flags: Mapping[str, Any],
    *,
    config: Path | None = None,
    assignments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    preset: str = AUTOMATIC,
    flag_names: Mapping[str, str] | None = None,
    known_method: bool = True,
) -> Resolved:
    """Layers the settings of a run.

    Args:
        flags: Values of the command's own options by dotted key, as text or typed; ``None``: not given.
        config: A TOML file.
        assignments: The ``KEY=VALUE`` of every ``--set``; like the options, they win over everything else.
        environment: Variables like PLOP_TRAIN_LATER_LR; by default those of the process.
        preset: A family of presets, `auto` for the data set's own, or `none`; variants behind it, after commas.
        flag_names: How the options are spelled, by dotted key.
        known_method: Whether the method's code must be here; else what ``config`` says of it is taken as it is.

    Raises:
        UsageError: Everything that is wrong, one line each.
    """
    environment = os.environ if environment is None else environment
    table = {} if config is None else dict(dealt_as_then(read_toml(config)))
    file = "" if config is None else config.name
    errors: list[str] = []
    warnings: list[str] = []

    options = [
        Assignment(key, value, (flag_names or {}).get(key, "flag"), text=isinstance(value, str))
        for key, value in _with_method_file(flags, errors).items()
        if value is not None
    ]
    pairs = _split_assignments(assignments, errors)
    filed_method = Given(_inside(table, "method", "name"), file)
    method = _method([*options, *pairs], environment, filed_method)
    stranger = of_unknown_method(table["method"]) if not known_method and filed_method.value else None
    model = _method_settings(method, stranger, errors)
    keys = leaves(model or MethodSettings)

    def layer(entries: Iterable[Assignment]) -> Layer:
        return _read_layer(entries, keys, errors, method_known=model is not None)

    if filed_method.value and plain_name(filed_method.value) != method.value:
        warnings.append(f"{file}: its [method] is for {filed_method.value}, not {method.value}; it is not used.")
        del table["method"]
    filed = layer(_flatten(table, file, sections(keys)))
    around = layer(_environment_entries(environment, keys, warnings))
    from_options, from_pairs = layer(options), layer(pairs)
    errors += _contradictions(from_options, from_pairs)
    given = [filed, around, from_options | from_pairs]
    presets = _presets(preset, given, method, keys, errors)
    preset_layers = [layer(_flatten(entry.values, f"preset {entry.name}", sections(keys))) for entry in presets]

    values, overridden = _merge([*preset_layers, *given])
    values["method.name"] = method
    notes = _fit_to_domains(values, keys, method)
    settings = _validated(values, model, keys, errors)
    origins = {key: values[key].origin if key in values else DEFAULT for key in keys}
    return Resolved(settings, origins, tuple(overridden), presets, tuple(warnings), tuple(notes))


def read_settings(path: Path) -> RunSettings:
    """The settings in a file that `settings_to_toml` wrote, without any other layer; the method may be unknown here.

    Raises:
        UsageError: It is missing or holds something else.
    """
    return resolve_settings({}, config=path, environment={}, preset=NO_PRESET, known_method=False).settings


def settings_to_toml(settings: RunSettings, origins: Mapping[str, str] | None = None) -> str:
    """The settings as a TOML file that ``--config`` takes back.

    Every setting is written, those without a value as ``"none"``: nothing is left to presets or defaults.

    Args:
        settings: The settings.
        origins: Where each value comes from, for a comment behind it.
    """
    tables: dict[str, list[str]] = {"": []}
    for key in leaves(type(settings.method)):
        table, _, name = key.rpartition(".")
        value: Any = settings
        for part in key.split("."):
            value = getattr(value, part)
        origin = (origins or {}).get(key, DEFAULT)
        comment = "" if origin == DEFAULT else f"  # {origin}"
        tables.setdefault(table, [f"[{table}]"]).append(f"{name} = {toml_value(value)}{comment}")
    return "\n\n".join("\n".join(lines) for lines in tables.values()) + "\n"


#: Parts of a key: no setting has as many.
_DEEPEST = 32


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a settings file.

    Raises:
        UsageError: It is missing or no TOML.
    """
    try:
        text = read_text(path)
        if any(line.partition("=")[0].count(".") > _DEEPEST for line in text.splitlines()):
            raise ValueError(f"its keys have more than {_DEEPEST} parts")
        return tomllib.loads(text)
    except OSError as error:
        raise UsageError(
            f"Cannot read the settings file {path}: {error.strerror}.",
            "`--print-config` writes one to standard output.",
        ) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not a TOML file: {error}.", 'Text needs quotes: task = "15-1".') from error


def _split_assignments(assignments: Sequence[str], errors: list[str]) -> list[Assignment]:
    entries = []
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if equals and key.strip():
            entries.append(Assignment(key.strip(), text.strip(), "--set", text=True))
        else:
            errors.append(f"--set {assignment}: expected KEY=VALUE, such as train.later.lr=0.001.")
    return entries


def _method(direct: Sequence[Assignment], environment: Mapping[str, str], filed: Given) -> Given:
    """The method that the highest layer names; the keys of all layers depend on it."""
    named = [filed, Given(environment.get("PLOP_METHOD_NAME"), "environment PLOP_METHOD_NAME")]
    named += [Given(entry.value, entry.origin) for entry in direct if entry.key == "method.name"]
    chosen = [Given(plain_name(given.value), given.origin) for given in named if given.value]
    return chosen[-1] if chosen else Given(DEFAULT_METHOD, DEFAULT)


def _inside(table: Mapping[str, Any], section: str, name: str) -> Any:
    inner = table.get(section)
    return inner.get(name) if isinstance(inner, dict) else None


def _with_method_file(flags: Mapping[str, Any], errors: list[str]) -> Mapping[str, Any]:
    """``flags``, with the name of its method in place of a file: no other layer can have a file's code run."""
    file = str(flags.get("method.name") or "")
    if not file.endswith(".py"):
        return flags
    from plopcli.methods.from_file import load_method_file

    try:
        return {**flags, "method.name": load_method_file(Path(file))}
    except UsageError as error:
        errors.append(f"method.name: {error.message} {error.hint or ''}".rstrip())
        return {**flags, "method.name": None}


def _method_settings(
    method: Given, stranger: type[MethodSettings] | None, errors: list[str]
) -> type[MethodSettings] | None:
    # The methods import torch; nothing that has no method to look up should wait for it.
    from plopcli.methods import METHODS

    if method.value in METHODS:
        try:
            return METHODS[method.value].Settings
        except UsageError as error:
            errors.append(f"method.name ({method.origin}): {error.message} {error.hint}")
    elif stranger is not None:
        return stranger
    elif method.value.endswith(".py"):
        errors.append(f"method.name ({method.origin}): the file of a method is run only where --method names it.")
    else:
        errors.append(_wrong_name("method.name", "method", method, METHODS))
    return None


def _wrong_name(key: str, kind: str, given: Given, known: Iterable[str]) -> str:
    error = unknown_name(kind, str(given.value), known)
    return f"{key} ({given.origin}): {error.message} {error.hint}"


def _flatten(table: Mapping[str, Any], origin: str, tables: set[str], prefix: str = "") -> Iterator[Assignment]:
    for name, value in table.items():
        key = prefix + name
        if key in tables and isinstance(value, dict):
            yield from _flatten(value, origin, tables, f"{key}.")
        else:
            yield Assignment(key, value, origin)


def _environment_entries(
    environment: Mapping[str, str], keys: Mapping[str, Leaf], warnings: list[str]
) -> Iterator[Assignment]:
    variables = {leaf.variable: key for key, leaf in keys.items()}
    for variable, text in sorted(environment.items()):
        if variable in variables:
            if text:
                yield Assignment(variables[variable], text, f"environment {variable}", text=True)
        elif variable.startswith("PLOP_") and variable not in OTHER_VARIABLES:
            # Without the prefix, which they all share and which would make any two of them look alike.
            bare = {name.removeprefix("PLOP_"): name for name in variables}
            near = get_close_matches(variable.removeprefix("PLOP_"), bare)
            hint = f"Did you mean {' or '.join(bare[name] for name in near)}?" if near else ""
            warnings.append(f"{variable} is set but is no setting of this run; it is not used. {hint}".rstrip())


def _read_layer(
    entries: Iterable[Assignment], keys: Mapping[str, Leaf], errors: list[str], *, method_known: bool
) -> Layer:
    layer: Layer = {}
    for entry in entries:
        leaf = find_leaf(entry.key, keys)
        if leaf is not None:
            value = leaf.parse(entry.value) if entry.text else leaf.convert(entry.value)
            layer[entry.key] = Given(value, entry.origin)
            if isinstance(value, str | Path) and (fault := _unwritable(str(value))):
                errors.append(f"{entry.key} ({entry.origin}): {str(value)!a} {fault}")
        elif method_known or not entry.key.startswith("method."):
            errors.append(
                f"{entry.key} ({entry.origin}): there is no such setting. {suggest(entry.key, keys)}".rstrip()
            )
    return layer


def _unwritable(text: str) -> str | None:
    """Why a text cannot be kept in settings, which are written in UTF-8; None where it can."""
    if "\0" in text:
        return "holds a NUL character, which no name of a file can."
    try:
        text.encode()
    except UnicodeEncodeError:
        return "is no UTF-8, in which settings are kept: rename the file or folder, or give a link to it."
    return None


def _presets(
    name: str, layers: Sequence[Layer], method: Given, keys: Mapping[str, Leaf], errors: list[str]
) -> tuple[Preset, ...]:
    def choice(key: str) -> str:
        given = [layer[key].value for layer in layers if key in layer]
        return str(given[-1] if given else keys[key].default)

    try:
        return choose_presets(name, dataset=choice("data.dataset"), task=choice("scenario.task"), method=method.value)
    except UsageError as error:
        errors.append(f"--preset: {error.message} {error.hint}")
        return ()


def _contradictions(options: Layer, pairs: Layer) -> list[str]:
    both = [(key, options[key], pairs[key]) for key in options if key in pairs]
    return [
        f"{key} is given twice: {_says(option)}, {_says(pair)}."
        for key, option, pair in both
        if option.value != pair.value
    ]


def _merge(layers: Iterable[Layer]) -> tuple[Layer, list[str]]:
    """The values that win, lowest layer first in ``layers``, and what they replaced."""
    merged: Layer = {}
    overridden = []

    def note(key: str, before: Given | None, given: Given) -> None:
        if before is not None and before.value != given.value and not _of_one_family(before, given):
            overridden.append(f"{key}: {_says(before)}, {_says(given)}")

    for layer in layers:
        for key, given in layer.items():
            if not key.startswith(CHANGES + "."):
                note(key, merged.get(key), given)
                merged[key] = given
                continue
            step, name = key.removeprefix(CHANGES + ".").split(".")
            table = merged.get(CHANGES, Given({}, DEFAULT))
            changes = {str(start): dict(recipe) for start, recipe in table.value.items()}
            recipe = changes.setdefault(step, {})
            note(key, Given(recipe[name], table.origin) if name in recipe else None, given)
            recipe[name] = given.value
            merged[CHANGES] = Given(changes, given.origin)
    return merged, overridden


def _of_one_family(before: Given, given: Given) -> bool:
    """Whether both are presets of one family, whose entries are meant to narrow each other down."""
    families = [origin.removeprefix("preset ").partition("/")[0] for origin in (before.origin, given.origin)]
    return before.origin.startswith("preset ") and given.origin.startswith("preset ") and families[0] == families[1]


def _says(given: Given) -> str:
    return f"{given.origin} says {toml_value(given.value)}"


def _fit_to_domains(values: Layer, keys: Mapping[str, Leaf], method: Given) -> list[str]:
    """Where steps bring domains, what makes sense with new classes alone is switched off in ``values``, and told."""
    from plopcli.data.datasets import DATASETS
    from plopcli.methods import METHODS

    dataset = values["data.dataset"].value if "data.dataset" in values else keys["data.dataset"].default
    try:
        if method.value not in METHODS or dataset not in DATASETS or not DATASETS[dataset].domains:
            return []
    except UsageError:  # told with the other errors
        return []
    told = []
    for name, change in METHODS[method.value].for_domains.items():
        key = f"method.{name}"
        before = values[key].value if key in values else keys[key].default
        after = change.get(str(before), before) if isinstance(change, Mapping) else change
        if after != before:
            values[key] = Given(after, "preset domains")
            told.append(f"{key}: {after} in place of {before}, since all steps have the same classes")
    return told


def _validated(
    values: Layer, model: type[MethodSettings] | None, keys: Mapping[str, Leaf], errors: list[str]
) -> RunSettings:
    wrong = {key for key, given in values.items() if not keys[key].accepts(given.value)}
    errors += [
        f"{key} = {toml_value(values[key].value)} ({values[key].origin}): {keys[key].complaint(values[key].value)}"
        for key in keys
        if key in wrong
    ]
    if CHANGES in values and CHANGES not in wrong and (found := _wrong_changes(values[CHANGES], keys)):
        errors += found
        wrong.add(CHANGES)
    errors += _unknown_dataset(values)

    nested: dict[str, Any] = {}
    for key in values.keys() - wrong:
        *path, name = key.split(".")
        inner = nested
        for part in path:
            inner = inner.setdefault(part, {})
        inner[name] = values[key].value
    parts: dict[str, Any] = {}
    for name, field in RunSettings.model_fields.items():
        section = model if name == "method" else field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            # With a wrong value left out, rules that compare values would complain about the wrong thing.
            if not any(key.startswith(f"{name}.") for key in wrong):
                parts[name] = _build(section, nested.get(name, {}), f"{name}.", errors)
        elif name in nested:
            parts[name] = nested[name]
    if not errors:
        settings = _build(RunSettings, parts, "", errors)
    if errors:
        raise _settings_error(errors)
    assert isinstance(settings, RunSettings)
    return settings


def _build(section: type[BaseModel], values: Mapping[str, Any], prefix: str, errors: list[str]) -> BaseModel | None:
    try:
        return section.model_validate(values)
    except ValidationError as error:
        for problem in error.errors():
            key = (prefix + ".".join(str(part) for part in problem["loc"])).rstrip(".")
            message = f"{problem['msg'].removeprefix('Value error, ')}."
            # Rules that compare settings name them in full.
            errors.append(message if message.startswith(f"{key}.") else f"{key}: {message}")
        return None


def _wrong_changes(changes: Given, keys: Mapping[str, Leaf]) -> list[str]:
    errors = []
    for step, table in changes.value.items():
        for name, value in table.items():
            key = f"{CHANGES}.{step}.{name}"
            leaf = find_leaf(key, keys)
            if leaf is None:
                errors.append(f"{key} ({changes.origin}): there is no such setting. {suggest(key, keys)}")
            elif not leaf.accepts(value):
                errors.append(f"{key} = {toml_value(value)} ({changes.origin}): {leaf.complaint(value)}")
    return errors


def _unknown_dataset(values: Layer) -> list[str]:
    from plopcli.data.datasets import DATASETS

    given = values.get("data.dataset")
    if given is None or not isinstance(given.value, str):
        return []
    try:
        if DATASETS.get(given.value) is not None:
            return []
    except UsageError as error:
        return [f"data.dataset ({given.origin}): {error.message} {error.hint}"]
    return [_wrong_name("data.dataset", "data set", given, DATASETS)]


def _settings_error(errors: Sequence[str]) -> UsageError:
    hint = "`plop run-scenario --print-config` shows every setting, its value and its origin."
    if len(errors) == 1:
        return UsageError(f"Wrong setting: {errors[0]}", hint)
    return UsageError("\n".join([f"{len(errors)} settings are wrong:", *(f"  {error}" for error in errors)]), hint)
