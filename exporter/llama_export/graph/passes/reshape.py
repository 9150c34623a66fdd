"""Reshapes with targets that are constants or shared, instead of shape arithmetic in every layer."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from llama_export.graph.constant import share_constant
from llama_export.graph.contract import BATCH

Target = tuple[int | str, ...]


def simplify_reshapes(graph: ir.Graph) -> None:
    """Give every Reshape a shared target and drop those that cancel.

    Requires:
        Shapes as traced: symbolic dims named, products written ``batch_size*sequence_length``.

    Ensures:
        At most one Reshape between two other nodes, none that changes nothing, and one target tensor for
        all Reshapes of the same kind. A target's only unknown but the batch size is left to -1; with more
        unknowns (attention weights), a Reshape keeps the target that was traced.
    """
    batch, targets = _batch_size(graph), dict[Target, ir.Value]()
    for node in list(graph):
        if node.op_type != "Reshape" or node.domain:
            continue
        output, shape = node.outputs[0], node.outputs[0].shape
        if shape is None or output.dtype == ir.DataType.INT64:
            continue  # shape arithmetic itself: unused once the targets are shared
        if not _is_simple(shape):
            continue
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
            targets[target] = target_value(graph, batch, target)
        node.replace_input_with(1, targets[target])


def _dims(shape: ir.Shape) -> tuple[str, ...]:
    return tuple(str(dim) for dim in shape)


def _is_simple(shape: ir.Shape) -> bool:
    """Whether at most the last symbolic dim is another than the batch size in front."""
    symbolic = [axis for axis, dim in enumerate(shape) if not isinstance(dim, int)]
    return all(str(shape[axis]) == BATCH and axis == 0 for axis in symbolic[:-1])


def _target(shape: ir.Shape) -> Target:
    """The target of a shape: its last symbolic dim is inferred (-1), one before it must be the batch."""
    symbolic = [axis for axis, dim in enumerate(shape) if not isinstance(dim, int)]
    target: list[int | str] = [dim if isinstance(dim, int) else str(dim) for dim in shape]
    if symbolic:
        target[symbolic[-1]] = -1
    return tuple(target)


def _batch_size(graph: ir.Graph) -> ir.Value:
    """A [1] tensor with the number of rows, computed by the graph's first node."""
    batch = ir.Value(name=BATCH, shape=ir.Shape((1,)), type=ir.TensorType(ir.DataType.INT64))
    span = [ir.AttrInt64("start", 0), ir.AttrInt64("end", 1)]
    graph.insert_before(graph[0], ir.Node("", "Shape", [graph.inputs[0]], span, outputs=[batch], name=BATCH))
    return batch


def target_value(graph: ir.Graph, batch: ir.Value, target: Target) -> ir.Value:
    """An int64 tensor holding the target: a constant, or ``batch``, [1], joined with one."""
    if BATCH not in target:
        return share_constant(graph, np.array(target, np.int64))
    name = "reshape." + ".".join(str(dim) for dim in target)
    value = ir.Value(name=name, shape=ir.Shape((len(target),)), type=ir.TensorType(ir.DataType.INT64))
    rest = share_constant(graph, np.array(target[1:], np.int64))
    join = ir.Node("", "Concat", [batch, rest], [ir.AttrInt64("axis", 0)], outputs=[value], name=name)
    graph.insert_after(graph[0], join)
    return value
