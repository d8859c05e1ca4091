"""What an ONNX file of unknown origin may hold before anything of it is run: a plain network, all of it in the file.

ONNX is a language: a graph can loop for ever, read other files, or make a tensor of any size from nothing. What
`plop export` writes does none of that, and only that is run.
"""

from __future__ import annotations

import importlib
import math
from typing import Any

from plopcli.exporting.facts import LARGEST_SIDE

#: Operators that networks consist of. None holds a graph of its own, none makes a tensor from a size alone.
_NAMES = """
Abs Add And ArgMax AveragePool BatchNormalization Cast Ceil Clip Concat Constant Conv CumSum DepthToSpace Div Elu Equal
Erf Exp Flatten Floor Gather GatherND Gelu Gemm GlobalAveragePool Greater GreaterOrEqual HardSigmoid HardSwish Identity
InstanceNormalization LayerNormalization LeakyRelu Less LessOrEqual Log MatMul Max MaxPool Min Mod Mul Neg Not Or PRelu
Pad Pow Range Reciprocal ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum Relu Reshape Resize Round Shape Sigmoid
Size Slice Softmax Softplus Split Sqrt Squeeze Sub Tanh Transpose Unsqueeze Where
"""
_OPERATORS = frozenset(_NAMES.split())
_MOST_NODES = 10_000
#: Side of the picture that sizes are worked out for, and the values that a map may have by then.
_SIDE, _MOST_VALUES = 64, 1 << 25
#: Maps side by side where their size is not known beforehand.
_MOST_COPIES = 1 << 10
#: "To the end", in slices.
_ENDS = (2**31 - 1, 2**63 - 1)


def fault_of(content: bytes) -> str | None:
    """Why a file is not run; None where nothing speaks against it.

    Args:
        content: The file.

    Raises:
        Exception: It is no ONNX file; the packages have a class of their own for each way that it can be wrong.
    """
    onnx = importlib.import_module("onnx")
    model = onnx.load_model_from_string(content)
    graph = model.graph
    if len(graph.node) > _MOST_NODES:
        return f"it has {len(graph.node)} operators"
    if model.functions or model.training_info or graph.sparse_initializer:
        return "it holds functions, training or sparse tensors"
    tensors = list(graph.initializer)
    for node in graph.node:
        if node.domain not in ("", "ai.onnx") or node.op_type not in _OPERATORS:
            return f"it uses the operator {node.op_type:.40}"
        tensors += [attribute.t for attribute in node.attribute if attribute.HasField("t")]
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            return "it holds a graph within its graph"
        if any(abs(number) > LARGEST_SIDE for each in node.attribute for number in (each.i, *each.ints)):
            return f"it holds sizes beyond {LARGEST_SIDE} pixels"
    for tensor in tensors:
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            return "its tensors are in other files, which are not read"
        if fault := _fault_of_tensor(onnx, tensor):
            return fault
    return _growth(onnx, model)


def _fault_of_tensor(onnx: Any, tensor: Any) -> str | None:
    """Sizes, positions and scales are few numbers, and none is large; takes the values of large tensors away."""
    count = math.prod(tensor.dims)
    if any(size < 0 for size in tensor.dims) or count > _MOST_VALUES * 8:
        return "one of its tensors has no sound shape"
    if count > 4096:
        tensor.ClearField("raw_data")
        return None
    if tensor.data_type in (onnx.TensorProto.INT32, onnx.TensorProto.INT64):
        numbers = onnx.numpy_helper.to_array(tensor).ravel().tolist()
        if any(abs(number) > LARGEST_SIDE and abs(number) not in _ENDS and number != -(2**63) for number in numbers):
            return f"it holds sizes beyond {LARGEST_SIDE} pixels"
    return None


def _growth(onnx: Any, model: Any) -> str | None:
    """Whether a small picture becomes maps of any size on its way."""
    for entry in model.graph.input:
        for place, dimension in enumerate(entry.type.tensor_type.shape.dim):
            if not dimension.HasField("dim_value"):
                dimension.dim_value = 1 if place == 0 else _SIDE
    del model.graph.value_info[:], model.graph.output[:]
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {value.name: value.type.tensor_type.shape.dim for value in graph.value_info}
    copies: dict[str, int] = {}
    for node in graph.node:
        parts = [copies.get(name, 1) for name in node.input]
        for name in node.output:
            sizes = [size.dim_value for size in shapes.get(name, ()) if size.HasField("dim_value")]
            if math.prod(sizes) > _MOST_VALUES:
                return f"it makes a map of {math.prod(sizes):,} values of a picture of {_SIDE} x {_SIDE} pixels"
            if not sizes or len(sizes) < len(shapes[name]):  # it depends on what is computed
                copies[name] = sum(parts) if node.op_type == "Concat" else max(parts, default=1)
                if copies[name] > _MOST_COPIES:
                    return "it joins maps with themselves over and over"
    return None
