"""Weights stored narrower than they are computed with: a Cast behind each, none in front of a Gather."""

from __future__ import annotations

import onnx_ir as ir


def store_weights_as(graph: ir.Graph, dtypes: dict[str, ir.DataType]) -> None:
    """Give weights their storage dtype and widen them to float32 where they are used.

    Requires:
        The named initializers are float32 and have no values yet.

    Ensures:
        Each has its storage dtype; consumers still see float32. A Gather reads the narrow table and only
        its few rows are widened, so an embedding is never converted as a whole. The Casts of weights come
        first in the graph: ONNX Runtime orders a node's inputs by falling position, so it runs them last,
        just before their consumer, and needs the memory of one widened weight instead of all of them.

    Args:
        graph: The assembled graph.
        dtypes: Storage dtype by initializer name.
    """
    first = graph[0]
    for name, dtype in dtypes.items():
        weight = graph.initializers[name]
        if dtype == ir.DataType.FLOAT:
            continue
        weight.type = ir.TensorType(dtype)
        consumers = {use.node: None for use in weight.uses()}  # each once, in order
        gathers = [node for node in consumers if node.op_type == "Gather"]
        others = [node for node in consumers if node.op_type != "Gather"]
        for gather in gathers:
            rows = gather.outputs[0]
            rows.type = ir.TensorType(dtype)
            readers = [use.node for use in rows.uses()]
            graph.insert_after(gather, _widen(rows, readers))
        if others:
            graph.insert_before(first, _widen(weight, others))


def _widen(value: ir.Value, readers: list[ir.Node]) -> ir.Node:
    """A Cast of the value to float32, which the readers now read instead."""
    widened = ir.Value(name=f"{value.name}.float32", shape=value.shape, type=ir.TensorType(ir.DataType.FLOAT))
    attributes = [ir.AttrInt64("to", ir.DataType.FLOAT)]
    cast = ir.Node("", "Cast", [value], attributes, outputs=[widened], name=f"{value.name}.Cast")
    for reader in readers:
        for index, read in enumerate(reader.inputs):
            if read is value:
                reader.replace_input_with(index, widened)
    return cast
