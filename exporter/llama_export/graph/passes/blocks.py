"""Weights in blocks of a few bits: the operators of ONNX Runtime that read them as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

ACCURACY_LEVEL = 4  # activations are rounded to int8, block by block: a third of the time of float32


@dataclass(frozen=True)
class BlockLayout:
    """How the blocks of a matrix are read.

    Attributes:
        bits: Of a code.
        size: Values in a block.
        zero_points: Whether each block has a code of its own for zero.
    """

    bits: int
    size: int
    zero_points: bool


def store_weights_in_blocks(graph: ir.Graph, layouts: Mapping[str, BlockLayout]) -> None:
    """Have quantized weights read by MatMulNBits and GatherBlockQuantized.

    Requires:
        The named initializers are float32 [N, K], have no values yet, and are read by Gemm with transB=1 and
        by Gather on the first axis alone.

    Ensures:
        Initializers ``<name>_q4`` or ``_q8`` [N, blocks, bytes], ``<name>_scales`` and ``<name>_zero_points``
        without values in place of each; behind a Gather the codes are ``<name>_q4_rows`` [N, bytes], since
        GatherBlockQuantized has no axis for blocks.

    Args:
        graph: The assembled graph.
        layouts: By initializer name.
    """
    for name, layout in layouts.items():
        weight = graph.initializers[name]
        uses = [use.node for use in weight.uses()]
        del graph.initializers[name]
        for node in uses:
            _replace(graph, node, weight, layout)
    if layouts:
        graph.opset_imports["com.microsoft"] = 1


def _replace(graph: ir.Graph, node: ir.Node, weight: ir.Value, layout: BlockLayout) -> None:
    assert weight.shape is not None
    name, gathers = str(weight.name), node.op_type == "Gather"
    codes = f"{name}_q{layout.bits}" + ("_rows" if gathers else "")
    scales = _array(graph, f"{name}_scales", ir.DataType.FLOAT)
    stored: list[ir.Value | None] = [_array(graph, codes, ir.DataType.UINT8), scales]
    if layout.zero_points:
        stored.append(_array(graph, f"{name}_zero_points", ir.DataType.UINT8))
    attributes = [ir.AttrInt64("bits", layout.bits), ir.AttrInt64("block_size", layout.size)]
    if gathers:
        operator = "GatherBlockQuantized"
        inputs = [stored[0], node.inputs[1], *stored[1:]]
        attributes += [ir.AttrInt64("gather_axis", 0), ir.AttrInt64("quantize_axis", 1)]
    else:
        operator = "MatMulNBits"
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        inputs = [node.inputs[0], *stored]
        if bias is not None:
            inputs += [*(None,) * (5 - len(inputs)), bias]
        attributes += [
            ir.AttrInt64("N", int(weight.shape[0])),  # type: ignore[arg-type]
            ir.AttrInt64("K", int(weight.shape[1])),  # type: ignore[arg-type]
            ir.AttrInt64("accuracy_level", ACCURACY_LEVEL),
        ]
    old = node.outputs[0]
    new = ir.Value(name=old.name, shape=old.shape, type=old.type)
    graph.insert_before(
        node, ir.Node("com.microsoft", operator, inputs, attributes, outputs=[new], name=node.name)
    )
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _array(graph: ir.Graph, name: str, dtype: ir.DataType) -> ir.Value:
    if name not in graph.initializers:
        graph.initializers.add(ir.Value(name=name, type=ir.TensorType(dtype)))
    return graph.initializers[name]
