"""Copy a traced part into the graph, as often as the model has it."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from llama_export.graph.constant import share_constant
from llama_export.graph.trace import Traced


def stamp(
    graph: ir.Graph,
    part: Traced,
    bound: dict[str, ir.Value],
    prefix: str,
    name_weight: Callable[[str], str],
) -> dict[str, ir.Value]:
    """Append a copy of a part's nodes.

    Args:
        graph: Receives the nodes, and the part's weights as initializers without values.
        part: A trace; it is read, never changed.
        bound: The graph's value for each of the part's inputs, by name.
        prefix: Of the names of all copied nodes and values, e.g. ``layers.3``.
        name_weight: From the part's weight names to the checkpoint's.

    Returns:
        The graph's value for each of the part's outputs, by name.
    """
    value_of: dict[ir.Value, ir.Value] = {value: bound[value.name or ""] for value in part.inputs}
    for local_name, initializer in part.initializers.items():
        if initializer.const_value is not None:
            value_of[initializer] = share_constant(graph, initializer.const_value.numpy())
            continue
        name = name_weight(local_name)
        if name not in graph.initializers:
            graph.initializers.add(ir.Value(name=name, shape=initializer.shape, type=initializer.type))
        value_of[initializer] = graph.initializers[name]
    for index, node in enumerate(part.nodes):
        outputs = [ir.Value(name=f"{prefix}.{o.name}", shape=o.shape, type=o.type) for o in node.outputs]
        value_of.update(zip(node.outputs, outputs, strict=True))
        copy = ir.Node(
            node.domain,
            node.op_type,
            [None if value is None else value_of[value] for value in node.inputs],
            node.attributes.values(),
            outputs=outputs,
            name=f"{prefix}.{node.op_type}_{index}",
        )
        graph.append(copy)
    return {value.name or "": value_of[value] for value in part.outputs}
