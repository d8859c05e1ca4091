"""ONNX files: written by torch's exporter, run by ONNX Runtime. Both need packages that plop needs for nothing else."""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plopcli.errors import DamagedFileError, DataError, MachineError, PlopError, first_line
from plopcli.exporting.facts import Facts, read_facts
from plopcli.exporting.network import InferenceNetwork, example
from plopcli.exporting.onnx_check import fault_of

#: Names of the graph's input and output.
INPUT, OUTPUT = {"pixels": "pixels", "normalised": "images"}, "logits"
_NEEDED = ("onnx", "onnxscript", "onnxruntime")


def write(network: InferenceNetwork, facts: Facts) -> bytes:
    """The content of an ONNX file: one graph for any batch and size, its facts among the model's properties.

    Raises:
        MachineError: A package is not installed.
    """
    onnx, *_ = (required(name) for name in _NEEDED)
    name = INPUT[network.takes]
    rows = 1 if network.takes == "pixels" else 2
    with _quiet():
        program = torch.onnx.export(
            network,
            (example(network),),
            dynamo=True,
            verbose=False,
            external_data=False,
            input_names=[name],
            output_names=[OUTPUT],
            dynamic_shapes=({0: "batch", rows: "height", rows + 1: "width"},),
        )
    assert program is not None
    model = program.model_proto
    # Where in our source each node comes from: paths of this machine.
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    del model.metadata_props[:], model.graph.metadata_props[:]
    for key, value in facts.metadata().items():
        model.metadata_props.add(key=key, value=value)
    model.producer_name, model.producer_version = "plop", facts.version_of_plop
    model.doc_string = f"{facts.backbone}, {facts.dataset} {facts.task} after step {facts.step}"
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString()
    return content


def open_file(path: Path, device: torch.device) -> tuple[Callable[[Tensor], Tensor], Facts]:
    """What runs an ONNX file, on as many threads as torch has, and its facts.

    Raises:
        DataError: It is damaged, or not one of `write`.
        MachineError: ONNX Runtime is not installed, or not for ``device``.
    """
    runtime, _ = required("onnxruntime"), required("onnx")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    providers = [_provider(runtime, device)]
    try:
        content = path.read_bytes()
        if (fault := fault_of(content)) is not None:
            raise DamagedFileError(f"{path} was refused: {fault}.", "plop runs the files that `plop export` wrote.")
        session = runtime.InferenceSession(content, options, providers=providers)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    except PlopError:
        raise
    except Exception as error:  # ONNX Runtime has one class of its own for each way a file can be wrong
        first = f"{first_line(error):.300}"
        raise DamagedFileError(f"{path} is no ONNX file, or it is damaged: {first}", "Export it again.") from error
    facts = read_facts(session.get_modelmeta().custom_metadata_map, path)
    name = INPUT[facts.input]
    signature = [entry.name for entry in session.get_inputs()], [entry.name for entry in session.get_outputs()]
    if signature != ([name], [OUTPUT]):
        raise DataError(f"{path} takes and gives {signature}, not {name} and {OUTPUT}.", "Export it again.")

    def run(pictures: Tensor) -> Tensor:
        try:
            (logits,) = session.run([OUTPUT], {name: pictures.cpu().numpy()})
        except Exception as error:  # as above
            raise DamagedFileError(
                f"{path} cannot be run on a picture: {first_line(error):.300}.", "Export it again."
            ) from error
        rows = 1 if facts.input == "pixels" else 2
        expected = (len(pictures), len(facts.classes), *pictures.shape[rows : rows + 2])
        if getattr(logits, "shape", None) != expected or logits.dtype != np.float32:
            raise DamagedFileError(f"{path} gives other than a score for each class and pixel.", "Export it again.")
        return torch.from_numpy(logits)

    return run, facts


def required(name: str) -> Any:
    """A package that is needed for ONNX alone.

    Raises:
        MachineError: It is not installed.
    """
    try:
        # Some of them use what others of them deprecate.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except ImportError as error:
        raise MachineError(
            f"ONNX needs the package {name}, which is not installed.", "pip install 'plopcli[export]'"
        ) from error


def _provider(runtime: Any, device: torch.device) -> str:
    wanted = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}.get(device.type)
    if wanted is None or wanted not in runtime.get_available_providers():
        raise MachineError(
            f"The installed onnxruntime does not run on {device}.",
            "Use the CPU; or, for CUDA, pip install onnxruntime-gpu in place of onnxruntime.",
        )
    return wanted


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the warnings and log lines that the exporter has for its developers."""
    talkers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [talker.level for talker in talkers]
    for talker in talkers:
        talker.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for talker, level in zip(talkers, levels, strict=True):
            talker.setLevel(level)
