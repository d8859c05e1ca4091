"""Pictures that belong to no data set: which ones a user means, and what belongs to each is called."""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from plopcli.data.samples import IMAGE_SUFFIXES
from plopcli.errors import DataError

#: Ends the name of a picture with its classes drawn over it.
OVERLAY = ".overlay.png"
#: The summary beside masks.
AREAS = "areas.json"
#: Where it names a file that was written.
_LEFT = ("mask", "overlay")


def picture_paths(inputs: Sequence[str], apart_from: Path | None = None) -> list[Path]:
    """The pictures that files, folders (all that is below them) and globs name, in order, each once.

    Args:
        inputs: What a user names.
        apart_from: The folder to write to: folders and globs never mean what an earlier command has left there. Where
            it is itself the folder of the pictures, that is what its `AREAS` lists.

    Raises:
        DataError: One of them names nothing.
    """
    found: dict[Path, None] = {}
    written = None if apart_from is None else _Written(apart_from)
    for entry in inputs:
        path = Path(entry)
        if path.is_dir():
            files = sorted(p for p in path.rglob("*") if _is_picture(p.relative_to(path)) and p.is_file())
        elif path.exists():
            found[path] = None
            continue
        else:
            path = Path(entry[: re.search(r"[*?[]|$", entry).start()].rpartition("/")[0])  # type: ignore[union-attr]
            files = sorted(p for p in map(Path, glob.glob(entry, recursive=True)) if p.is_file())  # noqa: PTH207
        if written is not None:
            files = [p for p in files if not written.holds(p, path)]
        if not files:
            what = "is a folder without pictures" if Path(entry).is_dir() else "names no picture"
            raise DataError(f"{entry} {what}.", f"Pictures in folders end in {', '.join(IMAGE_SUFFIXES)}.")
        found |= dict.fromkeys(files)
    return list(found)


class _Written:
    """What earlier commands have left in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self._listed: set[Path] = set()
        with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):  # none, or another program's
            entries = json.loads((folder / AREAS).read_text("utf-8"))["pictures"]
            self._listed = {Path(entry[key]).resolve() for entry in entries for key in _LEFT if key in entry}

    def holds(self, picture: Path, among: Path) -> bool:
        """Whether a file found below the folder ``among`` is one of these."""
        place, above = picture.resolve(), among.resolve()
        below = self._folder != above and self._folder.is_relative_to(above)
        return place in self._listed or (below and place.is_relative_to(self._folder))


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not any(part.startswith(".") for part in path.parts)


def output_names(pictures: Sequence[Path]) -> dict[Path, Path]:
    """A name without suffix for what belongs to each picture, relative to the output folder; no two are the same.

    Names are those of the pictures, below the folder that all of them share. Where pictures differ in their suffix
    alone, it becomes part of the name: the masks of ``a.jpg`` and ``a.bmp`` are ``a.jpg.png`` and ``a.bmp.png``.
    """
    # Not resolved: a link to a picture has a name of its own.
    absolute = {picture: Path(os.path.normpath(picture.absolute())) for picture in pictures}
    common = Path(os.path.commonpath([path.parent for path in absolute.values()]))
    relative = {picture: path.relative_to(common) for picture, path in absolute.items()}
    # A file system may not tell upper from lower case.
    stems: dict[str, int] = {}
    for path in relative.values():
        stem = str(path.with_suffix("")).lower()
        stems[stem] = stems.get(stem, 0) + 1
    names: dict[Path, Path] = {}
    taken: set[str] = set()
    for picture, path in relative.items():
        name = path.with_suffix("") if stems[str(path.with_suffix("")).lower()] == 1 else path
        number = 2
        while _taken_by(name) & taken:
            name, number = path.with_name(f"{path.name}-{number}"), number + 1
        taken |= _taken_by(name)
        names[picture] = name
    return names


def _taken_by(name: Path) -> set[str]:
    """The names that the files of one picture take: the mask and, if asked for, the overlay."""
    return {f"{name}.png".lower(), f"{name}{OVERLAY}".lower()}
