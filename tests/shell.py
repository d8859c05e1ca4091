"""`download` as the command line calls it, into one data root."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from plopcli.data.download import DownloadChoices, download
from plopcli.errors import PlopError


class Shell:
    """Downloads into one data root, and keeps what was said."""

    def __init__(self, root: Path) -> None:
        self.root, self.stream = root, io.StringIO()

    def get(self, name: str, *own: Path, **more: object) -> Path:
        named = {key: more.pop(key) for key in ("backbone", "source") if key in more}
        choices = DownloadChoices(own, **more)  # type: ignore[arg-type]
        return download(name, self.root, Console(file=self.stream, width=200), choices=choices, **named)  # type: ignore[arg-type]

    def fails(self, kind: type[PlopError], name: str, *own: Path, **more: object) -> str:
        with pytest.raises(kind) as caught:
            self.get(name, *own, **more)
        return str(caught.value)

    @property
    def said(self) -> str:
        return self.stream.getvalue()

    def tree(self, name: str) -> set[str]:
        """Files of a data set, without the lock."""
        files = {str(path.relative_to(self.root / name)) for path in (self.root / name).rglob("*") if path.is_file()}
        return files - {".plop-download.lock"}


def save(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
