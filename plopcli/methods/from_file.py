"""A method from a Python file that the user names: for a quick try, without a package."""

from __future__ import annotations

import sys
from importlib.abc import InspectLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from plopcli.errors import UsageError, first_line
from plopcli.files.plain import LIST, read_text
from plopcli.methods import METHODS
from plopcli.methods.base import Method
from plopcli.plugins import Origin
from plopcli.settings.keys import plain_name
from plopcli.settings.sections import MethodSettings

#: Path and content of every file that a method was loaded from, by the method's name.
_FILES: dict[str, tuple[Path, str]] = {}


def load_method_file(path: Path) -> str:
    """Runs the file and adds the method in it to `METHODS`.

    Returns:
        The method's name.

    Raises:
        UsageError: It cannot be read or run, holds no method or several, or its name is taken.
    """
    path = path.resolve()
    try:
        text = read_text(path, LIST)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"Cannot read the method's file {path}: {getattr(error, 'strerror', None) or error}."
        ) from error
    for name, known in _FILES.items():
        if known == (path, text):
            return name
    kind = _method_in(_run(path, text))
    name = str(kind.Settings.model_fields["name"].default)
    if name != plain_name(name):
        raise UsageError(f"{path}: the name '{name}' is not in lower case with dashes.", f"Call it {plain_name(name)}.")
    if name in METHODS and name not in _FILES:
        raise UsageError(
            f"{path}: there is a method called '{name}' already, of {METHODS.origin(name)}.",
            'Give yours another name, in its settings: name: Literal["mine"] = "mine".',
        )
    METHODS.add(name, kind, Origin(str(path)))
    _FILES[name] = path, text

    def reduced(settings: MethodSettings, protocol: object) -> tuple[Any, ...]:
        return _restored, (path, settings.model_dump())

    # Other processes of a run cannot import its module by name.
    kind.Settings.__reduce_ex__ = reduced  # type: ignore[assignment]
    return name


def text_of(name: str) -> str | None:
    """The content of the file that the method called ``name`` was loaded from, None if it comes from elsewhere."""
    return _FILES[name][1] if name in _FILES else None


def _restored(path: Path, values: dict[str, Any]) -> MethodSettings:
    return METHODS[load_method_file(path)].Settings.model_validate(values)


class _Loader(InspectLoader):
    """Makes a module of a text, and leaves no ``__pycache__`` beside its file, which may be a run's folder."""

    def __init__(self, path: Path, text: str) -> None:
        self.path, self.text = path, text

    def get_source(self, fullname: str) -> str:
        return self.text

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.text, str(self.path))


def _run(path: Path, text: str) -> ModuleType:
    loader = _Loader(path, text)
    spec = spec_from_loader(f"plop_method_file_{path.stem}", loader)
    assert spec is not None
    module = module_from_spec(spec)
    module.__file__ = str(path)
    # Its own classes look for their module while they are made.
    sys.modules[module.__name__] = module
    try:
        loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever the code of others raises
        raise UsageError(
            f"The method's file {path} cannot be run: {type(error).__name__}: {first_line(error)}.",
            "`plop --debug` in front of the command shows the traceback.",
        ) from error
    return module


def _method_in(module: ModuleType) -> type[Method]:
    own = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Method) and value.__module__ == module.__name__
    ]
    # What others in the file are made of is not what is asked for.
    last = [kind for kind in own if not any(kind in other.__mro__[1:] for other in own)]
    if len(last) != 1 or not hasattr(last[0], "Settings"):
        names = ", ".join(kind.__name__ for kind in last) or "none"
        raise UsageError(
            f"{module.__file__} should hold one subclass of Method, with its Settings; it holds {names}.",
            "docs/own-method.md shows a whole one.",
        )
    return last[0]
