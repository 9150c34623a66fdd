"""Products with narrow weights, as one function each: an operator of our own may take its place."""

from __future__ import annotations

import onnx_ir as ir

DOMAIN, NAME = "llama_export", "WidenGemm"
_EXACT = {"transA": 0, "transB": 1, "alpha": 1.0, "beta": 1.0}


def widen_in_products(model: ir.Model) -> None:
    """Replace every Cast of a weight that a Gemm reads, and the Gemm, by a call of ``WidenGemm``.

    Requires:
        Narrow weights are widened by a Cast each (``store_weights_as``).

    Ensures:
        The numbers are the same: a runtime that has no such operator computes the function's body, which is
        that Cast and that Gemm. The model holds the function where something calls it.

    Args:
        model: Changed in place.
    """
    graph, called = model.graph, False
    for cast in [node for node in graph if node.op_type == "Cast" and _is_weight(node.inputs[0])]:
        weight, widened = cast.inputs[0], cast.outputs[0]
        for use in list(widened.uses()):
            if use.idx == 1 and _is_product(use.node):
                _call(graph, use.node, weight)
                called = True
        if not widened.uses():
            graph.remove(cast, safe=True)
    if called:
        body = function(graph.opset_imports[""])
        model.functions[body.identifier()] = body
        graph.opset_imports[DOMAIN] = 1


def _is_weight(value: ir.Value | None) -> bool:
    return value is not None and value.is_initializer()


def _is_product(node: ir.Node) -> bool:
    if node.op_type != "Gemm":
        return False
    found = {name: entry.value for name, entry in node.attributes.items()}
    return all(found.get(name, 0 if "trans" in name else 1.0) == value for name, value in _EXACT.items())


def _call(graph: ir.Graph, product: ir.Node, weight: ir.Value | None) -> None:
    states, _, *bias = product.inputs
    call = ir.Node(DOMAIN, NAME, [states, weight, *bias], num_outputs=1, name=product.name)
    result, old = call.outputs[0], product.outputs[0]
    result.name, result.shape, result.type = old.name, old.shape, old.type
    graph.insert_before(product, call)
    old.replace_all_uses_with(result, replace_graph_outputs=True)
    graph.remove(product, safe=True)


def function(opset: int) -> ir.Function:
    """WidenGemm(a [M, K] float32, b [N, K] narrower, c [N] float32, optional): a b^T + c.

    ONNX Runtime runs what a node reads by falling position in the graph. The Reshape, which moves nothing,
    stands behind the Cast: so the Cast runs last, and memory holds one widened weight instead of all of them.
    """
    a, b, c = (ir.Value(name=name) for name in "abc")
    cast = ir.Node("", "Cast", [b], [ir.AttrInt64("to", ir.DataType.FLOAT)], num_outputs=1)
    same = ir.Node("", "Constant", [], [ir.AttrInt64s("value_ints", [0, 0])], num_outputs=1)
    rows = ir.Node("", "Reshape", [a, same.outputs[0]], num_outputs=1)
    product = ir.Node(
        "", "Gemm", [rows.outputs[0], cast.outputs[0], c], [ir.AttrInt64("transB", 1)], num_outputs=1
    )
    nodes = [cast, same, rows, product]
    for node, name in zip(nodes, ("widened", "same", "rows", "y"), strict=True):
        node.outputs[0].name = name
    body = ir.Graph([a, b, c], [product.outputs[0]], nodes=nodes, opset_imports={"": opset})
    return ir.Function(DOMAIN, NAME, "", graph=body, attributes=[])
