"""Numbers that belong to the graph, not to the checkpoint."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir


def add_constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """Add an initializer with a value and return it."""
    tensor = ir.tensor(array, name=name)
    shape = ir.Shape(array.shape)
    value = ir.Value(name=name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.initializers.add(value)
    return value


def share_constant(graph: ir.Graph, array: np.ndarray) -> ir.Value:
    """Return the graph's one initializer of this small value, named after what it holds."""
    name = f"constant.{array.dtype}.{array.tolist()}".replace(" ", "")
    return graph.initializers[name] if name in graph.initializers else add_constant(graph, name, array)
