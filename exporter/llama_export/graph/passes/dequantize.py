"""Weights as signed numbers with scales: a standard DequantizeLinear in front of each product."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir


@dataclass(frozen=True)
class SignedLayout:
    """How a matrix [N, K] is read.

    Attributes:
        suffix: What the name of its numbers has behind the weight's.
        dtype: Of the numbers.
        block_size: Values of a row that share a scale; 0 where a row has one.
    """

    suffix: str
    dtype: ir.DataType
    block_size: int


def store_weights_dequantized(graph: ir.Graph, layouts: Mapping[str, SignedLayout]) -> None:
    """Have quantized weights widened by DequantizeLinear.

    Requires:
        The named initializers are [N, K], have no values yet, and are read by Gemm with transB=1 alone.

    Ensures:
        Each is ``<name><suffix>`` [N, K] and ``<name>_scales``, [N, blocks] or [N], of the dtype that it had,
        with a DequantizeLinear in front of its reader.

    Args:
        graph: The assembled graph.
        layouts: By initializer name.
    """
    for name, layout in layouts.items():
        weight = graph.initializers[name]
        readers = [use.node for use in weight.uses()]
        assert all(node.op_type == "Gemm" for node in readers) and weight.shape is not None
        del graph.initializers[name]
        numbers = ir.Value(name=name + layout.suffix, shape=weight.shape, type=ir.TensorType(layout.dtype))
        scales = ir.Value(name=f"{name}_scales", type=weight.type)
        wide = ir.Value(name=f"{name}.wide", shape=weight.shape, type=weight.type)
        attributes = [ir.AttrInt64("axis", 1 if layout.block_size else 0)]
        if layout.block_size:
            attributes.append(ir.AttrInt64("block_size", layout.block_size))
        for value in (numbers, scales):
            graph.initializers.add(value)
        node = ir.Node(
            "", "DequantizeLinear", [numbers, scales], attributes, outputs=[wide],
            name=f"{name}.DequantizeLinear",
        )  # fmt: skip
        graph.insert_before(readers[0], node)
        for reader in readers:
            reader.replace_input_with(1, wide)


def separate_head(graph: ir.Graph, table: str, head: str) -> None:
    """Give a head that reads the embedding table an initializer of its own.

    Requires:
        The table is read by one Gather and one Gemm, and has no values yet.

    Ensures:
        The Gemm reads ``head``, of the same shape and dtype.

    Args:
        graph: The assembled graph.
        table: The initializer that both read.
        head: Name of the new one.
    """
    weight = graph.initializers[table]
    own = ir.Value(name=head, shape=weight.shape, type=weight.type)
    graph.initializers.add(own)
    for use in list(weight.uses()):
        if use.node.op_type == "Gemm":
            use.node.replace_input_with(use.idx, own)
