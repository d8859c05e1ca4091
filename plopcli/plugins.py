"""Registries that installed packages add to, by entry points beside what is built in.

A package says in its pyproject.toml what it brings, and under which name::

    [project.entry-points."plopcli.methods"]
    anchor = "my_package.anchor:Anchor"

The groups are plopcli.methods, plopcli.backbones, plopcli.decoders, plopcli.classifiers, plopcli.datasets and
plopcli.presets. A package is imported when one
of its names is asked for, or when all are listed; one that fails stops nobody who asks for another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any, NamedTuple, TypeVar

from plopcli import __version__
from plopcli.errors import UsageError, first_line

T = TypeVar("T")
#: The copy, in a run folder, of the file that the run's method came from (`plopcli.methods.from_file`).
METHOD_FILE = "method.py"


class Origin(NamedTuple):
    """Where an entry of a registry comes from: a package and its version, or a file, which has none."""

    package: str
    version: str | None = None

    def __str__(self) -> str:
        return self.package if self.version is None else f"{self.package} {self.version}"


class Registry(MutableMapping[str, T]):
    """Entries by name: the built-in ones, and those of installed packages.

    Whether a name is in it (``in``) is told without importing anything; iteration imports all, and leaves out what
    cannot be loaded: `problems` tells that.

    Args:
        kind: What the entries are, in the singular, for messages.
        group: The group of entry points.
        built_in: Our own entries.
        check: Makes an entry of what an entry point gave, by its name; raises TypeError or ValueError where it is none.
    """

    def __init__(
        self, kind: str, group: str, built_in: Mapping[str, T], check: Callable[[str, Any], T] = lambda _, found: found
    ) -> None:
        self.kind, self.group = kind, group
        self._check = check
        self._built_in = tuple(built_in)
        self._loaded = dict(built_in)
        self._added: dict[str, Origin] = {}

    @cached_property
    def _entries(self) -> dict[str, list[EntryPoint]]:
        """What packages declare, by name; two packages may declare one name."""
        found: dict[str, list[EntryPoint]] = {}
        for entry in sorted(entry_points(group=self.group), key=lambda entry: str(_origin(entry))):
            found.setdefault(entry.name, []).append(entry)
        return found

    def __contains__(self, name: object) -> bool:
        return name in self._loaded or name in self._entries

    def __getitem__(self, name: str) -> T:
        """The entry called ``name``.

        Raises:
            KeyError: There is none.
            UsageError: A package declares it, and it cannot be loaded.
        """
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def _load(self, name: str) -> T:
        first, *others = self._entries[name]
        if others:
            packages = " and ".join(str(_origin(entry)) for entry in (first, *others))
            raise UsageError(f"Packages {packages} both bring a {self.kind} called '{name}'.", "Uninstall all but one.")
        try:
            return self._check(name, first.load())
        except (Exception, SystemExit) as error:  # whatever the code of others raises
            said = f"{type(error).__name__}: {first_line(error)}"
            raise UsageError(
                f"The {self.kind} '{name}' of package {_origin(first)} cannot be loaded: {said}.",
                f"Mend or uninstall that package; it declares {first.value}.",
            ) from error

    def __iter__(self) -> Iterator[str]:
        broken = self._broken()
        return iter([name for name in dict.fromkeys([*self._loaded, *self._entries]) if name not in broken])

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __setitem__(self, name: str, entry: T) -> None:
        self._loaded[name] = entry

    def __delitem__(self, name: str) -> None:
        del self._loaded[name]

    def add(self, name: str, entry: T, origin: Origin) -> None:
        """Adds an entry of this process alone, from ``origin``."""
        self._loaded[name], self._added[name] = entry, origin

    def origin(self, name: str) -> Origin:
        """Where the entry called ``name`` comes from."""
        if name in self._added:
            return self._added[name]
        if name in self._entries and name not in self._built_in:
            return _origin(self._entries[name][0])
        return Origin("plopcli", __version__)

    def problems(self) -> list[str]:
        """One sentence for everything that a package declares and that is not in the registry."""
        taken = [
            f"Package {_origin(entry)} brings a {self.kind} called '{name}', which plop itself has; it is not used."
            for name in self._built_in
            for entry in self._entries.get(name, [])
        ]
        return [*taken, *self._broken().values()]

    def _broken(self) -> dict[str, str]:
        broken = {}
        for name in self._entries:
            try:
                self[name]
            except UsageError as error:
                broken[name] = error.message
        return broken


def _origin(entry: EntryPoint) -> Origin:
    return Origin("unknown") if entry.dist is None else Origin(entry.dist.name, entry.dist.version)
