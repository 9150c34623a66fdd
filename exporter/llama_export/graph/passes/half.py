"""A graph that computes in float16: what GPUs' fused attention takes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

_WIDE, _HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
_BIAS = 10  # input of GroupQueryAttention


def drop_bias(graph: ir.Graph) -> None:
    """Take from every GroupQueryAttention the bias that hides padding in front: on GPUs it has none.

    Requires:
        A graph on the flash path. What made the bias is left for whoever removes unused nodes.

    Ensures:
        Rows that begin with a token, as all of our own runtime's do, get the numbers that they got.

    Args:
        graph: The assembled graph.
    """
    for node in graph:
        if node.op_type == "GroupQueryAttention":
            node.replace_input_with(_BIAS, None)


def compute_in_half(graph: ir.Graph) -> None:
    """Turn a float32 graph on the flash path into one of float16.

    Requires:
        Angles are tables, weights have no values yet, norms are operators, which are float32 inside, and no
        bias is left, whose -1e9 float16 does not have.

    Ensures:
        Weights, constants and everything between are float16, the cache's inputs and outputs too. Other
        outputs are widened, and keep their names and float32.

    Args:
        graph: The assembled graph.
    """
    for value in list(graph.initializers.values()):
        if value.dtype != _WIDE:
            continue
        if value.const_value is not None:
            array = value.const_value.numpy().astype(np.float16)
            value.const_value = ir.tensor(array, name=value.name)
        value.type = ir.TensorType(_HALF)
    for node in graph:
        if node.op_type == "Cast" and node.attributes["to"].as_int() == _WIDE:
            node.attributes["to"] = ir.AttrInt64("to", _HALF)
        for value in node.outputs:
            if value.dtype == _WIDE:
                value.type = ir.TensorType(_HALF)
    caches = {value.name for value in graph.inputs if value.dtype == _WIDE}
    for value in graph.inputs:
        if value.name in caches:
            value.type = ir.TensorType(_HALF)
    for index, value in enumerate(list(graph.outputs)):
        if value.dtype == _HALF and not str(value.name).startswith("present."):
            graph.outputs[index] = _widened(graph, value)


def _widened(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """A float32 copy of an output, by its name."""
    name = str(value.name)
    value.name = f"{name}.float16"
    wide = ir.Value(name=name, shape=value.shape, type=ir.TensorType(_WIDE))
    to = [ir.AttrInt64("to", _WIDE)]
    graph.append(ir.Node("", "Cast", [value], to, outputs=[wide], name=f"{name}.Cast"))
    return wide
