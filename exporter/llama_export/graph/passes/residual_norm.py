"""Add + RMSNormalization -> ``com.microsoft::SkipSimplifiedLayerNormalization``."""

from __future__ import annotations

import onnx_ir as ir


def fuse_residual_norm(graph: ir.Graph) -> None:
    """Fuse each residual addition with the norm that reads it.

    Requires:
        RMSNormalization over the last axis, as ``F.rms_norm`` is traced.

    Ensures:
        No RMSNormalization reads an Add: one node computes sum and norm in one pass over memory. The sum
        stays available to the next residual addition as the node's fourth output.
    """
    for norm in [node for node in graph if node.op_type == "RMSNormalization"]:
        hidden, weight = norm.inputs
        assert hidden is not None
        add = hidden.producer()
        if add is None or add.op_type != "Add":
            continue
        normed, total = norm.outputs[0], hidden
        outputs = [
            ir.Value(name=normed.name, shape=normed.shape, type=normed.type),
            ir.Value(name=""),  # mean and inverse deviation: for training only
            ir.Value(name=""),
            ir.Value(name=total.name, shape=total.shape, type=total.type),
        ]
        epsilon = ir.AttrFloat32("epsilon", norm.attributes["epsilon"].as_float())
        fused = ir.Node(
            "com.microsoft",
            "SkipSimplifiedLayerNormalization",
            [*add.inputs, weight],
            [epsilon],
            outputs=outputs,
            name=norm.name,
        )
        graph.insert_before(add, fused)  # the sum may have readers in front of the norm
        normed.replace_all_uses_with(outputs[0])
        total.replace_all_uses_with(outputs[3])
        graph.remove([norm, add], safe=True)
