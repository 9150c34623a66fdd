"""Projections of the same input as one matrix product: q, k and v; gate and up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from llama_export.graph.constant import share_constant
from llama_export.graph.contract import BATCH
from llama_export.graph.passes.reshape import target_value


def join_projections(graph: ir.Graph, joined: Mapping[str, Sequence[str]]) -> None:
    """Multiply once where several weights read the same input.

    Requires:
        Each weight is read by one Gemm with transB=1, and all of a group read the same input. No weight has
        a value yet.

    Ensures:
        One weight, and one bias where there is one, in place of those of a group: they stand one below the
        other. GroupQueryAttention takes q, k and v as they come out of it; for others a Split cuts them.

    Args:
        graph: The assembled graph.
        joined: The weight or bias that stands for others, and these, in order.
    """
    for whole, names in joined.items():
        if whole.endswith(".weight") and names[0] in graph.initializers:
            bias = whole.replace(".weight", ".bias")
            _join(graph, whole, names, bias if bias in joined else None)


def _join(graph: ir.Graph, whole: str, names: Sequence[str], bias: str | None) -> None:
    weights = [graph.initializers[name] for name in names]
    gemms = [next(iter(weight.uses())).node for weight in weights]
    source = gemms[0].inputs[0]
    assert source is not None and all(gemm.inputs[0] is source for gemm in gemms)
    sizes = [_size(weight, 0) for weight in weights]
    inputs = [source, _add(graph, whole, (sum(sizes), _size(weights[0], 1)))]
    if bias is not None:
        inputs.append(_add(graph, bias, (sum(sizes),)))
    product = ir.Value(name=f"{whole}.product", type=source.type)
    assert source.shape is not None
    product.shape = ir.Shape([source.shape[0], sum(sizes)])
    attributes = list(gemms[0].attributes.values())
    node = ir.Node("", "Gemm", inputs, attributes, outputs=[product], name=f"{whole}.Gemm")
    graph.insert_before(gemms[0], node)

    outputs = [gemm.outputs[0] for gemm in gemms]
    attention = _reader(outputs[0])
    if attention is not None and all(_reader(output) is attention for output in outputs):
        _pack(graph, attention, product)
    else:
        lengths = share_constant(graph, np.array(sizes, np.int64))
        cut = [ir.Value(name=f"{o.name}", shape=o.shape, type=o.type) for o in outputs]
        split = ir.Node(
            "", "Split", [product, lengths], [ir.AttrInt64("axis", 1)], outputs=cut, name=f"{whole}.Split"
        )
        graph.insert_after(node, split)
        for old, new in zip(outputs, cut, strict=True):
            old.replace_all_uses_with(new)
    for gemm in gemms:
        taken = [value for value in gemm.inputs[1:] if value is not None]
        graph.remove(gemm, safe=True)
        for value in taken:
            del graph.initializers[str(value.name)]


def _reader(projected: ir.Value) -> ir.Node | None:
    """The GroupQueryAttention that reads a projection through a Reshape; None where there is none."""
    for use in projected.uses():
        if use.node.op_type == "Reshape":
            for reader in use.node.outputs[0].uses():
                if reader.node.op_type == "GroupQueryAttention":
                    return reader.node
    return None


def _pack(graph: ir.Graph, attention: ir.Node, product: ir.Value) -> None:
    """Feed q, k and v to the attention as one [B, T, (H + 2K) * D] tensor."""
    query = attention.inputs[0]
    assert query is not None and query.shape is not None and product.shape is not None
    reshapes = [value.producer() for value in attention.inputs[:3] if value is not None]
    first = reshapes[0]
    assert first is not None and first.inputs[1] is not None
    target = _target(graph, first.inputs[1], int(product.shape[1]))  # type: ignore[arg-type]
    shape = ir.Shape([*query.shape[:2], product.shape[1]])
    packed = ir.Value(name=f"{product.name}.packed", shape=shape, type=query.type)
    graph.insert_before(
        first, ir.Node("", "Reshape", [product, target], outputs=[packed], name=f"{product.name}.Reshape")
    )
    attention.replace_input_with(0, packed)
    for index in (1, 2):
        attention.replace_input_with(index, None)
    for reshape in reshapes:
        assert reshape is not None
        graph.remove(reshape, safe=True)


def _target(graph: ir.Graph, like: ir.Value, width: int) -> ir.Value:
    """A Reshape's target [B, T, width], made like the one of another width."""
    join = like.producer()
    assert join is not None and join.op_type == "Concat"
    batch = join.inputs[0]
    assert batch is not None
    made = (node.outputs[0] for node in graph if node.name == f"reshape.{BATCH}.-1.{width}")
    return next(made, None) or target_value(graph, batch, (BATCH, -1, width))


def _add(graph: ir.Graph, name: str, shape: tuple[int, ...]) -> ir.Value:
    value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))
    graph.initializers.add(value)
    return value


def _size(value: ir.Value, axis: int) -> int:
    assert value.shape is not None
    size = value.shape[axis]
    assert isinstance(size, int)
    return size
