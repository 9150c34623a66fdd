"""Reshapes with targets that are constants or shared, instead of shape arithmetic in every layer."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from llama_export.graph.constant import add_constant
from llama_export.graph.contract import BATCH

Target = tuple[int | str, ...]


def simplify_reshapes(graph: ir.Graph) -> None:
    """Give every Reshape a shared target and drop those that cancel.

    Requires:
        Shapes as traced: symbolic dims named, products written ``batch_size*sequence_length``.

    Ensures:
        At most one Reshape between two other nodes, none that changes nothing, and one target tensor for
        all Reshapes of the same kind. A target's only unknown but the batch size is left to -1.
    """
    targets: dict[Target, ir.Value] = {}
    for node in list(graph):
        if node.op_type != "Reshape" or node.domain:
            continue
        output, shape = node.outputs[0], node.outputs[0].shape
        if shape is None or output.dtype == ir.DataType.INT64:
            continue  # shape arithmetic itself: unused once the targets are shared
        source = node.inputs[0]
        assert source is not None
        inner = source.producer()
        if inner is not None and inner.op_type == "Reshape":
            source = inner.inputs[0]
            assert source is not None
            node.replace_input_with(0, source)
        if source.shape is not None and _dims(source.shape) == _dims(shape) and not output.is_graph_output():
            output.replace_all_uses_with(source)
            graph.remove(node, safe=True)
            continue
        target = _target(shape)
        if target not in targets:
            targets[target] = _target_value(graph, target)
        node.replace_input_with(1, targets[target])


def _dims(shape: ir.Shape) -> tuple[str, ...]:
    return tuple(str(dim) for dim in shape)


def _target(shape: ir.Shape) -> Target:
    """The target of a shape: its last symbolic dim is inferred (-1), one before it must be the batch."""
    symbolic = [axis for axis, dim in enumerate(shape) if not isinstance(dim, int)]
    target: list[int | str] = [dim if isinstance(dim, int) else str(dim) for dim in shape]
    if symbolic:
        target[symbolic[-1]] = -1
    assert all(isinstance(dim, int) or dim == BATCH for dim in target), shape
    return tuple(target)


def _target_value(graph: ir.Graph, target: Target) -> ir.Value:
    """An int64 tensor holding the target, computed at the front of the graph."""
    name = "reshape." + "x".join("N" if dim == -1 else "B" if dim == BATCH else str(dim) for dim in target)
    if BATCH not in target:
        return _initializer(graph, name, [int(dim) for dim in target])
    assert target.index(BATCH) == 0
    front = graph[0]
    if (batch := graph.meta.get(BATCH)) is None:
        tokens = graph.inputs[0]
        shape_of = ir.Node(
            "", "Shape", [tokens], [ir.AttrInt64("start", 0), ir.AttrInt64("end", 1)], name="batch.Shape"
        )
        batch = shape_of.outputs[0]
        batch.name, batch.shape, batch.type = BATCH, ir.Shape((1,)), ir.TensorType(ir.DataType.INT64)
        graph.insert_before(front, shape_of)
        graph.meta[BATCH] = batch
    rest = _initializer(graph, name + ".rest", [int(dim) for dim in target[1:]])
    join = ir.Node("", "Concat", [batch, rest], [ir.AttrInt64("axis", 0)], name=name + ".Concat")
    value = join.outputs[0]
    value.name, value.shape, value.type = name, ir.Shape((len(target),)), ir.TensorType(ir.DataType.INT64)
    producer = batch.producer()
    assert producer is not None
    graph.insert_after(producer, join)
    return value


def _initializer(graph: ir.Graph, name: str, numbers: list[int]) -> ir.Value:
    return add_constant(graph, name, np.array(numbers, np.int64))
