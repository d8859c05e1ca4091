"""The formats that a model can be exported to. Each is a module with two functions and a line in `FORMATS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from plopcli.data.transforms import normalise
from plopcli.errors import DataError, UsageError, unknown_name
from plopcli.evaluation.predict import Forward
from plopcli.exporting import onnx_file, safetensors_file, torchscript_file
from plopcli.exporting.facts import Facts
from plopcli.exporting.network import InferenceNetwork


@dataclass(frozen=True)
class Format:
    """A format.

    Args:
        runtime: What runs such files, for messages.
        suffixes: Suffixes of such files; the first one is usual.
        write: Turns a network and its facts into the content of a file.
        open: Opens a file on a device, and gives a callable that takes what its facts say, and the facts.
    """

    runtime: str
    suffixes: tuple[str, ...]
    write: Callable[[InferenceNetwork, Facts], bytes]
    open: Callable[[Path, torch.device], tuple[Callable[[Tensor], Tensor], Facts]]


#: Every kind of file by the name that `--format` calls it.
FORMATS: dict[str, Format] = {
    "onnx": Format("ONNX Runtime", (".onnx",), onnx_file.write, onnx_file.open_file),
    "torchscript": Format("TorchScript", (".ts", ".torchscript"), torchscript_file.write, torchscript_file.open_file),
    "safetensors": Format(
        "the folded network in torch", (".safetensors",), safetensors_file.write, safetensors_file.open_file
    ),
}


def format_of(path: Path) -> str | None:
    """The format that the suffix of a file tells, if any."""
    return next((name for name, kind in FORMATS.items() if path.suffix.lower() in kind.suffixes), None)


def choose_format(name: str | None, path: Path | None) -> str:
    """The format to write: ``name``, or that of the suffix of ``path``.

    Raises:
        UsageError: There is no such format; or neither name nor suffix tells one, or they contradict each other.
    """
    told = None if path is None else format_of(path)
    if name is not None and name not in FORMATS:
        raise unknown_name("export format", name, FORMATS)
    if name is None and told is None:
        suffixes = ", ".join(kind.suffixes[0] for kind in FORMATS.values())
        raise UsageError(
            f"The format is not told{f' by the name {path.name}' if path else ''}.",
            f"Say --format {'|'.join(FORMATS)}, or give OUT with one of the suffixes {suffixes}.",
        )
    if name is not None and told not in (None, name):
        assert path is not None
        raise UsageError(
            f"--format {name} and the name {path.name} contradict each other.",
            f"Files of {name} end in {' or '.join(FORMATS[name].suffixes)}.",
        )
    chosen = name or told
    assert chosen is not None
    return chosen


def open_exported(path: Path, name: str, device: torch.device) -> tuple[Forward, Facts]:
    """What runs an exported file of a format on a device, fed with pixels whatever it takes, and its facts.

    Raises:
        DataError: It is missing, damaged or another file.
        MachineError: Its runtime is not installed, or not for ``device``.
    """
    if not path.is_file():
        raise DataError(f"There is no file {path}.", "`plop export` writes models.")
    run, facts = FORMATS[name].open(path, device)

    def forward(pixels: Tensor) -> Tensor:
        pixels = pixels.to(device)
        with torch.inference_mode():
            return run(normalise(pixels, channels_last=False) if facts.input == "normalised" else pixels)

    return forward, facts
